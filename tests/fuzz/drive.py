"""What is done with a damaged file: each way in that a user has, by turns."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from dumpfs.cli.main import main
from dumpfs.errors import DumpfsError, ExcludedPageError
from dumpfs.formats import open_image
from dumpfs.formats.base import DumpImage
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.formats.plain import open_pages
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.native import AVAILABLE
from dumpfs.units import PageState
from tests.fuzz.walk import Walk
from tests.property.hostile import exercise

SANITIZED = "DUMPFS_FUZZ_SANITIZED" in os.environ
"""Whether `scripts/sanitize` runs us: all is slower and larger, and what the code in C does is what is looked at."""

_EXIT_CODES = (0, 1, 3, 4, 5, 6, 8)
"""2 says that a command was used wrongly, which is not the dump's fault."""
_MAX_LINES = 40
"""On standard error, of one command; notices and hints."""
_RUNS, _RUN_PAGES = 200, 64
"""Of a written dump, to compare with its source."""
_VERBS = (
    ("info",), ("info", "--json"), ("check", "--jobs", "1"), ("check", "--json", "--jobs", "1"), ("dmesg",),
    ("write", "--dry-run", "-d", "31"), ("write", "--dry-run", "-E"), ("cat", "status"),
    ("cat", "kallsyms"), ("cat", "memmap"), ("cat", "vmcoreinfo"), ("cat", "modules"), ("cat", "info.json"),
    ("write", "--dump-dmesg"),
)  # fmt: skip
_FORMS = (
    ("-c",), ("-l",), ("-z",), ("-p",), ("-E",), (), ("-l", "-d", "1"), ("-F", "-c"), ("-d", "31", "-l"),
    ("-E", "-d", "31"),
)  # fmt: skip
_OPTIONS: tuple[dict[str, object], ...] = (
    {}, {}, {}, {}, {"holes": HolePolicy.ERROR}, {"kaslr": 0}, {"phys_base": 0x1000000}, {"pages": "list"},
    {"caller": True}, {"cache": 0},
)  # fmt: skip


@dataclass
class Outcome:
    """How a case ended."""

    drive: str
    refused: bool = False
    """Whether the file was refused, as most should be."""
    problems: list[str] = field(default_factory=list)
    stage: str = ""


def drive(path: Path, name: str, seed: int, outcome: Outcome, *, seldom: bool, report: Callable[[str], None]) -> None:
    """Do with the file what the seed says.

    Args:
        path: the damaged file.
        name: of the base.
        seed: of the case.
        outcome: is told what was done and how it ended.
        seldom: whether the base is a real dump, for which much is looked into.
        report: told what is being done, in case that this process dies of it.

    Raises:
        Exception: anything but a `DumpfsError` is a finding.
    """
    rng = random.Random(f"drive {name}:{seed}")
    table = _SANITIZED if SANITIZED else _REAL if seldom else _SMALL
    how = rng.choices([row[0] for row in table], [row[1] for row in table])[0]
    outcome.drive = how.__name__.strip("_")
    report(outcome.drive)
    try:
        how(path, rng, outcome, report)
    except DumpfsError as exc:
        outcome.refused = True
        text = str(exc)
        if not text.isprintable():
            outcome.problems.append(f"an error of more than a line: {text!r}")


def _walk(path: Path, rng: random.Random, outcome: Outcome, report: Callable[[str], None]) -> None:
    walk = Walk([str(path)], rng.choice(_OPTIONS))
    try:
        walk.everything()
    finally:
        outcome.problems += walk.problems
        outcome.stage = walk.stage


def _exercise(path: Path, rng: random.Random, outcome: Outcome, report: Callable[[str], None]) -> None:
    image = open_image([path])
    try:
        exercise(image)
    finally:
        image.close()


def _command(path: Path, rng: random.Random, outcome: Outcome, report: Callable[[str], None]) -> None:
    verb, *options = rng.choice(_VERBS)
    words = [verb, str(path), *options] if verb == "cat" else [verb, *options, str(path)]
    if "--dump-dmesg" in options:
        words.append(os.devnull)
    outcome.drive = " ".join((verb, *options))
    report(outcome.drive)
    outcome.refused = _run(words, outcome) not in (0, None)


