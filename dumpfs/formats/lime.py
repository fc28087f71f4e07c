"""LiME memory images: per range of RAM a 32-byte header, then its bytes.

    0   magic "EMiL" (0x4C694D45 in the machine's order)     8   first physical address
    4   version, 1                                           16  last physical address, inclusive
                                                             24  reserved

Source: LiME's documentation of its format. AVML writes the same for uncompressed images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dumpfs.errors import CorruptDumpError, SourceError, UnsupportedFeatureError
from dumpfs.formats.base import DumpMeta
from dumpfs.formats.segments import MAX_PADDR, Segment, SegmentImage, SegmentMap
from dumpfs.sources.base import ByteSource
from dumpfs.structs import BE64, LE64, Abi, Buffer, Layout
from dumpfs.units import MIN_PAGE_SIZE

LIME_MAGIC = 0x4C694D45
_VERSION = 1
_HEADER = Layout(
    "lime_mem_range_header",
    [("magic", "u32"), ("version", "u32"), ("s_addr", "u64"), ("e_addr", "u64"), ("reserved", "u64")],
)
_MAX_RANGES = 1 << 16
"""Machines have a few dozen."""
_MAX_PADDING, _PIECE = 64 << 20, 1 << 20


def _order(head: Buffer) -> Literal["little", "big"] | None:
    magic = bytes(head[:4])
    if magic == LIME_MAGIC.to_bytes(4, "little"):
        return "little"
    return "big" if magic == LIME_MAGIC.to_bytes(4, "big") else None


def probe(head: Buffer) -> bool:
    """Whether a file that begins with `head` is a LiME image."""
    return _order(head) is not None


def open_lime(sources: Sequence[ByteSource]) -> SegmentImage:
    """The image of the one LiME file in `sources`, which it takes over.

    Raises:
        UnsupportedFeatureError: another version.
        CorruptDumpError: the first range is impossible.
    """
    (source,) = sources
    order = _order(source.read_at(0, 4))
    if order is None:
        raise CorruptDumpError(source.name, "no LiME header", offset=0)
    segments, trouble = _read_ranges(source, LE64 if order == "little" else BE64)
    trouble = "; ".join(t for t in (trouble, source.incomplete_reason) if t)
    pieces = SegmentMap(segments, source.size, MIN_PAGE_SIZE)
    meta = DumpMeta(
        format="lime",
        block_size=MIN_PAGE_SIZE,
        max_pfn=pieces.ram.stop,
        byteorder=order,
        word_size=8,
        version=_VERSION,
        variant="flattened" if source.is_flattened else "",
        compression="none",
        complete=not trouble,
        incomplete_reason=trouble,
        header={"ranges": len(segments)},
    )
    notices = [] if pieces.stored.count() else ["the dump holds no page at all"]
    return SegmentImage(source, meta, pieces, notices)


def _read_ranges(source: ByteSource, abi: Abi) -> tuple[list[Segment], str]:
    """The ranges, and why they are not all, or ''."""
    size = _HEADER.size(abi)
    segments: list[Segment] = []
    position = 0
    while position < source.size:
        try:
            problem = _complaint(source, abi, head := source.read_at(position, size), size, position)
        except SourceError as exc:  # a bad sector: where the next range begins is not known
            if not segments:
                raise
            return segments, f"the range header at {position:#x} cannot be read ({exc.message})"
        if not problem and len(segments) >= _MAX_RANGES:
            problem = f"there are more than {_MAX_RANGES} ranges"
        if problem and segments and not _more_than_zeros(source, position):
            break  # writers that pad their last block, or the disk they wrote to
        if problem and not segments:
            raise CorruptDumpError(source.name, problem, offset=position)
        if problem:
            return segments, f"{problem} at {position:#x}, after {len(segments)} ranges"
        values = _HEADER.parse_ints(abi, head)
        length = values["e_addr"] - values["s_addr"] + 1
        segments.append(Segment(values["s_addr"], length, position + size, length))
        position += size + length
    if position > source.size:
        return segments, f"the file ends at {source.size:#x}, but its last range reaches to {position:#x}"
    return segments, ""


def _more_than_zeros(source: ByteSource, position: int) -> bool:
    """Whether there are other bytes than zeros from `position` on; holes are passed over, and much is not looked at."""
    stop = min(source.size, position + _MAX_PADDING)
    while (position := source.next_data(position)) < stop:
        piece = source.read_at(position, min(_PIECE, stop - position))
        if any(piece):
            return True
        if not piece:
            break
        position += len(piece)
    return source.size > stop and source.next_data(stop) < source.size


def _complaint(source: ByteSource, abi: Abi, head: bytes, size: int, position: int) -> str:
    """What is wrong with a range header, or ''."""
    if len(head) < size:
        return "the file ends inside a range header"
    values = _HEADER.parse_ints(abi, head)
    if values["magic"] != LIME_MAGIC:
        return f"expected a range header, found magic {values['magic']:#x}"
    if values["version"] != _VERSION:
        raise UnsupportedFeatureError(
            source.name, f"LiME version {values['version']}; only version {_VERSION} is known", offset=position
        )
    if values["e_addr"] < values["s_addr"] or values["e_addr"] >= MAX_PADDR:
        return f"impossible range {values['s_addr']:#x} to {values['e_addr']:#x}"
    return ""
