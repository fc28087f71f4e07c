"""Page descriptors and page data of one kdump-compressed file: the path every stored page takes.

Two ways in. `read_many` takes a contiguous stretch of descriptors, fetches their data with as few reads as possible
and decodes it in batches; `read_one` serves a single page with the least overhead. Trouble is reported as a state.

Descriptors and data are read by position into reused buffers, so any thread and any forked process may read.
"""

from __future__ import annotations

import operator
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dumpfs.codecs.registry import CODEC_FLAGS, CODEC_MASK, codec, codec_name
from dumpfs.errors import CodecError, DumpfsError, SourceError
from dumpfs.formats.base import Blob, PageInfo
from dumpfs.sources.base import ByteSource
from dumpfs.structs import Abi, Buffer
from dumpfs.units import PageState

DESCRIPTOR_BYTES = 24
_NO_DESCRIPTOR = bytes(DESCRIPTOR_BYTES)

_GROUP_SHIFT = 8
"""Descriptors are cached in groups of 256 (6 KiB): random reads come back to the same groups."""
_GROUP_MASK = (1 << _GROUP_SHIFT) - 1
_MAX_CACHED_GROUPS = 2048
"""12 MB; covers 2 GiB of stored pages."""

_MAX_GAP = 1 << 14
"""Bytes between two blobs that are read along rather than skipped: a read costs as much as these."""
_USABLE_FLAGS = frozenset((0, *CODEC_FLAGS))

Page = tuple[bytes, PageState, str]
_STORED = PageState.STORED


@dataclass(slots=True)
class _Scratch(threading.local):
    """This thread's read buffer, grown to the largest span asked for so far."""

    buffer: bytearray = field(default_factory=bytearray)

    def view(self, size: int) -> memoryview:
        if len(self.buffer) < size:
            self.buffer = bytearray(max(size, 1 << 20))
        return memoryview(self.buffer)[:size]


_scratch = _Scratch()


