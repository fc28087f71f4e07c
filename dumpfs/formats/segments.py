"""Images described by byte segments: "these bytes of the file are memory from this physical address on".

ELF, LiME and raw images differ only in how their segments are written down. Segments may overlap (the kernel text of a
/proc/vmcore is also part of a RAM range; QEMU with paging lists a page once per mapping), begin and end anywhere
(RAM ranges have 1 KiB granularity), and have less in the file than in memory.

`SegmentMap` turns them into disjoint pieces of memory, each with one fate; `SegmentImage` reads them. Where segments
overlap, bytes that are in the file come before bytes that were to be there, and those before bytes left out; of two
with content the longer segment serves, so that a run is one read.

Immutable once made; any thread may read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dumpfs.errors import SourceError
from dumpfs.formats.base import Blob, DumpMeta, PageInfo
from dumpfs.ranges import RangeSet, merge_runs, overlay
from dumpfs.sources.base import ByteSource
from dumpfs.units import PageState, Pfn

MAX_PADDR = 1 << 56
"""No architecture has more physical address bits; segments beyond are not physical memory."""

_STORED, _EXCLUDED, _ABSENT, _LOST, _PARTIAL = (
    int(s) for s in (PageState.STORED, PageState.EXCLUDED, PageState.ABSENT, PageState.LOST, PageState.PARTIAL)
)
_BEYOND = "the file ends before it"


class Segment(NamedTuple):
    """One range of physical memory."""

    paddr: int
    """Physical address of its first byte."""
    memsz: int
    """Bytes of memory."""
    offset: int
    """Byte offset of its content in the file."""
    filesz: int
    """Bytes of content, at most `memsz`; the rest was left out."""


class SegmentMap:
    """What is known of each byte and each block of physical memory.

    Args:
        segments: in any order; `paddr + memsz` at most `MAX_PADDR`.
        file_size: bytes of the file; content beyond is lost.
        block_size: bytes of a block.
    """

    def __init__(self, segments: Iterable[Segment], file_size: int, block_size: int) -> None:
        self.block_size = block_size
        self.firsts = array("Q")
        """Physical address of each piece, ascending."""
        self.stops = array("Q")
        self.kinds = bytearray()
        """Per piece: STORED, EXCLUDED or LOST."""
        self.offsets = array("Q")
        """Per piece: offset in the file of its first byte; 0 unless STORED."""
        self._lay_out(segments, file_size)
        self.edge_states: dict[Pfn, int] = {}
        """State of the blocks in which a piece begins or ends; all others lie wholly inside or outside a piece."""
        self.partial: dict[Pfn, tuple[int, int]] = {}
        self._judge_edges()
        self.ram = RangeSet(self._block_hull(i) for i in range(len(self.firsts)))
        self.stored = RangeSet(self._blocks(_STORED, _PARTIAL))
        self.lost = RangeSet(self._blocks(_LOST))

    def _lay_out(self, segments: Iterable[Segment], file_size: int) -> None:
        excluded: list[tuple[int, int, int, int]] = []
        lost: list[tuple[int, int, int, int]] = []
        stored: list[tuple[int, int, int, int]] = []
        for paddr, memsz, offset, filesz in segments:
            present = max(min(filesz, file_size - offset), 0)
            if present:
                stored.append((paddr, paddr + present, _STORED, offset))
            if present < filesz:
                lost.append((paddr + present, paddr + filesz, _LOST, 0))
            if filesz < memsz:
                excluded.append((paddr + filesz, paddr + memsz, _EXCLUDED, 0))
        stored.sort(key=lambda row: row[1] - row[0])
        layers = excluded + lost + stored  # later ones hide earlier ones
        for first, stop, index in overlay([row[0] for row in layers], [row[1] for row in layers]):
            base, _, kind, offset = layers[index]
            offset = offset + first - base if kind == _STORED else 0
            if self._continues(first, kind, offset):
                self.stops[-1] = stop
            else:
                self.firsts.append(first)
                self.stops.append(stop)
                self.kinds.append(kind)
                self.offsets.append(offset)

    def _continues(self, first: int, kind: int, offset: int) -> bool:
        """Whether a piece only prolongs the last one."""
        if not self.firsts or self.stops[-1] != first or self.kinds[-1] != kind:
            return False
        return kind != _STORED or offset - self.offsets[-1] == first - self.firsts[-1]

    def _judge_edges(self) -> None:
        block_size = self.block_size
        last = -1
        for ends in zip(self.firsts, self.stops, strict=True):
            for paddr in ends:
                block = paddr // block_size
                if paddr % block_size and block != last:
                    last = block
                    self._judge_edge(block)

    def _judge_edge(self, block: Pfn) -> None:
        """State and RAM extent of a block that is made up of several pieces, or of a piece and nothing."""
        base = block * self.block_size
        low, high, kinds = self.block_size, 0, set()
        i = self.piece(base)
        while i < len(self.firsts) and self.firsts[i] < base + self.block_size:
            low = min(low, max(self.firsts[i] - base, 0))
            high = max(high, min(self.stops[i] - base, self.block_size))
            kinds.add(self.kinds[i])
            i += 1
        whole = (low, high) == (0, self.block_size)
        if not whole:
            self.partial[block] = (low, high)
        if _LOST in kinds:
            state = _LOST
        elif _STORED in kinds:  # bytes of it that were left out read as zeros: no producer cuts inside a page
            state = _STORED if whole else _PARTIAL
        else:
            state = _EXCLUDED
        self.edge_states[block] = state

    def _block_hull(self, piece: int) -> tuple[Pfn, Pfn]:
        return self.firsts[piece] // self.block_size, -(-self.stops[piece] // self.block_size)

    def _blocks(self, kind: int, *more_kinds: int) -> Iterable[tuple[Pfn, Pfn]]:
        """Ranges of the blocks of a kind; those at the edges of pieces may be of `more_kinds` instead."""
        size = self.block_size
        for first, stop, piece_kind in zip(self.firsts, self.stops, self.kinds, strict=True):
            if piece_kind == kind:
                yield -(-first // size), stop // size
        for block, state in self.edge_states.items():
            if state == kind or state in more_kinds:
                yield block, block + 1

    def piece(self, paddr: int) -> int:
        """Number of the first piece that ends above `paddr`; the number of pieces when none does."""
        i = bisect_right(self.firsts, paddr) - 1
        return i if i >= 0 and paddr < self.stops[i] else i + 1

    def state(self, block: Pfn) -> int:
        """State of a block."""
        state = self.edge_states.get(block)
        if state is not None:
            return state
        paddr = block * self.block_size
        i = self.piece(paddr)
        return self.kinds[i] if i < len(self.firsts) and self.firsts[i] <= paddr else _ABSENT


@dataclass(frozen=True, slots=True)
class NoteFacts:
    """What an image's notes say; empty for formats without."""

    image: bytes = b""
    """All notes, as `DumpImage.notes` returns them."""
    vmcoreinfo: bytes | None = None
    eraseinfo: bytes = b""
    nr_cpus: int = 0
    """Number of NT_PRSTATUS notes."""
    owners: frozenset[tuple[bytes, int]] = frozenset()
    """Every (name, type) that occurs."""


