"""Refiltering without recompressing: pages whose stored form is already what is asked for are copied as they are.

A batch is one look at the source's descriptor table, one read of the stretch of stored bytes, and a write of the parts
of it that are kept; no page is touched on its own but those so small that they may be zero pages.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dumpfs.codecs.registry import codec, codec_name
from dumpfs.errors import CodecError, SourceError
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.formats.kdump.pages import DESCRIPTOR_BYTES, PageTable
from dumpfs.sources.base import ByteSource
from dumpfs.structs import Buffer
from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Flags, pfn_flags, window
from dumpfs.writer.encode import KIND_DATA, KIND_LOST, KIND_ZERO, Encoded, Encoder, find_zero_pages, join
from dumpfs.writer.plan import WritePlan
from dumpfs.writer.sink_kdump import descriptor_dtype

_ZERO_BLOB_BYTES = 256
"""A compressed page longer than this is no zero page: snappy, the worst, needs 200 bytes for 4096 zeros."""
_MAX_WASTE = 4
"""Bytes of the source read for each byte copied, before single reads are the better way."""
_MAX_KNOWN = 4096

Rows = npt.NDArray[np.void]


class BatchEncoder(Protocol):
    """What turns a batch into stored bytes."""

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """See `Encoder.encode`."""


def choose_encoder(plan: WritePlan) -> BatchEncoder:
    """The fastest encoder that gives what `plan` asks for."""
    image = plan.image
    wanted = codec_name(plan.codec_flag).replace("raw", "none")
    if plan.copy_through and isinstance(image, KdumpImage) and image.meta.compression == wanted:
        return CopyEncoder(plan, image)
    return Encoder(plan)


class _Stretch(NamedTuple):
    """Wanted pages with descriptors in one table."""

    source: ByteSource
    rows: Rows


class CopyEncoder:
    """Copies stored bytes where it can, and leaves batches where it cannot to `Encoder`; for one thread.

    Args:
        plan: the dump to be written.
        image: its source.
    """

    def __init__(self, plan: WritePlan, image: KdumpImage) -> None:
        self._plan, self._image = plan, image
        self._fallback = Encoder(plan)
        self._dtype = descriptor_dtype(image.abi)
        self._page_size = plan.facts.page_size
        self._zero_blobs: dict[bytes, bool] = {}
        self._zero_offsets: dict[tuple[str, int], bool] = {}

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """See `Encoder.encode`."""
        try:
            stretches = self._stretches(first, stop)
            parts = None if stretches is None else [self._copy(stretch) for stretch in stretches]
        except (SourceError, CodecError):
            parts = None
        if parts is None or any(part is None for part in parts):
            return self._fallback.encode(first, stop)
        return join([part for part in parts if part is not None])

    def _stretches(self, first: Pfn, stop: Pfn) -> list[_Stretch] | None:
        """The wanted pages' descriptors, or None when some are not there."""
        found = []
        wanted = window(self._plan.dump, first, stop)
        for low, high, table, index in self._image.descriptor_stretches(first, stop):
            if table is None:
                return None
            chosen = self._chosen(wanted[low - first : high - first], first, low, high)
            rows = self._rows(table, index, len(chosen))
            if rows is None:
                return None
            found.append(_Stretch(table.source, rows[chosen]))
        return found

    def _chosen(self, wanted: Flags, first: Pfn, low: Pfn, high: Pfn) -> Flags:
        """Of the source's pages in `[low, high)`, which are wanted."""
        # Looked up anew for each batch: a copy of the bitmap would be as large as the dump's own.
        there = pfn_flags(self._image.stored, first, high) | pfn_flags(self._image.lost, first, high)
        return wanted[there[low - first :]]

    def _rows(self, table: PageTable, index: int, count: int) -> Rows | None:
        raw = table.raw_descriptors(index, count)
        return np.frombuffer(raw, dtype=self._dtype) if len(raw) == count * DESCRIPTOR_BYTES else None

    def _copy(self, stretch: _Stretch) -> Encoded | None:
        """The stored form of a stretch, or None when a page of it must be encoded anew."""
        rows, page_size = stretch.rows, self._page_size
        offsets = rows["offset"].astype(np.int64)
        sizes = rows["size"].astype(np.int64)
        flags = rows["flags"].astype(np.uint32)
        raw = (flags == 0) & (sizes == page_size)
        packed = (flags == self._plan.codec_flag) & (sizes > 0) & (sizes <= page_size) & (flags != 0)
        lost = ~(raw | packed) | (offsets <= 0) | (offsets + sizes > stretch.source.size)
        if (lost & (flags != 0) & (sizes > 0) & (offsets > 0)).any():
            return None  # another codec's page, or a corrupt one: it is looked at closely
        kinds = np.where(lost, KIND_LOST, KIND_DATA).astype(np.uint8)
        own = np.flatnonzero(~lost)
        buffer, base = self._read(stretch.source, offsets[own], sizes[own], raw[own])
        if buffer is None:
            return None
        if self._plan.shares_zero_pages:
            self._find_zero(stretch.source, kinds, own, offsets, sizes, raw, buffer, base)
        data = kinds == KIND_DATA
        if (data & (offsets < base)).any():
            return None  # pages that share a copy far from the others, and are not zero
        chunks = _chunks(buffer, offsets[data] - base, sizes[data])
        out_sizes = np.where(data, sizes, 0).astype(np.uint32)
        return Encoded(out_sizes, np.where(data, flags, 0).astype(np.uint32), kinds, chunks)

    def _read(
        self, source: ByteSource, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], raw: Flags
    ) -> tuple[bytes | None, int]:
        """The stretch of bytes that holds the pages, and its offset; the shared zero page may lie before it."""
        if not len(offsets):
            return b"", 0
        base, end = int(offsets.min()), int((offsets + sizes).max())
        if end - base > _MAX_WASTE * int(sizes.sum()) + (1 << 20) and raw.any():
            others = offsets > base
            if not others.any():
                return b"", end
            base = int(offsets[others].min())
        if end - base > _MAX_WASTE * int(sizes.sum()) + (1 << 20):
            return None, 0
        data = source.read_at(base, end - base)
        return (data if len(data) == end - base else None), base

    def _find_zero(
        self,
        source: ByteSource,
        kinds: npt.NDArray[np.uint8],
        own: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        raw: Flags,
        buffer: bytes,
        base: int,
    ) -> None:
        """Mark the zero pages among the pages `own`."""
        for i in own[(~raw & (sizes <= _ZERO_BLOB_BYTES))[own]].tolist():
            start = int(offsets[i]) - base
            if start >= 0 and self._is_zero_blob(buffer[start : start + int(sizes[i])]):
                kinds[i] = KIND_ZERO
        plain = own[raw[own]]
        if len(plain) == len(own) and _contiguous(offsets[plain], sizes[plain]):
            start = int(offsets[plain[0]]) - base if len(plain) else 0
            if len(plain) and start >= 0:
                view = memoryview(buffer)[start : start + len(plain) * self._page_size]
                kinds[plain[find_zero_pages(view, self._page_size)]] = KIND_ZERO
                return
        for i in plain.tolist():
            if self._is_zero_at(source, int(offsets[i]), buffer, base):
                kinds[i] = KIND_ZERO

    def _is_zero_blob(self, blob: bytes) -> bool:
        known = self._zero_blobs.get(blob)
        if known is None:
            page = codec(self._plan.codec_flag).decode_page(blob, self._page_size)
            known = not any(page)
            if len(self._zero_blobs) >= _MAX_KNOWN:
                self._zero_blobs.clear()
            self._zero_blobs[blob] = known
        return known

    def _is_zero_at(self, source: ByteSource, offset: int, buffer: bytes, base: int) -> bool:
        """Whether the raw page at `offset` is zero; what pages share is looked at once."""
        if offset >= base:
            start = offset - base
            return buffer[start] == 0 and buffer.count(0, start, start + self._page_size) == self._page_size
        key = (source.name, offset)
        known = self._zero_offsets.get(key)
        if known is None:
            known = self._zero_offsets[key] = not any(source.read_at(offset, self._page_size))
        return known


def _contiguous(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> bool:
    return bool((offsets[1:] == offsets[:-1] + sizes[:-1]).all())


def _chunks(buffer: bytes, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> list[Buffer]:
    """Slices of `buffer`, neighbours joined."""
    if not len(starts):
        return []
    ends = starts + sizes
    breaks = np.flatnonzero(starts[1:] != ends[:-1])
    firsts = starts[np.concatenate(([0], breaks + 1))].tolist()
    lasts = ends[np.concatenate((breaks, [len(starts) - 1]))].tolist()
    view = memoryview(buffer)
    return [view[a:b] for a, b in zip(firsts, lasts, strict=True)]
