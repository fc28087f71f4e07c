"""Bars of `dumpfs write`: speed beside makedumpfile on one core, and memory.

Wall time of whole commands, input and code cached, output to memory, unless a bar says otherwise. Ours and the peer's
runs take turns, so that what else the machine does meets both; of the ratios of the pairs the median counts.
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from barlib import CACHE, DUMPFS, ROOT, Measured, Missing, bar, big, biggest, resident, run, workdir
from plainreader import PAGE, Kdump
from readlib import compiled, seconds, warm
from writerlib import CODECS, peer, scratch, scratch_on_disk, seconds_to_write, words, write

PAIRS = 5
_GIB = 1 << 30
_POLL_SECONDS = 0.02


def in_turn(ours: Callable[[], object], theirs: Callable[[], object]) -> list[tuple[float, float]]:
    """Wall times of pairs of runs; the first pair warms caches and is not counted."""
    return [(seconds(ours), seconds(theirs)) for _ in range(PAIRS + 1)][1:]


def beside_peer(options: list[str], source: Path) -> list[tuple[float, float]]:
    """Pairs of (ours, makedumpfile's) for the same options and source."""
    warm(source)
    with scratch() as folder:
        ours, theirs = folder / "ours", folder / "theirs"
        return in_turn(lambda: write("-f", *options, source, ours), lambda: peer("-f", *options, source, theirs))


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, str]:
    """Median of theirs / ours, with its times as text."""
    value = statistics.median(theirs / ours for ours, theirs in pairs)
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return value, f"{value:.2f} x ({ours:.2f} s, makedumpfile {theirs:.2f} s)"


@bar("write-speed-zlib", "-c at level 0 of >= 500 MB: >= 3 x makedumpfile")
def speed_zlib() -> Measured:
    value, text = ratio(beside_peer(["-c", "-d", "0"], big("vmcore")))
    return Measured(text, value >= 3)


@bar("write-speed-lzo", "-l at level 0 of >= 500 MB: >= 1 x makedumpfile")
def speed_lzo() -> Measured:
    value, text = ratio(beside_peer(["-l", "-d", "0"], big("vmcore")))
    return Measured(text, value >= 1)


# -- codecs without a peer -------------------------------------------------------------------------------------------

_LOOPS = {
    # The codec's own rate: one thread, a page per call, the quickest library there is for Python (design's encoders).
    "snappy": "compress = __import__('cramjam').snappy.compress_raw_into; args = (bytearray(8192),)",
    "zstd": "compress = __import__('zstandard').ZstdCompressor(level=1).compress; args = ()",
}
_FLAGS = {"snappy": "0x4", "zstd": "0x20"}
_LOOP = """
import sys, time
{setup}
pages = []
seconds = count = 0
with open(sys.argv[1], "rb") as file:
    file.seek(int(sys.argv[2]))
    while data := file.read(1 << 22):
        view = memoryview(data)
        pages = [view[at : at + 4096] for at in range(0, len(data) - 4095, 4096)]
        start = time.perf_counter()
        for page in pages:
            compress(page, *args)
        seconds += time.perf_counter() - start
        count += len(pages)
print(count / seconds)
"""


def codec_rate(codec: str, source: Path) -> float:
    """Pages per second that the codec's library compresses in a plain loop on one core; only its calls are timed."""
    command = [sys.executable, "-c", _LOOP.format(setup=_LOOPS[codec]), source, str(2 * PAGE)]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def bare_rate(codec: str, source: Path, out: Path, processes: int) -> float:
    """Pages per second that a C program without anything else reads, compresses and writes."""
    out.unlink(missing_ok=True)
    os.sync()
    binary = compiled("bare_writer.c", str(ROOT / "dumpfs" / "native" / "codecs.c"), "-ldl")
    result = run(binary, source, out, _FLAGS[codec], str(processes))
    if result.returncode:
        raise Missing(result.stderr.decode().strip())
    pages, seconds = result.stdout.split()
    return int(pages) / float(seconds)


