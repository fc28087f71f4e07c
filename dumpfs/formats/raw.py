"""A flat image of physical memory: file offset equals physical address.

Nothing in such a file says what it is, so it is opened only when asked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from dumpfs.errors import UnknownFormatError
from dumpfs.formats.base import DumpMeta
from dumpfs.formats.pieces import Piece, segments_of
from dumpfs.formats.segments import Segment, SegmentImage, SegmentMap
from dumpfs.sources.base import ByteSource
from dumpfs.sources.joined import JoinedSource
from dumpfs.units import MIN_PAGE_SIZE


def open_raw(sources: Sequence[ByteSource]) -> SegmentImage:
    """The image of the one flat file in `sources`, which it takes over.

    Raises:
        UnknownFormatError: the file is empty.
    """
    (source,) = sources
    if not source.size:
        raise UnknownFormatError(source.name, "is empty")
    return _image(source, [Segment(0, source.size, 0, source.size)], "")


def open_pieces(
    sources: Sequence[ByteSource], pieces: Sequence[Piece], addresses: Sequence[int | None]
) -> SegmentImage:
    """The image that files, which it takes over, are pieces of; arguments and errors as of `segments_of`."""
    segments = segments_of(sources, pieces, addresses)
    source = sources[0] if len(sources) == 1 else JoinedSource(sources)
    return _image(source, segments, f"{len(segments)} piece{'s' * (len(segments) != 1)}")


def _image(source: ByteSource, segments: Sequence[Segment], variant: str) -> SegmentImage:
    pieces = SegmentMap(segments, source.size, MIN_PAGE_SIZE)
    meta = DumpMeta(
        format="raw",
        block_size=MIN_PAGE_SIZE,
        max_pfn=pieces.ram.stop,
        byteorder="little",
        word_size=8,
        variant=variant,
        compression="none",
    )
    return SegmentImage(source, meta, pieces)
