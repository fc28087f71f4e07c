"""The files of a kdump-compressed dump: do they belong together, and how much of each was written.

Incomplete dumps (makedumpfile IMPLEMENTATION; real ones): the writer sets status bit 0x8, bitmaps and the whole
descriptor table exist, descriptors that were not written are all zero, and those written are a prefix. A copy that was
cut short has no flag; its last pages' data lies beyond the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dumpfs.bitmap import Bitmap
from dumpfs.errors import CorruptDumpError, SourceError
from dumpfs.formats.kdump.header import DESCRIPTOR, KdumpHeader
from dumpfs.formats.kdump.pages import DESCRIPTOR_BYTES, PageTable
from dumpfs.ranges import RangeSet
from dumpfs.sources.base import ByteSource
from dumpfs.units import PageState, Pfn

_TAIL_DESCRIPTORS = 512
"""Descriptors looked at to tell whether a file was cut short: its last pages lie at its end."""
_MAX_ZERO_TAIL = 1 << 20
"""Zero pages that are passed over to find them: 4 GiB of memory, 24 MB of descriptors, 40 ms."""
_MAX_NAMED_GAPS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a dump: all of it, or one part of a split set."""

    header: KdumpHeader
    table: PageTable
    start: Pfn
    stop: Pfn
    base: int
    """Rank of `start`: index in the whole dump of the part's first descriptor."""


def check_set(headers: Sequence[tuple[KdumpHeader, ByteSource]]) -> None:
    """That several files, sorted by start_pfn, are different parts of one split set.

    Raises:
        CorruptDumpError: they are not.
    """
    if len(headers) == 1:
        return
    first, first_source = headers[0]
    previous_stop = 0
    for header, source in headers:
        if not header.is_split:
            raise CorruptDumpError(
                source.name,
                "is a dump of its own, not a part of a split set",
                hint="name one dump, or all the files that one `makedumpfile --split` wrote",
            )
        same = ("block_size", "max_mapnr", "bitmap_blocks", "sub_hdr_size", "tv_sec", "tv_usec")
        if header.uts != first.uts or any(header.main[name] != first.main[name] for name in same):
            raise CorruptDumpError(
                source.name,
                f"belongs to another dump than {first_source.name}",
                hint="name only the parts of one split set",
            )
        if header.start_pfn < min(previous_stop, header.end_pfn):
            raise CorruptDumpError(
                source.name,
                f"covers pfn {header.start_pfn:#x}, which another part has already",
                hint="name each part once",
            )
        previous_stop = max(previous_stop, header.end_pfn)


def open_bitmap(source: ByteSource, header: KdumpHeader, which: int) -> Bitmap:
    """The 1st (0) or 2nd (1) bitmap; bits that lie beyond the end of a cut file are clear."""
    base = header.bitmap_offset + which * header.bitmap_bytes
    available = max(min(header.bitmap_bytes, source.size - base), 0)

    def read(offset: int, size: int) -> bytes:
        size = min(size, available - offset)
        return source.read_at(base + offset, size) if size > 0 else b""

    return Bitmap(read, min(header.max_mapnr, 8 * available))


def open_part(header: KdumpHeader, source: ByteSource, bits: Bitmap) -> Part:
    """A file as a part of the dump whose 2nd bitmap is `bits`."""
    start, stop = header.start_pfn, header.end_pfn
    base = bits.rank(start) if header.is_split else 0
    count = bits.rank(stop) - base
    table = PageTable(source, header.abi, header.descriptor_offset, count, header.block_size)
    return Part(header, table, start, stop, base)


