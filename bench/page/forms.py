"""The dumps that are measured, made once, and the C passthrough's mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from barlib import CACHE, DUMPFS, Missing, big, made, mounted, run, say
from bars_parallel import flattened, local_core
from bars_reading import million, sparse_tib
from readlib import compiled

CODECS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z"}
READ_AHEAD_KIB = 1024
"""What dumpfs sets for its own mounts; the passthrough's gets the same."""
_MOUNT_SECONDS = 10


def make_all() -> None:
    """Make what is not there yet.

    Raises:
        Missing: bench/guest/make did not do its part.
    """
    source = big("vmcore")
    for codec, option in CODECS.items():
        out = CACHE / f"guest-{codec}-d0.kdump"
        if not out.exists():
            say(f"dumpfs write {option} -d 0")
            part = out.with_suffix(".part")
            result = run(DUMPFS, "write", "--message-level", "4", "-f", option, "-d", "0", source, part)
            if result.returncode:
                raise RuntimeError(result.stderr.decode(errors="replace"))
            part.rename(out)
    flat()
    local_core(big("zlib-d0.kdump"))
    local_hmem()
    million()
    sparse_tib()


def flat() -> Path:
    """The lzo dump as a flattened stream: makedumpfile's, or ours where that is not installed."""
    try:
        return flattened()
    except Missing:
        write = ["-F", "-l", "-d", "0", big("vmcore")]
        return made("guest-lzo-d0.ours.flat", lambda out: [DUMPFS, "write", "--message-level", "4", *write, out])


def local_hmem() -> Path:
    """A copy of /hmem on the local disk, holes kept."""
    with contextlib.ExitStack() as stack:

        def copy(out: Path) -> list[str | Path]:
            mount = stack.enter_context(mounted(big("zlib-d0.kdump")))
            return ["cp", "--sparse=always", mount.path / "hmem", out]

        return made("guest.hmem", copy)


@contextlib.contextmanager
def passthrough(source: Path) -> Iterator[Path]:
    """Serve a file through a FUSE file system in C that only copies; the value is the file to read."""
    flags = run("pkg-config", "--cflags", "--libs", "fuse3") if shutil.which("pkg-config") else None
    if flags is None or flags.returncode:
        raise Missing("libfuse3-dev is not installed")
    binary = compiled("passthrough.c", *flags.stdout.decode().split())
    point = Path(tempfile.mkdtemp(prefix="dumpfs-bar-"))
    process = subprocess.Popen([binary, source, point], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + _MOUNT_SECONDS
        while not os.path.ismount(point):
            if process.poll() is not None or time.monotonic() > deadline:
                said = process.stderr.read().decode(errors="replace") if process.poll() is not None else "no mount"
                raise Missing(f"passthrough: {said}")
            time.sleep(0.01)
        device = os.stat(point).st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        bdi.write_text(str(READ_AHEAD_KIB))
        yield point / "file"
    finally:
        run("umount", point)
        try:
            process.wait(_MOUNT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        point.rmdir()
