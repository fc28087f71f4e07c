"""kdump-compressed files, header version 6: headers, descriptors, and where each batch's bytes go.

    headers (marked incomplete), bitmaps, room for every descriptor, [the shared zero page], page data in pfn order

In a large dump each batch's data begin at a whole block, so that they can be written past the page cache; whether they
are makes no difference to the file.

The first write marks the file incomplete and the last but the rename clears the mark. Descriptors follow their data, in
pfn order: whatever is cut off, the descriptors that are there point at data that is there. Those of many batches are
written at once, for a file has one writer at a time: each write would wait for a worker's, some megabytes long, and a
worker for it.

Sources: makedumpfile IMPLEMENTATION and diskdump_mod.h (layouts live in formats.kdump.header), makedumpfile's output.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dumpfs.formats.kdump.header import DUMP_DH_COMPRESSED_INCOMPLETE, MAIN, SIGNATURE, SUB
from dumpfs.formats.kdump.pages import DESCRIPTOR_BYTES
from dumpfs.structs import Abi
from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Bits, count_bits
from dumpfs.writer.bytesink import ByteSink
from dumpfs.writer.encode import KIND_DATA, KIND_ZERO, Encoded, join
from dumpfs.writer.plan import HeaderFacts, WritePlan
from dumpfs.writer.uncached import BLOCK

HEADER_VERSION = 6
_U32 = 0xFFFFFFFF
_BITMAP_STEP = 4 << 20
_LARGE = 256 << 20
"""Bytes of pages from which on a dump is large: smaller ones are in the cache when they are opened next."""
_MARGIN = 64 << 10
"""What data of a large dump begin at a multiple of: no page of memory, on any machine, holds other things besides."""

Offsets = npt.NDArray[np.uint64]
Piece = tuple[int, int, int]
"""(offset in the file, first byte, bytes): where a stretch of a batch's bytes goes."""