class PageTable:
    """The stored pages of one file, by index of their descriptor.

    Args:
        source: the file.
        abi: byte order of the descriptors.
        offset: byte offset of the descriptor table.
        count: number of descriptors.
        block_size: bytes of a page.
    """

    def __init__(self, source: ByteSource, abi: Abi, offset: int, count: int, block_size: int) -> None:
        self.source = source
        self._offset = offset
        self.count = count
        self._block_size = block_size
        self._struct = struct.Struct(abi.prefix + "QIIQ")
        self._unpack = self._struct.unpack_from
        self._groups: dict[int, bytes] = {}
        self._shared: tuple[int, bytes] | None = None

    def descriptor(self, index: int) -> tuple[int, int, int]:
        """(offset, size, flags) of a descriptor; all zero when the file ends before it."""
        number = index >> _GROUP_SHIFT
        group = self._groups.get(number)
        if group is None:
            group = self._load_group(number)
        position = (index & _GROUP_MASK) * DESCRIPTOR_BYTES
        if position + DESCRIPTOR_BYTES > len(group):
            return 0, 0, 0
        offset, size, flags, _ = self._struct.unpack_from(group, position)
        return offset, size, flags

    def _load_group(self, number: int) -> bytes:
        first = number << _GROUP_SHIFT
        size = DESCRIPTOR_BYTES * min(1 << _GROUP_SHIFT, self.count - first)
        group = self.source.read_at(self._offset + DESCRIPTOR_BYTES * first, size)
        if len(self._groups) >= _MAX_CACHED_GROUPS:
            self._groups.clear()
        self._groups[number] = group
        return group

    def check(self, offset: int, size: int, flags: int) -> tuple[PageState, str]:
        """State of a page as its descriptor tells, and why when it is not stored."""
        if not offset:
            return PageState.LOST, "its descriptor was never written"
        kind = flags & CODEC_MASK
        if not size:
            return PageState.LOST, "its descriptor says 0 bytes"
        if flags & ~CODEC_MASK or kind not in _USABLE_FLAGS:
            return PageState.CORRUPT, f"its descriptor has flags {flags:#x}"
        if size > self._block_size or (not kind and size != self._block_size):
            return PageState.CORRUPT, f"its descriptor says {size} bytes, flags {flags:#x}"
        if offset + size > self.source.size:
            return PageState.LOST, f"its data at {offset:#x} lies beyond the end of the file"
        return PageState.STORED, ""

    def info(self, index: int) -> PageInfo:
        """Where and how a page is stored."""
        try:
            offset, size, flags = self.descriptor(index)
        except SourceError as exc:
            return PageInfo(PageState.CORRUPT, "", 0, 0, 0, self.source.name, exc.message)
        state, detail = self.check(offset, size, flags)
        name = codec_name(flags & CODEC_MASK) if state is PageState.STORED else ""
        return PageInfo(state, name, offset, size, flags, self.source.name, detail)

    def read_one(self, index: int) -> Page:
        """One page: its bytes (b'' unless stored), its state and why."""
        block_size = self._block_size
        try:
            group = self._groups.get(index >> _GROUP_SHIFT)  # `descriptor`, inlined
            position = (index & _GROUP_MASK) * DESCRIPTOR_BYTES
            if group is not None and position + DESCRIPTOR_BYTES <= len(group):
                offset, size, flags, _ = self._unpack(group, position)
            else:
                offset, size, flags = self.descriptor(index)
            if flags in _USABLE_FLAGS and 0 < size <= block_size and offset and (flags or size == block_size):
                blob = self.source.read_at(offset, size)
                if len(blob) == size:
                    return (codec(flags).decode_page(blob, block_size) if flags else blob), _STORED, ""
                return b"", PageState.LOST, f"its data at {offset:#x} lies beyond the end of the file"
        except DumpfsError as exc:  # a disk that fails and a codec that is missing cost this page only
            return b"", PageState.CORRUPT, exc.message
        return b"", *self.check(offset, size, flags)

    def read_many(self, first: int, count: int) -> tuple[list[Buffer], bytearray]:
        """`count` pages from descriptor `first` on: a buffer (zeros unless stored) and a state byte for each.

        The buffers may lie in this thread's scratch memory: use them before the next call.
        """
        try:
            return self._read_batch(first, count), bytearray(count)
        except DumpfsError:  # something in the batch is bad: find out what, page by page
            return self._read_singly(first, count)

    def _read_singly(self, first: int, count: int) -> tuple[list[Buffer], bytearray]:
        zeros = bytes(self._block_size)
        pages: list[Buffer] = []
        states = bytearray(count)
        for i in range(count):
            data, states[i], _ = self.read_one(first + i)
            pages.append(data or zeros)
        return pages, states

    def unpack(self, raw: bytes) -> Iterator[tuple[int, int, int, int]]:
        """(offset, size, flags, page flags) of each whole descriptor in `raw`."""
        return self._struct.iter_unpack(raw[: len(raw) // DESCRIPTOR_BYTES * DESCRIPTOR_BYTES])

    def raw_descriptors(self, first: int, count: int) -> bytes:
        """The bytes of `count` descriptors from `first` on, short only where the file ends; for copying in bulk.

        Raises:
            SourceError: they cannot be read.
        """
        return self.source.read_at(self._offset + DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * count)

    def _columns(self, first: int, count: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Offsets, sizes and flags of `count` descriptors."""
        table = self.source.read_at(self._offset + DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * count)
        if len(table) != DESCRIPTOR_BYTES * count:
            raise CodecError("descriptors", "the file ends inside the descriptor table")
        offsets, sizes, flags, _ = zip(*self._struct.iter_unpack(table), strict=True)
        return offsets, sizes, flags

    def _read_batch(self, first: int, count: int) -> list[Buffer]:
        """Every page of the batch, or a `DumpfsError` if any of them is not plainly stored."""
        offsets, sizes, flags = self._columns(first, count)
        kinds = set(flags)
        block_size = self._block_size
        ends = list(map(operator.add, offsets, sizes))
        good = kinds <= _USABLE_FLAGS and min(offsets) > 0 and min(sizes) > 0 and max(sizes) <= block_size
        if not good or max(ends) > self.source.size:
            raise CodecError("descriptors", "not every page is stored")
        blobs = self._fetch(offsets, sizes, ends)
        if len(kinds) == 1:
            return self._decode(flags[0], blobs)
        pages: list[Buffer] = list(blobs)
        for kind in kinds:
            where = [i for i, flag in enumerate(flags) if flag == kind]
            for i, page in zip(where, self._decode(kind, [blobs[i] for i in where]), strict=True):
                pages[i] = page
        return pages

    def _decode(self, kind: int, blobs: Sequence[Buffer]) -> list[Buffer]:
        if kind:
            return list(codec(kind).decode(blobs, self._block_size))
        if set(map(len, blobs)) != {self._block_size}:
            raise CodecError("raw", "a page is not a page long")
        return list(blobs)

    def _fetch(self, offsets: Sequence[int], sizes: Sequence[int], ends: Sequence[int]) -> Sequence[Buffer]:
        """The stored bytes of each page, normally with a single read."""
        low, high = min(offsets), max(ends)
        if high - low <= sum(sizes) + _MAX_GAP:
            view = _scratch.view(high - low)
            self._fill(low, view)
            return [view[o - low : e - low] for o, e in zip(offsets, ends, strict=True)]
        # Zero pages share one copy at the start of the data; the others lie together behind it.
        shared = self._shared_page(low, sizes[offsets.index(low)])
        others = [o for o in offsets if o != low]
        base = min(others, default=high)
        if high - base > sum(sizes) + _MAX_GAP:
            return self._fetch_scattered(offsets, sizes)
        view = _scratch.view(high - base)
        self._fill(base, view)
        return [view[o - base : e - base] if o != low else shared for o, e in zip(offsets, ends, strict=True)]

    def _shared_page(self, offset: int, size: int) -> bytes:
        """Stored bytes that several pages share; the last ones asked for are kept."""
        shared = self._shared  # once: another thread may put its own there meanwhile
        if shared is None or shared[0] != offset or len(shared[1]) != size:
            view = bytearray(size)
            self._fill(offset, memoryview(view))
            shared = self._shared = (offset, bytes(view))
        return shared[1]

    def _fill(self, offset: int, view: memoryview) -> None:
        if self.source.read_into(offset, view) != len(view):
            raise CodecError("data", "the file has become shorter")

    def _fetch_scattered(self, offsets: Sequence[int], sizes: Sequence[int]) -> Sequence[Buffer]:
        """Like `_fetch` for pages that lie anywhere: one read for each stretch of neighbours."""
        places = sorted(set(zip(offsets, sizes, strict=True)))
        blobs: dict[tuple[int, int], Buffer] = {}
        start = 0
        while start < len(places):
            low = end = places[start][0]
            stop = start
            while stop < len(places) and places[stop][0] - end <= _MAX_GAP:
                end = max(end, sum(places[stop]))
                stop += 1
            view = memoryview(bytearray(end - low))
            self._fill(low, view)
            for offset, size in places[start:stop]:
                blobs[offset, size] = view[offset - low : offset - low + size]
            start = stop
        return [blobs[place] for place in zip(offsets, sizes, strict=True)]

    def blobs(self, first: int, count: int) -> list[Blob]:
        """The stored bytes of `count` pages from descriptor `first` on, still compressed."""
        try:
            offsets, sizes, flags = self._columns(first, count)
            if any(self.check(o, s, f)[0] for o, s, f in zip(offsets, sizes, flags, strict=True)):
                raise CodecError("descriptors", "not every page is stored")
            ends = list(map(operator.add, offsets, sizes))
            fetched = self._fetch(offsets, sizes, ends)
        except DumpfsError:
            return [self._blob(first + i) for i in range(count)]
        return [Blob(_STORED, f, bytes(b)) for f, b in zip(flags, fetched, strict=True)]

    def _blob(self, index: int) -> Blob:
        try:
            offset, size, flags = self.descriptor(index)
            state, _ = self.check(offset, size, flags)
            if state is not PageState.STORED:
                return Blob(state, 0, b"")
            data = self.source.read_at(offset, size)
        except SourceError:
            return Blob(PageState.CORRUPT, 0, b"")
        return Blob(state, flags, data) if len(data) == size else Blob(PageState.LOST, 0, b"")
