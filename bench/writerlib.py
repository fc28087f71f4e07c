"""What the writer's bars share: a place to write to, `dumpfs write` and makedumpfile as commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from barlib import CACHE, DUMPFS, Missing, corpus, drop_caches, run, tool
from readlib import seconds

TINY_SOURCE = "tiny/kdump-kaslr.vmcore"
TINY_VMLINUX = "tiny/vmlinux"
TINY_LOG = "tiny/kdump-kaslr.log.expected"
TINY_RELEASE = "6.1.192-dumpfs-tiny"
SECRET = b"USERSECRET-0123456789"
CODECS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "none": ""}
_BASE = Path(os.environ.get("DUMPFS_BENCH_OUT") or "/dev/shm")


@contextlib.contextmanager
def scratch(base: Path = _BASE) -> Iterator[Path]:
    """A folder to write to, removed in the end; in memory, unless `base` is elsewhere."""
    path = Path(tempfile.mkdtemp(prefix="dumpfs-bar-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def scratch_on_disk() -> Iterator[Path]:
    """A folder beside the guests' dumps, on a disk of this machine."""
    if not os.major(CACHE.stat().st_dev):
        raise Missing(f"{CACHE} is on no disk of this machine: set DUMPFS_BENCH_DIR")
    with scratch(CACHE) as folder:
        yield folder


def seconds_to_write(command: Callable[[], object], folder: Path, *, cold: bool = False) -> float:
    """Wall time of a command that writes to a folder, emptied first: each finds the same room and replaces nothing.

    Args:
        command: what is timed.
        folder: holds nothing but what such commands have written.
        cold: with nothing in memory.
    """
    for path in folder.iterdir():
        path.unlink()
    if cold:
        os.sync()
        drop_caches()
    return seconds(command)


def words(*arguments: object) -> list[str]:
    """Arguments as a command has them; empty ones are left out."""
    return [str(a) for a in arguments if str(a)]


def write(*arguments: object, want: int = 0, **more: object) -> subprocess.CompletedProcess[bytes]:
    """`dumpfs write`, silent but for errors.

    Raises:
        RuntimeError: it did not end with the status `want`.
    """
    result = run(DUMPFS, "write", "--message-level", "4", *words(*arguments), **more)  # type: ignore[arg-type]
    if result.returncode != want:
        raise RuntimeError(f"dumpfs write {' '.join(words(*arguments))}: {result.returncode}: {result.stderr.decode()}")
    return result


def peer(*arguments: object, **more: object) -> subprocess.CompletedProcess[bytes]:
    """makedumpfile, silent.

    Raises:
        RuntimeError: it failed.
    """
    result = run(tool("makedumpfile"), "--message-level", "4", *words(*arguments), **more)  # type: ignore[arg-type]
    if result.returncode:
        raise RuntimeError(f"makedumpfile {' '.join(words(*arguments))}: {(result.stdout + result.stderr).decode()}")
    return result


def tiny() -> Path:
    """The real crash that every form is made from."""
    return corpus(TINY_SOURCE)


def same_file(a: Path, b: Path) -> bool:
    """Whether two files have the same bytes."""
    return a.stat().st_size == b.stat().st_size and run("cmp", "-s", a, b).returncode == 0
