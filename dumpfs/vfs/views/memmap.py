"""/memmap: physical memory as a table, in the manner of /proc/iomem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dumpfs.elf.segments import RamRanges, ram_ranges
from dumpfs.ranges import PfnSet
from dumpfs.units import render_size
from dumpfs.vfs.census import take_census
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import INLINE_PFNS, BuiltFile

MAX_LINES = 10_000
"""Ranges of a memory map: more than a person reads, and half a megabyte of text at most."""


@dataclass(slots=True)
class MemmapFile(BuiltFile):
    """Ranges of RAM and of stored pages."""

    ABOUT: ClassVar[str] = (
        "physical memory as a table like /proc/iomem: ranges of RAM, and in them what is stored, excluded or lost."
        f" At most {MAX_LINES} ranges; it says where it was cut short, and /bitmaps has everything."
    )

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        return self.content is not None or self.dump.image.meta.max_pfn <= INLINE_PFNS

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return render_memmap(self.dump).encode()


def render_memmap(dump: Dump, max_lines: int = MAX_LINES) -> str:
    """The table; `max_lines` bounds its ranges."""
    census, page_size = take_census(dump), dump.phys.page_size
    ram = ram_ranges(dump.image, max_lines)
    width = max(8, len(f"{max((stop for _, stop in ram.ranges), default=1) - 1:x}"))
    facts = [f"RAM {render_size(census.ram * page_size)}", f"stored {render_size(census.stored * page_size)}"]
    facts += [f"excluded {render_size(census.excluded * page_size)}"] if census.excluded else []
    facts += [f"lost {render_size(census.lost * page_size)}"] if census.lost else []
    lines = ["# " + ", ".join(facts) + f"; pages of {page_size} bytes"]
    if ram.filler:
        lines.append(
            f"# RAM is in more than {max_lines} pieces: near ones are shown as one, with"
            f" {render_size(ram.filler)} between them that are not RAM"
        )
    room = max_lines - len(ram.ranges)
    cut_at = None
    for start, stop in ram.ranges:
        lines.append(_line("", start, stop, "System RAM", width))
        for first, end, what in _parts(dump, ram, start, stop):
            if room <= 0:
                cut_at = first if cut_at is None else cut_at
                break
            lines.append(_line("  ", first, end, what, width))
            room -= 1
    if cut_at is not None:
        lines.append(
            f"# cut short: from {cut_at:#x} on only RAM is shown, for {max_lines} lines were full;"
            " bitmaps/stored has every page"
        )
    return "\n".join(lines) + "\n"


def _line(indent: str, start: int, stop: int, what: str, width: int) -> str:
    return f"{indent}{start:0{width}x}-{stop - 1:0{width}x} : {what} ({render_size(stop - start)})"


def _parts(dump: Dump, ram: RamRanges, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    """What a range of RAM consists of, as (physical address, one past the last, state)."""
    for first, end, is_stored in _split(dump, dump.phys.stored, start, stop):
        if is_stored:
            yield first, end, "stored"
        else:
            yield from _not_stored(dump, ram, first, end)


def _not_stored(dump: Dump, ram: RamRanges, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    """The same for a range without stored pages."""
    pieces = _split(dump, dump.phys.ram, start, stop) if ram.filler else iter([(start, stop, True)])
    for first, end, is_ram in pieces:
        if not is_ram:
            yield first, end, "not RAM"
        elif dump.image.meta.complete:
            yield first, end, "excluded"
        else:
            for low, high, is_lost in _split(dump, dump.lost, first, end):
                yield low, high, "lost" if is_lost else "excluded"


def _split(dump: Dump, members: PfnSet, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """A range of addresses, cut where pages begin and end to be members: (start, stop, whether they are)."""
    shift = dump.phys.page_shift
    position = start
    for a, b in members.runs(start >> shift, -(-stop >> shift)):
        first, end = max(a << shift, start), min(b << shift, stop)
        if position < first:
            yield position, first, False
        if first < end:
            yield first, end, True
            position = end
    if position < stop:
        yield position, stop, False