def written_windows(parts: Sequence[Part], bits: Bitmap) -> tuple[RangeSet, list[str]]:
    """The pfns whose pages are in the files, and why others are not, a clause each."""
    windows = []
    reasons = []
    max_mapnr = parts[0].header.max_mapnr
    for part in parts:
        stop, reason = _written_until(part, bits)
        windows.append((part.start, stop))
        if reason:
            reasons.append(f"{part.table.source.name}: {reason}" if len(parts) > 1 else reason)
    gaps = [
        (first, stop)
        for first, stop in _gaps(RangeSet((part.start, part.stop) for part in parts), max_mapnr)
        if bits.rank(stop) > bits.rank(first)
    ]
    if gaps:
        text = ", ".join(f"{a:#x}-{b - 1:#x}" for a, b in gaps[:_MAX_NAMED_GAPS])
        more = " ..." if len(gaps) > _MAX_NAMED_GAPS else ""
        reasons.append(f"parts of the split set are missing, with the pages of pfns {text}{more}")
    return RangeSet(windows), reasons


def _gaps(covered: RangeSet, stop: Pfn) -> Iterator[tuple[Pfn, Pfn]]:
    position = 0
    for first, end in covered:
        if first > position:
            yield position, first
        position = end
    if position < stop:
        yield position, stop


def _written_until(part: Part, bits: Bitmap) -> tuple[Pfn, str]:
    """One past the last pfn of a part whose page is there, and why that is not the part's end."""
    header, table = part.header, part.table
    size, flagged, count = table.source.size, header.flagged_incomplete, part.table.count
    if size < header.descriptor_offset:
        place = "in its bitmaps" if size > header.bitmap_offset else "before its bitmaps"
        return part.start, f"the file is cut short {place}, at {size} of at least {header.descriptor_offset} bytes"
    data_offset = _data_offset(header, bits)
    if not flagged and not _looks_cut(part, data_offset):
        return part.stop, ""
    written = _first_missing(table, data_offset)
    why = "flagged incomplete by its writer" if flagged else "the file is cut short"
    if written >= count:
        return part.stop, f"{why}, though every page is there" if flagged else ""
    return min(bits.select(part.base + written), part.stop), f"{why}: {count - written} of {count} pages are missing"


def _data_offset(header: KdumpHeader, bits: Bitmap) -> int:
    """Where page data begins: behind room for every descriptor, also in a part that has only some of them."""
    return header.descriptor_offset + DESCRIPTOR_BYTES * bits.count()


def _looks_cut(part: Part, data_offset: int) -> bool:
    """Whether a part's last pages lie beyond the end of the file.

    Memory may end with a long row of zero pages, which share one page at the start of the data and say nothing: the
    last pages before them are looked at.
    """
    header, table = part.header, part.table
    shared = DESCRIPTOR.build(header.abi, {"offset": data_offset, "size": header.block_size})
    stop = table.count
    try:
        for _ in range(_MAX_ZERO_TAIL // _TAIL_DESCRIPTORS):
            first = max(stop - _TAIL_DESCRIPTORS, 0)
            tail = table.source.read_at(
                header.descriptor_offset + first * DESCRIPTOR_BYTES, (stop - first) * len(shared)
            )
            if not first or tail != shared * (stop - first):
                break
            stop = first
        return any(table.check(*table.descriptor(i))[0] is PageState.LOST for i in range(first, stop))
    except SourceError:
        return False  # a bad sector there is each page's own trouble


def _first_missing(table: PageTable, data_offset: int) -> int:
    """Index of the first page that is not in the file; they are written in order, so a bisection finds it.

    Zero pages share the first page of the data, so one of them says nothing about its neighbours unless even that is
    missing: the next page that has data of its own is asked instead. What the bisection finds is therefore a missing
    page or a zero page not far before it.
    """

    def lost(index: int) -> bool:
        return table.check(*table.descriptor(index))[0] is PageState.LOST

    def missing(index: int) -> bool:
        for i in range(index, min(index + _TAIL_DESCRIPTORS, table.count)):
            if lost(i):
                return True
            if table.descriptor(i)[0] != data_offset:
                return False
        return False

    low, high = 0, table.count
    try:
        while low < high:
            middle = (low + high) // 2
            if missing(middle):
                high = middle
            else:
                low = middle + 1
        while low < table.count and not lost(low):
            low += 1
    except SourceError:
        return table.count  # the table cannot be read everywhere: each page tells for itself
    return low
