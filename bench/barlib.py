"""What the bars share: where dumps lie, how to mount one, how to count CPU, and the table of bars.

A bar is a function that measures one promise of the project on real dumps and returns a `Measured`. One that cannot
measure (a dump or a peer is missing) raises `Missing`, and counts as open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV_BIN = Path(sys.executable).parent
DUMPFS = str(VENV_BIN / "dumpfs")
CACHE = Path(os.environ.get("DUMPFS_BENCH_DIR") or Path.home() / ".cache" / "dumpfs-bench")
CORPUS = Path(os.environ.get("DUMPFS_CORPUS") or ROOT.parent / "shared" / "corpus")
TICK = os.sysconf("SC_CLK_TCK")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed dumpfs has its bytecode
PAGE = 4096
_IN_USE_SECONDS = 10.0
"""How long a mount may be in use by others when it is to end."""


class Missing(Exception):
    """Something a bar needs is not on this machine."""


@dataclass(frozen=True)
class Measured:
    """What a bar found: the value as text, and whether it meets the bar."""

    value: str
    ok: bool


@dataclass(frozen=True)
class Bar:
    """One promise: a name, what it says, and the function that measures it."""

    name: str
    promise: str
    measure: Callable[[], Measured]


BARS: list[Bar] = []


def bar(name: str, promise: str) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
    """Enter a function into the table of bars."""

    def enter(measure: Callable[[], Measured]) -> Callable[[], Measured]:
        BARS.append(Bar(name, promise, measure))
        return measure

    return enter


def run(*command: str | Path, timeout: float = 500, **more: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command and keep what it says; never raises for its exit status."""
    return subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        timeout=timeout,
        check=False,
        **more,  # type: ignore[call-overload]
    )


def tool(name: str) -> str:
    """Path of a peer, or `Missing`."""
    found = shutil.which(name)
    if not found:
        raise Missing(f"{name} is not installed")
    return found


@cache
def workdir() -> Path:
    """A folder for unpacked dumps, kept between runs (made forms are dear)."""
    path = CACHE / "forms"
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def corpus(name: str) -> Path:
    """A file of the corpus, unpacked if it is compressed."""
    plain = CORPUS / name
    if plain.exists():
        return plain
    packed = CORPUS / (name + ".xz")
    if not packed.exists():
        raise Missing(f"{name} is not in the corpus at {CORPUS}")
    out = workdir() / name.replace("/", "_")
    if not out.exists():
        with lzma.open(packed) as source, open(out.with_suffix(".part"), "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        out.with_suffix(".part").rename(out)
    return out


def made(name: str, command: Callable[[Path], list[str | Path]]) -> Path:
    """A file that a peer makes, once."""
    out = workdir() / name
    if not out.exists():
        part = out.with_name(name + ".part")
        part.unlink(missing_ok=True)
        result = run(*command(part))
        if result.returncode or not part.exists():
            raise Missing(f"{name} could not be made: {result.stderr.decode(errors='replace')[-200:]}")
        part.rename(out)
    return out


def big(form: str) -> Path:
    """The benchmark guest's dump of >= 500 MB in a form ('lzo-d0.kdump'); made by bench/guest/make."""
    path = CACHE / f"guest-{form}" if not form.startswith(("elf", "vmcore")) else CACHE / f"guest.{form}"
    if not path.exists():
        raise Missing(f"{path} is not there: run bench/guest/make")
    return path


def biggest() -> Path:
    """The vmcore of the guest that is four times as large; made by bench/guest/make --big."""
    path = CACHE / "big" / "guest.vmcore"
    if not path.exists():
        raise Missing(f"{path} is not there: run bench/guest/make --big")
    return path


@dataclass
class Mounted:
    """A mounted dump."""

    path: Path
    workers: int

    @property
    def pids(self) -> list[int]:
        """Its processes, once all workers are there: a mount answers before."""
        until = time.monotonic() + _IN_USE_SECONDS
        while len(found := mount_pids(self.path)) <= self.workers and time.monotonic() < until:
            time.sleep(0.005)
        return found

    def cpu(self) -> float:
        """CPU seconds that the mount's processes have used so far."""
        return sum(process_cpu(pid) for pid in self.pids)


def process_cpu(pid: int) -> float:
    """User and system seconds of a process, its reaped children included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def resident(pid: int, key: str = "Pss") -> int:
    """Bytes of a process's memory, shared pages counted in proportion."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    return 0


def mount_pids(path: Path) -> list[int]:
    """Processes that serve a mount point."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(path) in words and any(w.endswith(b"dumpfs") for w in words):
                    pids.append(int(entry.name))
    return pids


def _workers(options: str) -> int:
    """How many workers a mount with these options has."""
    said = [text.removeprefix("workers=") for text in options.split(",") if text.startswith("workers=")]
    return int(said[-1]) if said else min(len(os.sched_getaffinity(0)), 4)


@contextlib.contextmanager
def mounted(*dumps: Path, options: str = "") -> Iterator[Mounted]:
    """Mount dumps with the installed command; unmounts in the end, and fails if it cannot."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Missing("/dev/fuse cannot be used")
    point = Path(tempfile.mkdtemp(prefix="dumpfs-bar-"))
    words = ["-o", options] if options else []
    result = run(DUMPFS, "mount", *words, *dumps, point)
    if result.returncode:
        point.rmdir()
        raise RuntimeError(f"mount failed: {result.stderr.decode(errors='replace')}")
    try:
        yield Mounted(point, _workers(options))
    finally:
        until = time.monotonic() + _IN_USE_SECONDS
        while (result := run(DUMPFS, "umount", point)).returncode and time.monotonic() < until:
            time.sleep(0.2)  # somebody else may be looking through all folders
        if result.returncode:
            run("fusermount3", "-uz", point)
            raise RuntimeError(f"umount failed: {result.stderr.decode(errors='replace')}")
        point.rmdir()


def drop_caches() -> None:
    """Empty the kernel's page cache, or `Missing` for who may not."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as exc:
        raise Missing(f"caches cannot be dropped: {exc}") from exc


def truth(name: str) -> dict[int, str]:
    """Physical address to sha1 of a 4 KiB page."""
    return {int(k): v for k, v in json.loads((CORPUS / name).read_text()).items()}


def sha1(data: bytes) -> str:
    """Hex digest, as the corpus has them."""
    return hashlib.sha1(data).hexdigest()


def shuffled(items: list[int], seed: int = 1) -> list[int]:
    """The items in an order that is random and always the same."""
    import random

    result = list(items)
    random.Random(seed).shuffle(result)
    return result


def say(text: str) -> None:
    """A remark on stderr."""
    print(text, file=sys.stderr, flush=True)


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.monotonic()
