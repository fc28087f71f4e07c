"""Which pages a dump will store: the source's pages less what the dump level and the chosen range leave out.

A page of the source that is lost or corrupt is chosen like any other. It gets no content, but it is never left out for
that reason: left out would mean that it reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dumpfs.errors import UnsupportedFeatureError
from dumpfs.formats.base import DumpImage
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.linux.pageclass import BLOCK_PFNS, PageClass, PageClassifier, keep_mask
from dumpfs.ranges import RangeSet, last_stop
from dumpfs.units import PageState, Pfn
from dumpfs.writer.bitmaps import Bits, add_bits, add_members, bits_of, runs_of, window
from dumpfs.writer.plan import LEVEL_CACHE, LEVEL_CACHE_PRIVATE, LEVEL_FREE, LEVEL_USER

CLASS_LEVELS = LEVEL_CACHE | LEVEL_CACHE_PRIVATE | LEVEL_USER | LEVEL_FREE
"""Bits of the level that need the kernel's struct pages."""

CLASS_NAMES = {
    PageClass.CACHE: "cache",
    PageClass.CACHE_PRIVATE: "cache_private",
    PageClass.USER: "user",
    PageClass.FREE: "free",
    PageClass.HWPOISON: "hwpoison",
    PageClass.OFFLINE: "offline",
}


@dataclass(slots=True)
class Selection:
    """The chosen pages."""

    ram: Bits
    dump: Bits
    stats: dict[str, int] = field(default_factory=dict)
    """Pages of the source by class, and 'kept'."""
    notices: list[str] = field(default_factory=list)


_CLAIMABLE_RAM, _CLAIMABLE_LOST = 1 << 30, 1 << 25
"""Pages that a file may claim whatever it has: 4 TiB of RAM take lists of 128 MiB each, and 128 GiB of pages that are
lost a descriptor each, 800 MB."""
_LEAST_STORED = 4096
"""Of more than that, at least one page in so many is there: struct pages alone are one in 64."""


def end_of_memory(image: DumpImage) -> Pfn:
    """One past the last pfn of the source's RAM or of what it stores, which is max_mapnr in its dump.

    Raises:
        UnsupportedFeatureError: some bytes of the file claim more memory than it is worth to write down.
    """
    end = max(last_stop(image.ram), last_stop(image.stored))
    ram, lost = (end if image.meta.format != "kdump" else 0), image.lost.count()  # a kdump's bitmaps are in its file
    if ram <= _CLAIMABLE_RAM and lost <= _CLAIMABLE_LOST:
        return end
    stored = image.stored.count()
    if stored < max(ram if ram > _CLAIMABLE_RAM else 0, lost if lost > _CLAIMABLE_LOST else 0) // _LEAST_STORED:
        raise UnsupportedFeatureError(
            "write",
            f"of {max(ram, lost)} pages that the file claims only {stored} are there",
            hint="dumpfs mount and dumpfs cat show what is there",
        )
    return end


_LOOKED_AT = 4096


def lost_pages(image: DumpImage, tick: Callable[[], None] = lambda: None) -> RangeSet:
    """The lost pages of an image, less those that can be read after all.

    Behind the first page that a cut kdump lacks all is called lost, but zero pages share a copy that comes before.
    Other formats know what they have lost.
    """
    if image.meta.format != "kdump":
        return RangeSet(image.lost.runs())

    def unreadable() -> Iterator[tuple[Pfn, Pfn]]:
        for first, stop in image.lost.runs():
            for low in range(first, stop, _LOOKED_AT):
                tick()
                high = min(low + _LOOKED_AT, stop)
                if isinstance(image, KdumpImage) and not image.leads_into_file(low, high):
                    yield low, high
                    continue
                states = np.frombuffer(image.read_run(low, high - low)[1], dtype=np.uint8)
                yield from runs_of((states != PageState.STORED) & (states != PageState.PARTIAL), low)

    return RangeSet(unreadable())


def select_pages(
    image: DumpImage,
    max_mapnr: Pfn,
    level: int,
    classifier: PageClassifier | None,
    *,
    begin: int = 0,
    length: int | None = None,
    keep_partial: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Selection:
    """The pages of `image` that a dump of `level` stores.

    Args:
        image: the source, in kernel pages.
        max_mapnr: one past the last pfn.
        level: dump level; bit 1 (zero pages) is not decided here.
        classifier: says what pages are; None where neither level nor kernel needs it.
        begin: first physical address to be stored, bytes.
        length: bytes of memory from `begin` on, or None for all.
        keep_partial: keep pages in which RAM ends. makedumpfile leaves them out, and so do we unless told otherwise.
        tick: called for every block of pages, to show progress and to stop by an exception.
    """
    ram = bits_of(image.ram, max_mapnr)
    dump = bits_of(image.stored, max_mapnr)
    add_members(dump, image.lost)
    add_bits(ram, dump)  # a damaged bitmap may deny RAM whose pages are there; nothing stored is left behind for that
    chosen = Selection(ram, dump)
    page_size = image.meta.block_size
    if not keep_partial:
        for pfn, (_, end) in image.partial.items():
            if end < page_size and pfn < max_mapnr:
                _clear(dump, pfn, pfn + 1)
    if begin or length is not None:
        low = max(begin - image.meta.first_paddr, 0) // page_size
        high = max_mapnr if length is None else -(-(begin + length - image.meta.first_paddr) // page_size)
        _clear(dump, 0, min(low, max_mapnr))
        _clear(dump, min(max(high, 0), max_mapnr), max_mapnr)
    if classifier is not None:
        _filter(chosen, max_mapnr, level, classifier, tick)
    return chosen


def _clear(bits: Bits, first: Pfn, stop: Pfn) -> None:
    """Take `[first, stop)` out of a bitmap."""
    if first >= stop:
        return
    a, b = first // 8, stop // 8
    if a == b:
        bits[a] &= ~((0xFF << first % 8) & ((1 << stop % 8) - 1)) & 0xFF
        return
    bits[a] &= (1 << first % 8) - 1
    bits[a + 1 : b] = 0
    if stop % 8:
        bits[b] &= 0xFF << stop % 8 & 0xFF


def _filter(
    chosen: Selection, max_mapnr: Pfn, level: int, classifier: PageClassifier, tick: Callable[[], None]
) -> None:
    counts = dict.fromkeys(CLASS_NAMES.values(), 0)
    names = [(int(bit), name) for bit, name in CLASS_NAMES.items()]
    block_bytes = BLOCK_PFNS // 8
    for offset in range(0, len(chosen.dump), block_bytes):
        bits = chosen.dump[offset : offset + block_bytes]
        if not bits.any():
            continue
        tick()
        first = offset * 8
        stop = min(first + BLOCK_PFNS, max_mapnr)
        classes = classifier.classify(first, stop - first)
        present = window(chosen.dump, first, stop)
        found = np.bincount(classes * present)  # of no class is what is not there
        for value in np.flatnonzero(found).tolist():
            for bit, name in names:
                if value & bit:
                    counts[name] += int(found[value])
        keep = present & keep_mask(classes, level)
        packed = np.packbits(keep, bitorder="little")
        bits[: len(packed)] = packed
    chosen.stats.update(counts)
    if classifier.unreadable:
        chosen.notices.append(
            f"the struct pages of {classifier.unreadable} pages are not in the source; those pages are kept"
        )
    if classifier.odd_orders:
        chosen.notices.append(f"{classifier.odd_orders} free pages have an impossible order; they are kept")


def needs_classes(level: int) -> bool:
    """Whether a level cannot do without the kernel's struct pages."""
    return bool(level & CLASS_LEVELS)