@dataclass(frozen=True, slots=True)
class KdumpLayout:
    """Where everything lies in one file."""

    abi: Abi
    page_size: int
    sub_hdr_size: int
    bitmap_bytes: int
    """Of one bitmap, whole blocks."""
    descriptors: int
    """Descriptors there is room for: all of the dump's, also in a part of a split set."""

    @classmethod
    def of(cls, facts: HeaderFacts, count: int) -> KdumpLayout:
        """The layout of a dump with `count` stored pages."""
        size = facts.page_size
        sub_bytes = SUB.size(facts.abi) + len(facts.notes)
        bits = max((facts.max_mapnr + 7) // 8, 1)  # no reader takes a header without bitmaps for one
        return cls(facts.abi, size, -(-sub_bytes // size), -(-bits // size) * size, count)

    @property
    def bitmap_offset(self) -> int:
        """Byte offset of the 1st bitmap."""
        return self.page_size * (1 + self.sub_hdr_size)

    @property
    def descriptor_offset(self) -> int:
        """Byte offset of the first descriptor."""
        return self.bitmap_offset + 2 * self.bitmap_bytes

    @property
    def data_offset(self) -> int:
        """Byte offset of the page data."""
        return self.descriptor_offset + DESCRIPTOR_BYTES * self.descriptors


def build_main_header(facts: HeaderFacts, layout: KdumpLayout, status: int) -> bytes:
    """The main header."""
    seconds, microseconds = facts.timestamp
    uts = facts.uts
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    texts = {name: getattr(uts, name).encode("utf-8", "replace")[:64] for name in names}
    return MAIN.build(
        facts.abi,
        {
            "signature": SIGNATURE,
            "header_version": HEADER_VERSION,
            **texts,
            "tv_sec": seconds,
            "tv_usec": microseconds,
            "status": status,
            "block_size": layout.page_size,
            "sub_hdr_size": layout.sub_hdr_size,
            "bitmap_blocks": 2 * layout.bitmap_bytes // layout.page_size,
            "max_mapnr": min(facts.max_mapnr, _U32),
            "nr_cpus": facts.nr_cpus,
        },
    )


def build_sub_header(
    facts: HeaderFacts, layout: KdumpLayout, part: tuple[Pfn, Pfn] | None, eraseinfo_offset: int
) -> bytes:
    """The sub header; `part` is the pfn range of a part of a split set."""
    abi = facts.abi
    word = (1 << 8 * abi.long_size) - 1
    notes_offset = layout.page_size + SUB.size(abi)
    info_offset, info_size = facts.vmcoreinfo
    start, stop = part if part is not None else (0, 0)
    return SUB.build(
        abi,
        {
            "phys_base": facts.phys_base & word,
            "dump_level": facts.dump_level,
            "split": int(part is not None),
            "start_pfn": min(start, word, _U32) if abi.long_size == 4 else start,
            "end_pfn": min(stop, word, _U32) if abi.long_size == 4 else stop,
            "offset_vmcoreinfo": notes_offset + info_offset if info_size else 0,
            "size_vmcoreinfo": info_size,
            "offset_note": notes_offset if facts.notes else 0,
            "size_note": len(facts.notes),
            "offset_eraseinfo": eraseinfo_offset,
            "size_eraseinfo": len(facts.eraseinfo) if eraseinfo_offset else 0,
            "start_pfn_64": start,
            "end_pfn_64": stop,
            "max_mapnr_64": facts.max_mapnr,
        },
    )


def without_eraseinfo(abi: Abi, sub_header: bytes) -> tuple[bytes, tuple[int, int]]:
    """A sub header, and what lies behind it, as it was before its dump was complete.

    Returns:
        The bytes, and offset and size of the erase information it told of; all as it was for less than a sub header.
    """
    nbytes = SUB.size(abi)
    if len(sub_header) < nbytes:
        return sub_header, (0, 0)
    fields = SUB.parse_ints(abi, sub_header)
    place = fields["offset_eraseinfo"], fields["size_eraseinfo"]
    return SUB.build(abi, fields | {"offset_eraseinfo": 0, "size_eraseinfo": 0}) + sub_header[nbytes:], place


class KdumpSink:
    """One kdump-compressed file, or one part of a split set.

    `place` and `commit` are called in batch order by one process; workers write the bytes where `place` says.

    Args:
        plan: the whole dump.
        out: where the bytes go.
        part: (first, stop) pfns of a part of a split set, or None.
    """

    def __init__(self, plan: WritePlan, out: ByteSink, part: tuple[Pfn, Pfn] | None = None) -> None:
        self.out = out
        self.plan = plan
        self.part = part
        self.ordered = not out.concurrent
        self.layout = KdumpLayout.of(plan.facts, plan.count)
        layout = self.layout
        self.alignment = BLOCK if plan.count * layout.page_size >= _LARGE else 1
        """What each batch's bytes begin at a multiple of."""
        start = layout.data_offset + (layout.page_size if plan.shares_zero_pages else 0)
        self._headers_end = start
        self._data_end = start if self.alignment == 1 else _up(start, _MARGIN)
        """One past the last byte of page data."""
        self._committed_end = self._data_end
        self.written = 0
        """Descriptors that are in the file."""
        self._dtype = descriptor_dtype(layout.abi)
        self._waiting: list[tuple[int, Encoded]] = []
        """Batches whose descriptors are not in the file yet, and where the bytes of each begin."""

    @property
    def first(self) -> Pfn:
        """First pfn of the file."""
        return self.part[0] if self.part else 0

    @property
    def stop(self) -> Pfn:
        """One past the last pfn of the file."""
        return self.part[1] if self.part else self.plan.facts.max_mapnr

    def begin(self) -> None:
        """Write headers, marked incomplete, bitmaps and the shared zero page.

        Raises:
            OSError: as `ByteSink.write_at`.
        """
        layout, plan, out = self.layout, self.plan, self.out
        status = plan.codec_flag | DUMP_DH_COMPRESSED_INCOMPLETE
        out.write_at(0, [build_main_header(plan.facts, layout, status).ljust(layout.page_size, b"\0")])
        sub_header = build_sub_header(plan.facts, layout, self.part, 0) + plan.facts.notes
        out.write_at(layout.page_size, [sub_header.ljust(layout.page_size * layout.sub_hdr_size, b"\0")])
        self._write_bitmap(plan.ram, layout.bitmap_offset)
        self._write_bitmap(plan.dump, layout.bitmap_offset + layout.bitmap_bytes)
        # Room for the descriptors is made sure of now: data that nothing points at would be worth nothing.
        out.reserve(layout.descriptor_offset, layout.data_offset - layout.descriptor_offset)
        if plan.shares_zero_pages:
            out.write_at(layout.data_offset, [bytes(layout.page_size)])
        out.write_at(self._headers_end, [bytes(self._data_end - self._headers_end)])

    def _write_bitmap(self, bits: Bits, offset: int) -> None:
        for start in range(0, len(bits), _BITMAP_STEP):
            piece = bits[start : start + _BITMAP_STEP]
            last = start + len(piece) == len(bits)
            padding = self.layout.bitmap_bytes - len(bits) if last else 0
            self.out.write_at(offset + start, [piece.data, bytes(padding)])

    def place(self, first: Pfn, stop: Pfn, encoded: Encoded) -> list[Piece]:
        """Where the bytes of the next batch go: all of them behind what was placed before."""
        nbytes = encoded.nbytes
        if not nbytes:
            return [(self._data_end, 0, 0)]
        offset = _up(self._data_end, self.alignment)
        self._data_end = offset + nbytes
        return [(offset, 0, nbytes)]

    @property
    def committed_end(self) -> int:
        """One past the last byte of the page data that is in the file."""
        return self._committed_end

    def take_back(self) -> None:
        """Take back what was placed and could not be written."""
        self._data_end = self._committed_end

    def go_on(self, written: int, data_end: int) -> None:
        """Go on behind what an earlier run has left: so many descriptors, and data that end there."""
        self.written = written
        self._data_end = self._committed_end = max(self._data_end, data_end)

    def commit(self, encoded: Encoded, pieces: list[Piece]) -> None:
        """Take note of the next batch, whose bytes are in the file; in a stream its descriptors follow at once.

        Raises:
            OSError: as `ByteSink.write_at`.
        """
        self._waiting.append((pieces[0][0], encoded))
        self._committed_end = max(self._committed_end, pieces[0][0] + encoded.nbytes)
        if self.ordered:
            self.flush()

    def flush(self) -> None:
        """Write the descriptors that wait.

        Raises:
            OSError: as `ByteSink.write_at`.
        """
        if not self._waiting:
            return
        layout = self.layout
        batch = join([encoded for _, encoded in self._waiting])
        offsets = np.concatenate([page_offsets(encoded, start) for start, encoded in self._waiting])
        rows = build_descriptors(self._dtype, batch, offsets, layout.data_offset, layout.page_size)
        self.out.write_at(layout.descriptor_offset + DESCRIPTOR_BYTES * self.written, [rows])
        self.written += len(batch.sizes)
        self._waiting = []

    def finish(self, *, complete: bool) -> None:
        """Write the erase information and clear the mark, if the dump is complete."""
        layout, plan, out = self.layout, self.plan, self.out
        if complete:
            headers = [build_main_header(plan.facts, layout, plan.codec_flag)]
            if plan.facts.eraseinfo:  # told with the mark: what is marked has the headers of a dump without it
                out.write_at(self._data_end, [plan.facts.eraseinfo])
                sub_header = build_sub_header(plan.facts, layout, self.part, self._data_end)
                headers = [headers[0].ljust(layout.page_size, b"\0"), sub_header]
            out.sync()  # the data is on the disk before the header says so
            out.write_at(0, headers)
        out.finish()

    @property
    def end(self) -> int:
        """Bytes of the finished file."""
        return self._data_end + len(self.plan.facts.eraseinfo)

    @property
    def missing(self) -> int:
        """Pages that have not been written."""
        if self.part is None:
            return self.plan.count - self.written
        return count_bits_between(self.plan.dump, *self.part) - self.written


def _up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def count_bits_between(bits: Bits, first: Pfn, stop: Pfn) -> int:
    """Members in `[first, stop)`; `first` is a multiple of 8."""
    whole = count_bits(bits[first // 8 : stop // 8])
    if stop % 8 and stop // 8 < len(bits) and stop > first:
        whole += (int(bits[stop // 8]) & (1 << stop % 8) - 1).bit_count()
    return whole


def descriptor_dtype(abi: Abi) -> np.dtype[np.void]:
    """A page descriptor as numpy sees it."""
    order = abi.prefix
    dtype = np.dtype(
        [("offset", order + "u8"), ("size", order + "u4"), ("flags", order + "u4"), ("page_flags", order + "u8")]
    )
    assert dtype.itemsize == DESCRIPTOR_BYTES == struct.calcsize("=QIIQ")
    return dtype


def page_offsets(encoded: Encoded, start: int) -> Offsets:
    """Where in the file the bytes of each page of a batch begin, the first one's at `start`."""
    return np.cumsum(encoded.sizes, dtype=np.uint64) - encoded.sizes + np.uint64(start)


def build_descriptors(
    dtype: np.dtype[np.void], encoded: Encoded, offsets: Offsets, zero_offset: int, page_size: int
) -> bytes:
    """The descriptors of pages whose bytes begin at `offsets`; lost pages get none (all zero)."""
    rows: npt.NDArray[np.void] = np.zeros(len(offsets), dtype=dtype)
    own = encoded.kinds == KIND_DATA
    rows["offset"] = np.where(own, offsets, 0)
    rows["size"] = encoded.sizes
    rows["flags"] = encoded.flags
    zero = encoded.kinds == KIND_ZERO
    if zero.any():
        rows["offset"][zero] = zero_offset
        rows["size"][zero] = page_size
    return rows.tobytes()
