"""Sections about bytes: sequential, random and parallel reading."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from barlib import PAGE, big, drop_caches, mounted, shuffled
from readlib import (
    Runs,
    Timed,
    address_list,
    cut,
    dd,
    libkdumpfile,
    long_runs,
    only_warm,
    random_list,
    readers,
    sequential_list,
    spans,
    warm,
)

from page.forms import CODECS, passthrough
from page.measure import Plan, Row, Turns, section

_MIB = 1 << 20
_KERNEL_TEXT = 0xFFFFFFFF80000000
_MAX_READERS = 4
_NAMES = {**{codec: codec for codec in CODECS}, "none": "ELF"}
_SIZES = {"random": PAGE, "sequential": _MIB}


def dump_of(codec: str) -> Path:
    """The benchmark dump with this codec; 'none' is the ELF that the capture kernel saved."""
    return big("vmcore") if codec == "none" else big(f"{codec}-d0.kdump")


def vmcore_spans(path: Path, runs: Runs) -> list[tuple[int, int]]:
    """Where /vmcore has these pages: (offset, bytes) by its PT_LOADs of RAM."""
    with path.open("rb") as file:
        header = file.read(64)
        offset, entry, count = *struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(entry * count)
    loads = []
    for at in range(0, len(table), entry):
        kind, _, offset, vaddr, paddr, size = struct.unpack_from("<IIQQQQ", table, at)
        if kind == 1 and vaddr < _KERNEL_TEXT and paddr < 1 << 63:  # neither the text's alias nor vmalloc and its like
            loads.append((paddr, paddr + size, offset))
    found = []
    for start, nbytes in spans(runs):
        for first, stop, offset in loads:
            low, high = max(start, first), min(start + nbytes, stop)
            if low < high:
                found.append((offset + low - first, high - low))
    return found


def _read_ours(dump: Path, runs: Runs) -> dict[str, float]:
    rates = {}
    wanted = sum(size for _, size in spans(runs))
    with mounted(dump) as mount:
        views = {"/hmem": spans(runs), "/vmcore": vmcore_spans(mount.path / "vmcore", runs)}
        for view, pieces in views.items():
            for mode in ("O_DIRECT", "buffered"):
                drop_caches()
                timed = dd(mount.path / view[1:], pieces, mode == "O_DIRECT")
                if timed.nbytes < wanted * 0.99:
                    raise RuntimeError(f"{view} has only {timed.nbytes} of {wanted} bytes")
                rates[f"dumpfs {view} {mode}"] = timed.rate
    return rates


def _read_plain(path: Path, name: str, size: int, prepare: Callable[[], None]) -> dict[str, float]:
    rates = {}
    for mode in ("O_DIRECT", "buffered"):
        prepare()
        rates[f"{name} {mode}"] = dd(path, [(0, size)], mode == "O_DIRECT").rate
    return rates


def _read_passthrough(source: Path, size: int) -> dict[str, float]:
    with passthrough(source) as path:
        return _read_plain(path, "passthrough", size, lambda: only_warm(source))


def _libkdumpfile(dump: Path, addresses: Path, prepare: Callable[[], None], size: int = PAGE) -> Timed:
    prepare()
    return libkdumpfile(dump, addresses, size)


@section(
    "sequential",
    "Sequential reading",
    """
    `dd bs=8M` of every run of stored pages of at least 16 MiB, caches dropped before each run. libkdumpfile
    reads the same pages in the same order, in process, a page per call. The passthrough serves an uncompressed
    file that is in the page cache: no disk, no decoding. *local file* is `dd` on that file on the local disk,
    caches dropped.
    """,
)
def sequential(plan: Plan) -> Iterator[Row]:
    source = big("vmcore")
    for codec in (*CODECS, "none"):
        dump = dump_of(codec)
        runs = cut(long_runs(dump), plan.sequential_pages)
        total = sum(size for _, size in spans(runs))
        addresses = sequential_list(dump, runs)
        turns = Turns(
            plan.rounds(5, 2),
            {
                "libkdumpfile": lambda d=dump, a=addresses: _libkdumpfile(d, a, drop_caches).rate,
                "dumpfs": lambda d=dump, r=runs: _read_ours(d, r),
                "passthrough": lambda t=total: _read_passthrough(source, t),
                "local file": lambda t=total: _read_plain(source, "local file", t, drop_caches),
            },
        )
        for view in ("/hmem", "/vmcore"):
            for mode in ("O_DIRECT", "buffered"):
                title = f"{_NAMES[codec]}, {view}, {mode}"
                yield turns.row(
                    title, "MB/s", dumpfs=f"dumpfs {view} {mode}", libkdumpfile="libkdumpfile",
                    passthrough=f"passthrough {mode}", local_file=f"local file {mode}",
                )  # fmt: skip


def _passthrough_random(source: Path, count: int) -> Path:
    pages = shuffled(list(range(source.stat().st_size // PAGE)))[:count]
    return address_list(f"passthrough-random-{count}", (page * PAGE for page in pages))


def _random_values(name: str, timed: Timed) -> dict[str, float]:
    return {f"{name} rate": timed.reads, f"{name} p99": timed.p99_us}


@section(
    "random",
    "Random reading",
    """
    4 KiB reads of /hmem, O_DIRECT, one reader, each page at most once, the same list for both sides. The dump's
    file is in the page cache on both sides, so it is not the disk that is measured; no page is in a cache of
    decoded ones.
    """,
)
def random(plan: Plan) -> Iterator[Row]:
    source = big("vmcore")
    count = plan.random_reads
    for codec in (*CODECS, "none"):
        dump = dump_of(codec)
        addresses, plain = random_list(dump, count), _passthrough_random(source, count)

        def ours(d: Path = dump, a: Path = addresses) -> dict[str, float]:
            warm(d)
            with mounted(d) as mount:
                return _random_values("dumpfs", readers(mount.path / "hmem", a))

        def peer(d: Path = dump, a: Path = addresses) -> dict[str, float]:
            return _random_values("libkdumpfile", _libkdumpfile(d, a, lambda: warm(d)))

        def ceiling(a: Path = plain) -> dict[str, float]:
            warm(source)
            with passthrough(source) as path:
                return _random_values("passthrough", readers(path, a))

        turns = Turns(plan.rounds(5, 2), {"libkdumpfile": peer, "dumpfs": ours, "passthrough": ceiling})
        for what, unit in (("rate", "reads/s"), ("p99", "µs")):
            title = f"{_NAMES[codec]}, {'reads' if what == 'rate' else '99 % of reads within'}"
            yield turns.row(
                title, unit, dumpfs=f"dumpfs {what}", libkdumpfile=f"libkdumpfile {what}",
                passthrough=f"passthrough {what}",
            )  # fmt: skip


def _at_once(name: str, path: Path, which: dict[str, Path], prepare: dict[str, Callable[[], None]]) -> dict[str, float]:
    found = {}
    for number in range(1, _MAX_READERS + 1):
        for kind, addresses in which.items():
            prepare[kind]()
            timed = readers(path, addresses, _SIZES[kind], number)
            found[f"{name} {kind} {number}"] = timed.reads if kind == "random" else timed.rate
            if kind == "random":
                found[f"{name} p99 {number}"] = timed.p99_us
    return found


@section(
    "parallel",
    "Parallel reading",
    """
    1 to 4 readers at once, each with its own share of the list. Random: 4 KiB O_DIRECT, as above. Sequential: 1
    MiB O_DIRECT, every reader a range of its own, caches dropped. libkdumpfile is one loop in one process in
    every row, which is what a program that uses it has.
    """,
)
def parallel(plan: Plan) -> Iterator[Row]:
    source = big("vmcore")
    for codec in ("zlib",) if plan.quick else ("zlib", "lzo"):
        dump = dump_of(codec)
        runs = cut(long_runs(dump), plan.sequential_pages)
        lists = {"random": random_list(dump, plan.random_reads), "sequential": sequential_list(dump, runs, _MIB)}
        total = lists["sequential"].stat().st_size // 8
        plain = {
            "random": _passthrough_random(source, plan.random_reads),
            "sequential": address_list(f"passthrough-sequential-{total}", range(0, total * _MIB, _MIB)),
        }

        def ours(d: Path = dump, which: dict[str, Path] = lists) -> dict[str, float]:
            with mounted(d) as mount:
                prepare = {"random": lambda: warm(d), "sequential": drop_caches}
                return _at_once("dumpfs", mount.path / "hmem", which, prepare)

        def ceiling(which: dict[str, Path] = plain) -> dict[str, float]:
            with passthrough(source) as path:
                return _at_once("passthrough", path, which, dict.fromkeys(which, lambda: warm(source)))

        def peer(d: Path = dump, which: dict[str, Path] = lists) -> dict[str, float]:
            found = _libkdumpfile(d, which["random"], lambda: warm(d))
            whole = _libkdumpfile(d, which["sequential"], drop_caches, _MIB)
            return {
                "libkdumpfile random": found.reads,
                "libkdumpfile p99": found.p99_us,
                "libkdumpfile sequential": whole.rate,
            }

        turns = Turns(plan.rounds(3, 2), {"libkdumpfile": peer, "dumpfs": ours, "passthrough": ceiling})
        for kind, unit in (("random", "reads/s"), ("p99", "µs"), ("sequential", "MB/s")):
            what = {"random": "random", "p99": "random, 99 % of reads within", "sequential": "sequential"}[kind]
            for number in range(1, _MAX_READERS + 1):
                readers_text = f"{number} reader{'s' * (number > 1)}"
                yield turns.row(
                    f"{codec}, {what}, {readers_text}", unit, dumpfs=f"dumpfs {kind} {number}",
                    libkdumpfile=f"libkdumpfile {kind}", passthrough=f"passthrough {kind} {number}",
                )  # fmt: skip
