"""The files of a kdump-compressed dump: do they belong together, and how much of each was written.

Incomplete dumps (makedumpfile IMPLEMENTATION; real ones): the writer sets status bit 0x8, bitmaps and the whole
descriptor table exist, descriptors that were not written are all zero, and those written are a prefix; but for a dump
made of one that had lost pages itself, in which empty descriptors stand amid others. A copy that was cut short has no
flag; its last pages' data lies beyond the end of the file.
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

_ROW = 512
"""Descriptors looked at together; also how many tell, at the end of the table, whether a file was cut short."""
_LOOKED_ROWS = 1 << 14
"""Rows of descriptors that are looked at behind the first missing page: of 32 GiB of memory all."""
_LOOKED_LOST_ROWS = 64
"""Rows of descriptors whose pages all lie beyond the end of the file, until the rest is taken for such, too."""
_MAX_NAMED_GAPS = 4
_SMALL_BITMAP = 1 << 20
"""Bytes of a bitmap that are looked through whether there is anything in them or not; those of 32 GiB of memory."""


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
    """The 1st (0) or 2nd (1) bitmap; bits that lie beyond the end of a cut file are clear.

    Reading it raises SourceError when the file was cut after it was opened: then clear bits would make excluded pages,
    which read as zeros, of pages that were there.
    """
    base = header.bitmap_offset + which * header.bitmap_bytes
    available = max(min(header.bitmap_bytes, source.size - base), 0)
    if available > _SMALL_BITMAP:
        available = _end_of_data(source, base, available)

    def read(offset: int, size: int) -> bytes:
        size = min(size, available - offset)
        if size <= 0:
            return b""
        data = source.read_at(base + offset, size)
        if len(data) < size:
            raise SourceError(source.name, f"its bitmap at {base + offset:#x} is gone: the file has become shorter")
        return data

    return Bitmap(read, min(header.max_mapnr, 8 * available), lambda offset: source.next_data(base + offset) - base)


def _end_of_data(source: ByteSource, base: int, size: int) -> int:
    """How many of the `size` bytes at `base` come before a hole of the file that reaches to their end.

    A few kilobytes may claim bitmaps of gigabytes, of which nothing was ever written: no work is done for those.
    """
    if source.next_data(base) >= base + size:
        return 0
    low, high = 0, size  # data begins at `low` or behind it, and none at `high`
    while high - low > _SMALL_BITMAP:
        middle = (low + high) // 2
        found = source.next_data(base + middle) - base
        if found < size:
            low = max(found, middle)
        else:
            high = middle
    return high


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
    try:
        search = _Written(part, _data_offset(header, bits))
        if not flagged and not search.looks_cut():
            return part.stop, ""
        written = search.first_missing()
        if flagged and search.is_any_behind(written):
            # Written from a source that had lost pages amid others: each page's descriptor tells of itself.
            return part.stop, "flagged incomplete by its writer: pages are missing amid others"
    except SourceError:
        written = count  # a bad sector in the table is each page's own trouble
    if not written and not flagged and size > _data_offset(header, bits):
        # What is missing does not lie behind the end: of a header that counts its bitmaps wrongly, as some writers do.
        reason = "no page descriptor makes sense, though the file goes on behind them"
        return part.start, f"{reason}: the header is wrong about where they are, or they are damaged"
    why = "flagged incomplete by its writer" if flagged else "the file is cut short"
    if written >= count:
        return part.stop, f"{why}, though every page is there" if flagged else ""
    return min(bits.select(part.base + written), part.stop), f"{why}: {count - written} of {count} pages are missing"


def _data_offset(header: KdumpHeader, bits: Bitmap) -> int:
    """Where page data begins: behind room for every descriptor, also in a part that has only some of them."""
    return header.descriptor_offset + DESCRIPTOR_BYTES * bits.count()


class _Written:
    """Looks for the first page of a part that is not in its file; raises SourceError.

    Pages are written in order, so a bisection finds it, but zero pages share the first page of the data and say
    nothing of their neighbours: only pages with data of their own are asked. Rows of zero pages are passed over by
    comparing bytes, so that those of a machine full of them take milliseconds.
    """

    def __init__(self, part: Part, data_offset: int) -> None:
        self._part = part
        self._count = part.table.count
        shared = DESCRIPTOR.build(part.header.abi, {"offset": data_offset, "size": part.header.block_size})
        self._shared = shared
        self._zero_row = shared * _ROW

    def _is_zero_row(self, first: int, stop: int) -> bool:
        size = (stop - first) * DESCRIPTOR_BYTES
        return self._part.table.raw_descriptors(first, stop - first) == self._zero_row[:size]

    def _lost(self, index: int) -> bool:
        table = self._part.table
        return table.check(*table.descriptor(index))[0] is PageState.LOST

    def own_stop(self) -> int:
        """One past the last row of pages that is not all zero pages."""
        stop = self._count
        while stop and self._is_zero_row(max(stop - _ROW, 0), stop):
            stop = max(stop - _ROW, 0)
        return stop

    def looks_cut(self) -> bool:
        """Whether the last pages that have data of their own lie beyond the end of the file."""
        stop = self.own_stop()
        return any(self._lost(i) for i in range(max(stop - _ROW, 0), stop)) or (self._count > 0 and self._lost(0))

    def first_missing(self) -> int:
        """Index of the first page that is missing; the number of pages when none is."""
        if self._count and self._lost(0):
            return 0
        found = self._count
        low, high = 0, self.own_stop()
        while low < high:
            middle = (low + high) // 2
            own = self._next_own(middle, high)
            if own == high:
                high = middle
            elif self._lost(own):
                found, high = own, middle
            else:
                low = own + 1
        return found

    def is_any_behind(self, first: int) -> bool:
        """Whether a page behind `first`, which is missing, is there: then those that are there are no prefix.

        Descriptors that were not written are zeros, and shared zero pages say nothing here either. Of a very large
        table every nth row is looked at.
        """
        rows = range(first, self._count, _ROW * max((self._count - first) // _ROW // _LOOKED_ROWS, 1))
        base, table = self._part.header.descriptor_offset, self._part.table
        looked = 0
        for row in rows:
            stop = min(row + _ROW, self._count)
            place = base + row * DESCRIPTOR_BYTES
            size = (stop - row) * DESCRIPTOR_BYTES
            if table.source.next_data(place) >= place + size:
                continue
            raw = table.raw_descriptors(row, stop - row)
            if not raw.strip(b"\0"):
                continue
            each = (raw[at : at + DESCRIPTOR_BYTES] for at in range(0, size, DESCRIPTOR_BYTES))
            own = (index for index, descriptor in enumerate(each, row) if descriptor != self._shared)
            if not all(map(self._lost, own)):
                return True
            looked += 1
            if looked == _LOOKED_LOST_ROWS:
                return False
        return False

    def _next_own(self, first: int, stop: int) -> int:
        """Index of the first page in `[first, stop)` with data of its own, or `stop`."""
        while first < stop:
            end = min(first + _ROW, stop)
            if not self._is_zero_row(first, end):
                return next(i for i in range(first, end) if not self._is_zero_row(i, i + 1))
            first = end
        return stop