def beside_codec(codec: str, source: Path, place: AbstractContextManager[Path], rounds: int) -> tuple[float, str]:
    """Our whole command, beside the codec's loop in turns, and a program that does nothing else: ratio, text."""
    cores = len(os.sched_getaffinity(0))
    values = []
    with place as folder:
        out = folder / "ours"
        for _ in range(rounds + 1):
            out.unlink(missing_ok=True)  # freeing what the last run has written is none of this run's work
            os.sync()
            warm(source)  # each time: what is written, and a machine short of memory, drive it out
            used = seconds(lambda: write("-f", CODECS[codec], "-d", 0, source, out))
            alone = codec_rate(codec, source)
            pages = Kdump(out).pfns.size
            with ThreadPoolExecutor(cores) as pool:  # what this machine gives just now to a loop on each core
                together = sum(pool.map(lambda _: codec_rate(codec, source), range(cores)))
            bare = max(bare_rate(codec, source, out, processes) for processes in (cores, 2 * cores))
            values.append((pages / used / (alone * cores), pages / used, alone, together, bare / (alone * cores)))
    value, ours, alone, together, bare = (statistics.median(column) for column in zip(*values[1:], strict=True))
    mb = PAGE / 1e6
    return value, (
        f"{value:.2f} x ({ours * mb:.0f} MB/s; the codec's bare loop {alone * mb:.0f} MB/s x {cores} cores; "
        f"{cores} such loops at once {together * mb:.0f} MB/s; bare C, reading, compressing and writing: {bare:.2f} x)"
    )


def cold_times(codec: str, source: Path, rounds: int) -> str:
    """Median wall time of our command and of makedumpfile's -l when the source must come from the disk, in turns."""
    try:
        with scratch_on_disk() as folder:
            sides = (
                lambda: write(CODECS[codec], "-d", 0, source, folder / "ours"),
                lambda: peer("-l", "-d", 0, source, folder / "theirs"),
            )
            times = [[seconds_to_write(side, folder, cold=True) for side in sides] for _ in range(rounds)]
    except Missing as exc:
        return f"not measured ({exc})"
    used, used_by_peer = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{used:.1f} s (makedumpfile -l {used_by_peer:.1f} s)"


def against_codec(codec: str) -> Measured:
    """The larger guest, where starting up is a small part, to a disk and synced; other cases stand beside."""
    value, text = beside_codec(codec, biggest(), scratch_on_disk(), PAIRS)
    in_memory, _ = beside_codec(codec, biggest(), scratch(), 2)
    smaller, _ = beside_codec(codec, big("vmcore"), scratch_on_disk(), PAIRS)
    more = (
        f"into memory {in_memory:.2f} x; 1.2 GB to a disk {smaller:.2f} x; "
        f"5.2 GB from a disk to a disk, nothing in memory: {cold_times(codec, biggest(), 2)}"
    )
    return Measured(f"5.2 GB to a disk: {text}; {more}", value >= 0.8)


@bar(
    "write-speed-snappy",
    "-p at level 0, 5.2 GB to a disk: >= 0.8 x snappy's single-thread rate x cores",
)
def speed_snappy() -> Measured:
    return against_codec("snappy")


@bar(
    "write-speed-zstd",
    "-z at level 0, 5.2 GB to a disk: >= 0.8 x zstd's single-thread rate x cores",
)
def speed_zstd() -> Measured:
    return against_codec("zstd")


# -- refilter --------------------------------------------------------------------------------------------------------


REFILTER_LEVEL = 17
"""Zero and free pages are left out: what remains to be copied is >= 500 MB of memory."""


def refilter(name: str) -> Measured:
    """Refilter our own level-0 dump of a codec, beside makedumpfile doing the same; level 31 for comparison.

    For a codec that Debian's makedumpfile lacks, its time for lzo, its quickest that compresses, stands in.
    """
    can = name in ("zlib", "lzo")
    with scratch() as folder:
        source, out, theirs = folder / "source", folder / "ours", folder / "theirs"
        write(CODECS[name], "-d", 0, big("vmcore"), source)
        other, option = source, CODECS[name]
        if not can:
            other, option = folder / "lzo", "-l"
            write("-l", "-d", 0, big("vmcore"), other)
        value, text = ratio(
            in_turn(
                lambda: write("-f", CODECS[name], "-d", REFILTER_LEVEL, source, out),
                lambda: peer("-f", option, "-d", REFILTER_LEVEL, other, theirs),
            )
        )
        small, _ = ratio(
            in_turn(
                lambda: write("-f", CODECS[name], "-d", 31, source, out),
                lambda: peer("-f", option, "-d", 31, other, theirs),
            )
        )
    beside = "" if can else ", whose lzo it is"
    return Measured(f"{text[:-1]}{beside}); level 31, of which little remains: {small:.2f} x", value >= 3)


