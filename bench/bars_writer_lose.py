"""Bars of `dumpfs write`: nothing that was written is lost, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from barlib import DUMPFS, Measured, Missing, bar, big, made, run, tool
from plainreader import INCOMPLETE, PAGE, Elf, Kdump
from writerlib import CODECS, same_file, scratch, scratch_on_disk, tiny, words, write

TIMES = 20
NOT_FLAGGED = "not flagged"
PREVIOUS = b"the dump of the previous crash\n" * 500


def problem(left: Path, complete: Path) -> str:
    """What is wrong with an incomplete dump, beside the complete one of the same options, or ''."""
    wrong = _kdump_problem(left, complete) if left.read_bytes()[:5] == b"KDUMP" else _elf_problem(left, complete)
    if not wrong and b'"complete": false' not in run(DUMPFS, "info", "--json", left).stdout:
        wrong = "dumpfs info does not open it, or calls it complete"
    return wrong


def _kdump_problem(left: Path, complete: Path) -> str:
    ours, whole = Kdump(left), Kdump(complete)
    if not ours.header["status"] & INCOMPLETE:
        return NOT_FLAGGED
    if not np.array_equal(ours.pfns, whole.pfns) or not np.array_equal(ours.ram, whole.ram):
        return "other bitmaps"
    there = np.flatnonzero(ours.rows["offset"])
    if len(there) and there[-1] + 1 != len(there):
        return "the descriptors are no prefix"
    count = len(there)
    if not np.array_equal(ours.rows[:count], whole.rows[:count]):
        return "other descriptors"
    if not count:
        return ""
    end = int((ours.rows["offset"][:count] + ours.rows["size"][:count]).max())
    start = int(whole.rows["offset"][: len(whole.pfns)].min())
    return "" if np.array_equal(ours.data[start:end], whole.data[start:end]) else "other page data"


def _elf_problem(left: Path, complete: Path) -> str:
    ours, whole = Elf(left), Elf(complete)
    if not ours.incomplete:
        return NOT_FLAGGED
    if ours.loads != whole.loads:
        return "other segments"
    start = min(offset for _, offset, filesz, _ in whole.loads if filesz)
    return "" if np.array_equal(ours.data[start:], whole.data[start : len(ours.data)]) else "other page data"


class Tally:
    """What became of a number of writes that were ended early."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.early = self.amid = self.done = 0
        self.low, self.high = 1.0, 0.0

    def look(self, what: str, left: Path, complete: Path, *, killed: bool = False) -> None:
        """Judge what is left of one; what was killed may be empty yet, or complete and without its name yet."""
        if not left.exists() or (killed and not left.stat().st_size):
            self.early += 1
            return
        found = problem(left, complete)
        if killed and found == NOT_FLAGGED and same_file(left, complete):
            self.done += 1
            return
        share = left.stat().st_size / complete.stat().st_size
        self.amid, self.low, self.high = self.amid + 1, min(self.low, share), max(self.high, share)
        if found:
            self.wrong.append(f"{what}: {found}")

    def measured(self, promise: str) -> Measured:
        """The bar's value."""
        text = (
            f"{self.amid} left in the midst ({self.low:.0%} to {self.high:.0%} of the file), {self.early} before "
            f"anything was written, {self.done} just done: {promise}"
        )
        return Measured("; ".join(self.wrong[:4]) or text, not self.wrong and self.amid >= TIMES // 4)


def seconds_of(*arguments: object) -> float:
    """How long a `dumpfs write` takes."""
    start = time.monotonic()
    write(*arguments)
    return time.monotonic() - start


def kill_often(options: list[str], seed: int, place: AbstractContextManager[Path] | None = None) -> Measured:
    """kill -9 at random moments: alternately of the parent alone and of all its processes."""
    rng = random.Random(seed)
    tally = Tally()
    with place or scratch() as folder:
        target, partial, complete = folder / "dump", folder / "dump.partial", folder / "complete"
        command = words(DUMPFS, "write", "--message-level", "4", "-f", *options, big("vmcore"))
        seconds = min(seconds_of(*options, "-f", big("vmcore"), complete) for _ in range(3))
        for number in range(TIMES):
            target.write_bytes(PREVIOUS)
            process = subprocess.Popen([*command, str(target)], start_new_session=True)
            time.sleep(rng.uniform(0.1, 1) * seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if number % 2 else process.kill()
            process.wait()
            what = f"kill {number}"
            if process.returncode == 0 or (not partial.exists() and same_file(target, complete)):
                tally.done += 1
                continue
            if target.read_bytes() != PREVIOUS:
                tally.wrong.append(f"{what}: DST was touched")
            tally.look(what, partial, complete, killed=True)
            write("-f", *(["--resume"] if partial.exists() else []), *options, big("vmcore"), target)
            if not same_file(target, complete) or partial.exists():
                tally.wrong.append(f"{what}: the resumed dump is not the complete one")
    return tally.measured("DST untouched, what is left right and flagged, resumed to the complete dump")


@bar("write-kill-kdump", f"kill -9 at {TIMES} random moments of -c: DST untouched, the rest right, flagged, resumable")
def kill_kdump() -> Measured:
    return kill_often(["-c", "-d", "1", "--length", "300M"], seed=1)


@bar("write-kill-elf", f"kill -9 at {TIMES} random moments of -E: DST untouched, the rest right, flagged, resumable")
def kill_elf() -> Measured:
    return kill_often(["-E", "-d", "0", "--length", "300M"], seed=2)


@bar("write-kill-disk", f"kill -9 at {TIMES} random moments of -p, 1.2 GB to a disk: as before")
def kill_on_disk() -> Measured:
    return kill_often(["-p", "-d", "0"], 3, scratch_on_disk())


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    point = folder / "disk"
    point.mkdir(exist_ok=True)
    if run("mount", "-t", "tmpfs", "-o", f"size={size}", "dumpfs-bar", point).returncode:
        raise Missing("a tmpfs cannot be mounted")
    try:
        yield point
    finally:
        run("umount", "-l", point)


def fill_often(options: list[str]) -> Measured:
    """No room at sizes from a page to just too small: with a previous DST, and without one."""
    tally = Tally()
    with scratch() as folder:
        complete = folder / "complete"
        write(*options, tiny(), complete)
        full = complete.stat().st_blocks * 512  # holes need no room
        for number in range(TIMES):
            size = -(-(full - 3 * PAGE) * max(number, 0.01) // (TIMES - 1)) // PAGE * PAGE + PAGE
            kept = number % 2 == 0
            with small_disk(folder, int(size) + (kept and 4 * PAGE)) as disk:
                target, partial = disk / "dump", disk / "dump.partial"
                if kept:
                    target.write_bytes(PREVIOUS[: 4 * PAGE])
                write("-f", *options, tiny(), target, want=8)
                what = f"at {size / full:.0%}"
                if kept and target.read_bytes() != PREVIOUS[: 4 * PAGE]:
                    tally.wrong.append(f"{what}: DST was touched")
                if not kept and partial.exists():
                    tally.wrong.append(f"{what}: did not take DST's name")
                left = partial if kept else target
                tally.look(what, left, complete)
                if run("mount", "-o", f"remount,size={complete.stat().st_size + (1 << 20)}", disk).returncode:
                    raise Missing("a tmpfs cannot be made larger")
                write("-f", *(["--resume"] if left.exists() else []), *options, tiny(), target)
                if not same_file(target, complete) or partial.exists():
                    tally.wrong.append(f"{what}: the resumed dump is not the complete one")
    return tally.measured("exit code 8, DST untouched, what is left right and flagged, resumed to the complete dump")


@bar("write-enospc-kdump", f"ENOSPC at {TIMES} sizes of -c: DST untouched, the rest right, flagged, resumable")
def enospc_kdump() -> Measured:
    return fill_often(["-c", "-d", "1"])


@bar("write-enospc-elf", f"ENOSPC at {TIMES} sizes of -E: DST untouched, the rest right, flagged, resumable")
def enospc_elf() -> Measured:
    return fill_often(["-E", "-d", "31"])


@contextlib.contextmanager
def ext4_of(folder: Path, size: int) -> Iterator[Path]:
    """A file system on a disk of so many bytes, which is a file."""
    image, point = folder / "image", folder / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    for command in (["mkfs.ext4", "-q", "-F", "-m", "0", image], ["mount", "-o", "loop", image, point]):
        if (result := run(*command)).returncode:
            raise Missing(f"{command[0]}: {result.stderr.decode().strip()}")
    try:
        yield point
    finally:
        run("umount", "-l", point)


@bar("write-enospc-disk", f"ENOSPC at {TIMES} sizes of -p, 1.2 GB to a disk: the rest right, flagged, resumable")
def enospc_on_disk() -> Measured:
    """What is written past the page cache: the disk is filled by a file, but for so much."""
    options = ["-p", "-d", "0"]
    tally = Tally()
    with scratch_on_disk() as folder:
        complete = folder / "complete"
        write(*options, big("vmcore"), complete)
        full = complete.stat().st_size
        with ext4_of(folder, full + full // 8 + (64 << 20)) as disk:
            target, filler = disk / "dump", disk / "filler"
            for number in range(TIMES):
                share = (number + 0.5) / TIMES
                state = os.statvfs(disk)
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - int(full * share))
                write(*options, big("vmcore"), target, want=8)
                tally.look(f"at {share:.0%}", target, complete)
                filler.unlink()
                write(*(["--resume"] if target.exists() else []), *options, big("vmcore"), target)
                if not same_file(target, complete):
                    tally.wrong.append(f"at {share:.0%}: the resumed dump is not the complete one")
                target.unlink()
    return tally.measured("exit code 8, what is left right and flagged, resumed to the complete dump")


def wait_for(path: Path, size: int) -> None:
    """Until a file has grown to a size."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size >= size:
                return
        time.sleep(0.01)
    raise RuntimeError(f"{path} does not grow")


@bar("write-ended", "-L, SIGINT, SIGTERM, a cut source: exit code 8, DST is what was written, flagged; resumed: whole")
def ended() -> Measured:
    wrong: list[str] = []
    texts: list[str] = []
    with scratch() as folder:
        source = big("vmcore")
        options = ["-c", "-d", "0", "--length", "400M"]
        target, complete = folder / "dump", folder / "complete"
        write(*options, source, complete)
        command = words(DUMPFS, "write", "--message-level", "4", *options, source, target)
        for what in ("-L", "SIGINT", "SIGTERM"):
            if what == "-L":
                result = run(*command, "-L", str(complete.stat().st_size // 2))
                code, said = result.returncode, result.stderr
            else:
                process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
                wait_for(target.with_name("dump.partial"), complete.stat().st_size // 3)
                os.killpg(process.pid, getattr(signal, what))  # as a terminal does it: all of them
                said, code = process.communicate()[1], process.returncode
            if code != 8 or b"pages are missing" not in said or b"--resume" not in said:
                wrong.append(f"{what}: {code}: {said.decode()[-200:]}")
                continue
            texts.append(f"{what} at {target.stat().st_size / complete.stat().st_size:.0%}")
            if found := problem(target, complete):
                wrong.append(f"{what}: {found}")
            write("--resume", *options, source, target)
            if not same_file(target, complete):
                wrong.append(f"{what}: the resumed dump is not the complete one")
            target.unlink()
        wrong += _from_cut_sources(folder)
    return Measured("; ".join(wrong) or f"{', '.join(texts)}; cut ELF, kdump and flattened sources flagged", not wrong)


def _from_cut_sources(folder: Path) -> list[str]:
    """A source that ends early gives a flagged dump in which the missing pages are lost, not zero."""
    wrong = []
    kdump = made("kaslr-zlib-d0.kdump", lambda out: [tool("makedumpfile"), "-c", "-d", "0", tiny(), out])
    complete = folder / "all"
    write("-f", "-c", "-d", 0, tiny(), complete)
    whole = Kdump(complete)
    for what, source in (("ELF", tiny()), ("kdump", kdump)):
        cut = folder / "cut"
        cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        for option in ("-c", "-E"):
            out = folder / "from-cut"
            out.unlink(missing_ok=True)
            write(option, "-d", 0, cut, out, want=8)
            wrong += [f"from a cut {what}, {option}: {text}" for text in _lost_problem(out, whole)]
    return wrong


def _lost_problem(out: Path, whole: Kdump) -> list[str]:
    if out.read_bytes()[:4] == b"\x7fELF":
        core = Elf(out)
        found: dict[int, bytes | None] = dict(core.pages())
        flagged = core.incomplete
    else:
        dump = Kdump(out)
        found, flagged = dict(dump.pages()), bool(dump.header["status"] & INCOMPLETE)
    right = dict(whole.pages())
    there = {pfn: page for pfn, page in found.items() if page is not None and pfn in right}
    bad = sum(right[pfn] != page for pfn, page in there.items())
    problems = [] if flagged else ["not flagged"]
    problems += [f"{bad} pages differ"] if bad else []
    return problems + (["nothing is there"] if len(there) < len(right) // 4 else [])


_SMALL_DISKS = (1 << 20, 2 << 20, 3 << 20, 5 << 20)


def saved(command: list[str], target: Path, size: int, folder: Path) -> int:
    """Pages that can be read of what a command leaves on a disk of `size` bytes."""
    with small_disk(folder, size) as disk:
        run(*command, disk / target)
        left = next(iter(disk.iterdir()), None)
        if left is None:
            return 0
        pages = json.loads(run(DUMPFS, "check", "--json", left).stdout).get("pages", {})
        return int(pages.get("readable", 0))


@bar(
    "write-small-disk",
    "on disks of 1 to 5 MB at level 31 as many pages survive as with makedumpfile, in every codec (its zlib and lzo are"
    " others: within 1 %)",
)
def small_disks() -> Measured:
    told, ok = [], True
    with scratch() as folder:
        for codec, option in CODECS.items():
            row = []
            for size in _SMALL_DISKS:
                rest = words("--message-level", "0", option, "-d", "31", tiny())
                ours = saved([str(DUMPFS), "write", *rest], Path("dump"), size, folder)
                theirs = saved([tool("makedumpfile"), *rest], Path("dump"), size, folder)
                ok &= ours >= 0.99 * theirs > 0
                row.append(f"{ours}/{theirs}")
            told.append(f"{codec} {' '.join(row)}")
    return Measured("pages saved, ours/makedumpfile's: " + ", ".join(told), ok)
