"""What bars of reading and bench/run share: the peer's loop, parallel readers, dd, lists of addresses, page caches.

Rates are of bytes of stored pages. A list of addresses is a file of 64-bit integers, one for each read, so that every
side reads the same bytes in the same order.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from barlib import PAGE, ROOT, Missing, drop_caches, mounted, run, shuffled, workdir

RUN_PAGES = 4096
"""Least length, in pages, of a run that is read sequentially: below 16 MiB it is dd's own start that is measured."""
_CHUNK = 1 << 22
Runs = list[tuple[int, int]]


@dataclass(frozen=True)
class Timed:
    """Reads of one side: bytes, wall seconds, CPU seconds (0 if not known), and times of a read in microseconds."""

    nbytes: int
    wall: float
    cpu: float = 0.0
    median_us: float = 0.0
    p99_us: float = 0.0

    @property
    def rate(self) -> float:
        """MB (10^6 bytes) per wall second."""
        return self.nbytes / self.wall / 1e6

    @property
    def reads(self) -> float:
        """4 KiB reads per wall second."""
        return self.nbytes / PAGE / self.wall


@cache
def compiled(name: str, *flags: str) -> Path:
    """A C program of this folder, compiled once for each of its versions."""
    source = ROOT / "bench" / name
    digest = hashlib.sha1(source.read_bytes() + " ".join(flags).encode()).hexdigest()[:8]
    binary = workdir() / f"{source.stem}-{digest}"
    if not binary.exists():
        part = binary.with_suffix(".part")
        try:
            result = run("gcc", "-O2", "-Wall", "-o", part, source, *flags)
        except FileNotFoundError as exc:
            raise Missing("gcc is not installed") from exc
        if result.returncode:
            raise Missing(f"{name} could not be compiled: {result.stderr.decode()[-200:]}")
        part.rename(binary)
    return binary


def _words(*command: str | Path) -> list[float]:
    result = run(*command)
    if result.returncode:
        raise RuntimeError(result.stderr.decode(errors="replace").strip()[-300:])
    return [float(word) for word in result.stdout.split()]


def libkdumpfile(dump: Path, addresses: Path | None = None, size: int = PAGE) -> Timed:
    """libkdumpfile in process, in C: every page of the dump, or the reads of a list."""
    more: list[str | Path] = [addresses, str(size)] if addresses else []
    nbytes, cpu, wall, median, p99 = _words(compiled("peer_libkdumpfile.c", "-lkdumpfile"), dump, *more)
    timed = Timed(int(nbytes), wall, cpu, median, p99)
    return _whole(timed, addresses, size) if addresses else timed


def _whole(timed: Timed, addresses: Path, size: int) -> Timed:
    """What was measured, if all of a list was read: a page that could not be read must not count as read fast."""
    wanted = addresses.stat().st_size // 8 * size
    if timed.nbytes != wanted:
        raise RuntimeError(f"{timed.nbytes} of {wanted} bytes were read")
    return timed


def readers(path: Path, addresses: Path, size: int = PAGE, count: int = 1, direct: bool = True) -> Timed:
    """The reads of a list by so many readers at once."""
    mode = "direct" if direct else "buffered"
    nbytes, wall, median, p99, _ = _words(
        compiled("readers.c", "-pthread"), path, addresses, str(size), str(count), mode
    )
    return _whole(Timed(int(nbytes), wall, 0.0, median, p99), addresses, size)


def dd(path: Path, spans: Iterable[tuple[int, int]], direct: bool, block: str = "8M") -> Timed:
    """(offset, bytes) spans of a file, one after the other, by dd; its own start counts."""
    total = 0
    flags = ("direct," if direct else "") + "skip_bytes,count_bytes,fullblock"
    start = time.monotonic()
    for offset, nbytes in spans:
        words = (f"if={path}", "of=/dev/null", f"bs={block}", f"iflag={flags}", f"skip={offset}", f"count={nbytes}")
        result = run("dd", *words)
        said = result.stderr.decode()
        if result.returncode:
            raise RuntimeError(said)
        total += int(said.splitlines()[-1].split()[0])  # "N bytes (...) copied, ..."
    return Timed(total, time.monotonic() - start)


def bit_runs(bits: bytes) -> Runs:
    """Runs [first, stop) of set bits."""
    text = bin(int.from_bytes(bits, "little"))[:1:-1]
    return [m.span() for m in re.finditer("1+", text)]


@cache
def stored_runs(dump: Path) -> Runs:
    """Runs of stored pages of a dump, by its 2nd bitmap."""
    with mounted(dump) as mount:
        return bit_runs((mount.path / "bitmaps" / "stored").read_bytes())


def long_runs(dump: Path) -> Runs:
    """The runs that are long enough to be read sequentially."""
    return [(first, stop) for first, stop in stored_runs(dump) if stop - first >= RUN_PAGES]


def spans(runs: Runs) -> list[tuple[int, int]]:
    """(physical address, bytes) of runs of pages."""
    return [(first * PAGE, (stop - first) * PAGE) for first, stop in runs]


def address_list(name: str, addresses: Iterable[int]) -> Path:
    """A file with a list of addresses."""
    path = workdir() / f"{name}.list"
    path.write_bytes(array("Q", addresses).tobytes())
    return path


def cut(runs: Runs, npages: int) -> Runs:
    """The runs up to so many pages."""
    kept = []
    for first, stop in runs:
        stop = min(stop, first + npages)
        npages -= stop - first
        if stop > first:
            kept.append((first, stop))
    return kept


def sequential_list(dump: Path, runs: Runs, size: int = PAGE) -> Path:
    """Addresses of all pages of runs, in order; or of larger pieces, without what is left at the end of a run."""
    step = size // PAGE
    pieces = [at * PAGE for first, stop in runs for at in range(first, stop - step + 1, step)]
    return address_list(f"{dump.name}-sequential-{size}-{len(pieces)}", pieces)


def random_list(dump: Path, count: int) -> Path:
    """Addresses of stored pages in an order that is random and always the same, none of them twice."""
    pages = shuffled([p * PAGE for a, b in stored_runs(dump) for p in range(a, b)])
    return address_list(f"{dump.name}-random-{count}", pages[:count])


def warm(*paths: Path) -> None:
    """Have files in the page cache."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass


def only_warm(*paths: Path) -> None:
    """Drop all caches, then have these files in the page cache."""
    drop_caches()
    warm(*paths)


def seconds(command: Callable[[], object]) -> float:
    """Wall time of something."""
    start = time.monotonic()
    command()
    return time.monotonic() - start


def children_cpu() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def median(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Least and greatest, as text."""
    return f"{min(values):.2f} to {max(values):.2f}"
