"""/memmap: physical memory as a table, in the manner of /proc/iomem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dumpfs.elf.segments import RamRanges, ram_ranges
from dumpfs.units import PageState, render_size
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
    shift = dump.phys.page_shift
    position = start
    for a, b in dump.phys.stored.runs(start >> shift, -(-stop >> shift)):
        first, end = max(a << shift, start), min(b << shift, stop)
        if position < first:
            yield position, first, _why_not_stored(dump, ram, position, first)
        if first < end:
            yield first, end, "stored"
            position = end
    if position < stop:
        yield position, stop, _why_not_stored(dump, ram, position, stop)


def _why_not_stored(dump: Dump, ram: RamRanges, start: int, stop: int) -> str:
    """State of a range without stored pages; the ends are looked at where the range may be of several."""
    if dump.image.meta.complete and not ram.filler:
        return PageState.EXCLUDED.name.lower()
    phys = dump.phys
    states = {phys.state(start >> phys.page_shift), phys.state(stop - 1 >> phys.page_shift)}
    return "/".join(sorted(state.name.lower() for state in states)).replace("absent", "not RAM")