for _name in CODECS:
    if _name != "none":
        bar(
            f"write-refilter-{_name}",
            f"a {_name} dump refiltered from level 0 to {REFILTER_LEVEL}, copied through: >= 3 x makedumpfile",
        )(lambda name=_name: refilter(name))


# -- level 31 --------------------------------------------------------------------------------------------------------


@bar("write-level-31", "level 31 of >= 500 MB, in every form that makedumpfile has: <= makedumpfile + 0.3 s")
def level_31() -> Measured:
    texts = []
    ok = True
    for form in ("-l", "-c", "", "-E"):
        pairs = beside_peer(words(form, "-d", "31"), big("vmcore"))
        more = statistics.median(ours - theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        texts.append(f"{form or 'raw'} {more:+.2f} s ({ours:.2f} s, makedumpfile {theirs:.2f} s)")
        ok &= more <= 0.3
    return Measured(", ".join(texts), ok)


# -- memory ----------------------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and what it forked."""
    pids = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return pids


def peak_pss(*arguments: object) -> tuple[int, float]:
    """Greatest sum of PSS over all processes of a `dumpfs write`, in bytes, and its seconds."""
    start = time.monotonic()
    process = subprocess.Popen(words(DUMPFS, "write", "--message-level", "4", *arguments))
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL_SECONDS):
            total = 0
            for pid in family(process.pid):
                try:
                    total += resident(pid)
                except OSError:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"dumpfs write: {process.returncode}")
    return peak, time.monotonic() - start


def sparse_elf(path: Path, gibibytes: int) -> Path:
    """An ELF core of so much memory, nearly all of it holes: 4 MiB of content in each GiB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    size = gibibytes * _GIB
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 0, 176, 0, 0, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, PAGE, 0xFFFF888000000000, 0, size, size, 0)
    with part.open("wb") as file:
        file.write(ehdr + note + load)
        file.truncate(PAGE + size)
        with big("vmcore").open("rb") as memory:
            for gib in range(gibibytes):
                memory.seek(PAGE * 2 + (gib * 4 << 20))
                file.seek(PAGE + gib * _GIB + (gib << 20))
                file.write(memory.read(4 << 20))
    part.rename(path)
    return path


def peaks(runs: dict[str, tuple[object, ...]]) -> Measured:
    """The bar of several writes' memory."""
    texts = []
    worst = 0
    with scratch() as folder:
        for what, arguments in runs.items():
            peak, used = peak_pss("-f", *arguments, folder / "out")
            worst = max(worst, peak)
            texts.append(f"{what} {peak / 1e6:.0f} MB ({used:.1f} s)")
    return Measured(", ".join(texts), worst <= 150e6)


@bar("write-memory", "peak PSS summed over processes <= 150 MB: every form of >= 500 MB")
def memory() -> Measured:
    source = big("vmcore")
    runs: dict[str, tuple[object, ...]] = {
        f"{name} d0": (option, "-d", 0, source) for name, option in CODECS.items() if name != "none"
    }
    runs["elf d0"] = ("-E", "-d", 0, source)
    runs["elf d31"] = ("-E", "-d", 31, source)
    runs["lzo d31"] = ("-l", "-d", 31, source)
    runs["refilter"] = ("-c", "-d", 31, CACHE / "guest-zlib-d0.kdump")
    return peaks(runs)


@bar("write-memory-64gib", "the same of a generated 64 GiB sparse source, at level 1 and to ELF")
def memory_64gib() -> Measured:
    source = workdir() / "sparse-64gib.elf"
    if not source.exists():
        sparse_elf(source, 64)
    try:
        return peaks({"64 GiB lzo d1": ("-l", "-d", 1, source), "64 GiB elf d1": ("-E", "-d", 1, source)})
    finally:
        source.unlink()


@bar("write-memory-1tib", "the same of the generated 1 TiB kdump with fragmented bitmaps, copied through")
def memory_1tib() -> Measured:
    from bars_reading import sparse_tib

    return peaks({"1 TiB zlib d0": ("-c", "-d", 0, sparse_tib())})