class SegmentImage:
    """A `DumpImage` over a segment map; content is stored as it is.

    Args:
        source: the file; closed with the image.
        meta: header facts; `block_size` is the map's.
        pieces: the map.
        notices: what was odd.
        facts: what the notes say.
    """

    def __init__(
        self,
        source: ByteSource,
        meta: DumpMeta,
        pieces: SegmentMap,
        notices: Iterable[str] = (),
        facts: NoteFacts | None = None,
    ) -> None:
        self.meta = meta
        self.ram = pieces.ram
        self.stored = pieces.stored
        self.lost = pieces.lost
        self.partial: Mapping[Pfn, tuple[int, int]] = pieces.partial
        self.notices = tuple(notices)
        self._source = source
        self._map = pieces
        self._facts = facts or NoteFacts()

    def state(self, pfn: Pfn) -> PageState:
        """See `DumpImage.state`."""
        return PageState(self._map.state(pfn))

    def info(self, pfn: Pfn) -> PageInfo:
        """See `DumpImage.info`; of a block made up of several pieces, where its first stored byte is."""
        state = self.state(pfn)
        name = self._source.name
        if state not in (PageState.STORED, PageState.PARTIAL):
            return PageInfo(state, "", 0, 0, 0, name, _BEYOND if state is PageState.LOST else "")
        pieces = self._map
        paddr = pfn * pieces.block_size
        i = pieces.piece(paddr)
        while pieces.kinds[i] != _STORED:
            i += 1
        first = max(pieces.firsts[i], paddr)
        offset = pieces.offsets[i] + first - pieces.firsts[i]
        low, high = pieces.partial.get(pfn, (0, pieces.block_size))
        detail = self._trouble(offset + min(pieces.stops[i], paddr + high) - first - 1)
        return PageInfo(PageState.LOST if detail else state, "raw", offset, high - low, 0, name, detail)

    def _trouble(self, last: int) -> str:
        """Why the byte at `last` of the file cannot be read now, or '': files shrink and disks fail while mounted."""
        try:
            return "" if self._source.read_at(last, 1) else _BEYOND
        except SourceError as exc:
            return exc.message

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        pieces = self._map
        size = pieces.block_size
        paddr = pfn * size
        i = bisect_right(pieces.firsts, paddr) - 1
        if i >= 0 and paddr + size <= pieces.stops[i] and pieces.kinds[i] == _STORED:
            try:
                data = self._source.read_at(pieces.offsets[i] + paddr - pieces.firsts[i], size)
            except SourceError as exc:
                return b"", PageState.LOST, exc.message
            return (data, PageState.STORED, "") if len(data) == size else (b"", PageState.LOST, _BEYOND)
        data, states = self._compose(pfn, 1)
        state = PageState(states[0])
        if state in (PageState.STORED, PageState.PARTIAL):
            return data, state, ""
        return b"", state, self.info(pfn).detail

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        pieces = self._map
        size = count * pieces.block_size
        paddr = first * pieces.block_size
        i = bisect_right(pieces.firsts, paddr) - 1
        if i >= 0 and paddr + size <= pieces.stops[i] and pieces.kinds[i] == _STORED:
            try:
                data = self._source.read_at(pieces.offsets[i] + paddr - pieces.firsts[i], size)
            except SourceError:
                return self._compose(first, count)
            if len(data) == size:
                return data, bytes(count)
        return self._compose(first, count)

    def _compose(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """Any run, byte by byte from the pieces that make it up."""
        if not count:
            return b"", b""
        pieces, block_size = self._map, self._map.block_size
        base = first * block_size
        data = bytearray(count * block_size)
        states = bytearray([_ABSENT]) * count
        failed: set[int] = set()  # blocks of the run that could not be read
        edges: set[int] = set()
        i = pieces.piece(base)
        while i < len(pieces.firsts) and pieces.firsts[i] < base + len(data):
            low, high = max(pieces.firsts[i] - base, 0), min(pieces.stops[i] - base, len(data))
            block, stop = low // block_size, -(-high // block_size)
            states[block:stop] = bytes([pieces.kinds[i]]) * (stop - block)
            edges.add(block)
            edges.add(stop - 1)
            if pieces.kinds[i] == _STORED:
                offset = pieces.offsets[i] + base + low - pieces.firsts[i]
                failed |= self._fill(memoryview(data), low, high, offset)
            i += 1
        for block in edges:
            states[block] = pieces.edge_states.get(first + block, states[block])
            if states[block] == _LOST:  # bytes of it that are there do not make a page
                failed.add(block)
        for block in failed:
            states[block] = _LOST
            data[block * block_size : (block + 1) * block_size] = bytes(block_size)
        return bytes(data), bytes(states)

    def _fill(self, data: memoryview, low: int, high: int, offset: int) -> set[int]:
        """Read the file from `offset` on into `data[low:high]`; returns the blocks that could not be read."""
        block_size = self._map.block_size
        try:
            done = self._source.read_into(offset, data[low:high])
        except SourceError:
            if low // block_size == (high - 1) // block_size:
                return {low // block_size}
            failed: set[int] = set()  # one bad sector must cost no more than its own block
            while low < high:
                stop = min((low // block_size + 1) * block_size, high)
                failed |= self._fill(data, low, stop, offset)
                offset += stop - low
                low = stop
            return failed
        if low + done == high:
            return set()
        return set(range((low + done) // block_size, -(-high // block_size)))

    def written_runs(self, first: Pfn, stop: Pfn) -> Iterator[tuple[Pfn, Pfn]]:
        """See `SparseImage.written_runs`."""
        if self._source.next_hole(0) >= self._source.size:
            yield from self.stored.runs(first, stop)
            return
        for run in self.stored.runs(first, stop):
            yield from merge_runs(self._written(*run))

    def _written(self, first: Pfn, stop: Pfn) -> Iterator[tuple[Pfn, Pfn]]:
        """The blocks of one stored run in which a byte was written, ascending; neighbours may share a block."""
        pieces, size = self._map, self._map.block_size
        paddr, end = first * size, stop * size
        i = pieces.piece(paddr)
        while i < len(pieces.firsts) and (paddr := max(paddr, pieces.firsts[i])) < end:
            high = min(pieces.stops[i], end)
            shift = pieces.offsets[i] - pieces.firsts[i]
            while pieces.kinds[i] == _STORED and paddr < high:
                data = min(self._source.next_data(paddr + shift) - shift, high)
                paddr = max(data, paddr)
                hole = min(max(self._source.next_hole(paddr + shift) - shift, paddr + 1), high)
                if paddr < high:
                    yield paddr // size, -(-hole // size)
                paddr = hole
            i += 1

    def stored_blobs(self, first: Pfn, count: int) -> list[Blob]:
        """See `DumpImage.stored_blobs`; content is never compressed."""
        data, states = self.read_run(first, count)
        size = self._map.block_size
        return [
            Blob(PageState(s), 0, data[i * size : (i + 1) * size] if s in (_STORED, _PARTIAL) else b"")
            for i, s in enumerate(states)
        ]

    def notes(self) -> bytes:
        """See `DumpImage.notes`."""
        return self._facts.image

    def vmcoreinfo_text(self) -> bytes | None:
        """See `DumpImage.vmcoreinfo_text`."""
        return self._facts.vmcoreinfo

    def eraseinfo(self) -> bytes:
        """See `DumpImage.eraseinfo`."""
        return self._facts.eraseinfo

    def changes(self) -> list[str]:
        """See `DumpImage.changes`."""
        change = self._source.change()
        return [] if change is None else [f"{self._source.name}: {change}"]

    def close(self) -> None:
        """See `DumpImage.close`."""
        self._source.close()