def _run(words: list[str], outcome: Outcome) -> int:
    """Run a command line; its standard output goes nowhere, and what it says on standard error is looked at."""
    with tempfile.TemporaryFile(dir="/dev/shm") as said:
        keep = [os.dup(1), os.dup(2)]
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 1)
            os.dup2(said.fileno(), 2)
            code = main(words)
        finally:
            os.dup2(keep[0], 1)
            os.dup2(keep[1], 2)
            for fd in (*keep, null):
                os.close(fd)
        said.seek(0)
        text = said.read(1 << 16).decode("utf-8", "replace")
    if code not in _EXIT_CODES:
        outcome.problems.append(f"exit code {code}")
    lines = text.splitlines()
    if len(lines) > _MAX_LINES or any(not line.isprintable() for line in lines) or "Traceback" in text:
        outcome.problems.append(f"standard error: {text[:500]!r}")
    return code


def _write(path: Path, rng: random.Random, outcome: Outcome, report: Callable[[str], None]) -> None:
    """Write it, and read again all that the source had."""
    form = rng.choice(_FORMS)
    outcome.drive = " ".join(("write", *form))
    report(outcome.drive)
    target = path.with_name(path.name + ".out")
    try:
        if "-F" in form:
            code = _run(["write", *form, str(path), os.devnull], outcome)
        else:
            code = _run(["write", "-f", *form, str(path), str(target)], outcome)
        if code in (0, 4) and "-d" not in form and target.exists():
            _compare(path, target, outcome)
        outcome.refused = code not in (0, 4)
    finally:
        for left in (target, target.with_name(target.name + ".partial")):
            left.unlink(missing_ok=True)


def _compare(path: Path, target: Path, outcome: Outcome) -> None:
    with closing(open_image([path])) as source:
        try:
            written = open_image([target])
        except DumpfsError as exc:
            outcome.problems.append(f"what was written cannot be opened: {exc}")
            return
        with closing(written):
            _compare_pages(source, written, outcome)


def _compare_pages(source: DumpImage, written: DumpImage, outcome: Outcome) -> None:
    memory = PhysMemory(written, 4096, HolePolicy.ERROR)
    for paddr, data in _stored(source):
        try:
            same = memory.read(paddr, len(data)) == data
        except ExcludedPageError as exc:
            if not any(data):
                continue  # an ELF core has no shared page of zeros: it leaves out what a kdump shares
            outcome.problems.append(f"left out in writing: {exc}")
            return
        except DumpfsError as exc:
            outcome.problems.append(f"lost in writing: {exc}")
            return
        if not same:
            outcome.problems.append(f"written wrongly: memory at {paddr:#x}")
            return


def _stored(image: DumpImage) -> list[tuple[int, bytes]]:
    """(physical address, content) of some pages."""
    block, found = image.meta.block_size, []
    for number, (first, stop) in enumerate(image.stored.runs()):
        if number == _RUNS:
            break
        count = min(stop - first, _RUN_PAGES)
        data, states = image.read_run(first, count)
        for i in range(count):
            if states[i] == PageState.STORED:
                found.append((image.meta.first_paddr + (first + i) * block, data[i * block : (i + 1) * block]))
    return found


def _native(path: Path, rng: random.Random, outcome: Outcome, report: Callable[[str], None]) -> None:
    """The loop in C reads a page as Python does, or not at all."""
    image = open_image([path])
    try:
        if not AVAILABLE or not isinstance(image, KdumpImage):
            return
        size = image.meta.block_size
        pages = open_pages(image.plain_pages(), size)
        image._native = False  # from now on it is Python's alone
        for number, (first, stop) in enumerate(image.stored.runs()):
            if pages is None or number == _RUNS:
                break
            for pfn in range(first, min(stop, first + 20)):
                got = pages.read(pfn * size, size)
                data, state, _ = image.read_page(pfn)
                if got is not None and (state is not PageState.STORED or got != data):
                    outcome.problems.append(f"page {pfn:#x} reads otherwise in C, which Python calls {state.name}")
    finally:
        image.close()


_SMALL = ((_walk, 45), (_exercise, 15), (_command, 25), (_write, 3), (_native, 12))
_REAL = ((_walk, 65), (_command, 25), (_write, 5), (_native, 5))
_SANITIZED = ((_native, 60), (_exercise, 20), (_write, 10), (_walk, 10))
