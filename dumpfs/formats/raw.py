"""A flat image of physical memory: file offset equals physical address.

Nothing in such a file says what it is, so it is opened only when asked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from dumpfs.errors import UnknownFormatError
from dumpfs.formats.base import DumpMeta
from dumpfs.formats.segments import Segment, SegmentImage, SegmentMap
from dumpfs.sources.base import ByteSource
from dumpfs.units import MIN_PAGE_SIZE


def open_raw(sources: Sequence[ByteSource]) -> SegmentImage:
    """The image of the one flat file in `sources`, which it takes over.

    Raises:
        UnknownFormatError: the file is empty.
    """
    (source,) = sources
    if not source.size:
        raise UnknownFormatError(source.name, "is empty")
    pieces = SegmentMap([Segment(0, source.size, 0, source.size)], source.size, MIN_PAGE_SIZE)
    meta = DumpMeta(
        format="raw",
        block_size=MIN_PAGE_SIZE,
        max_pfn=pieces.ram.stop,
        byteorder="little",
        word_size=8,
        compression="none",
    )
    return SegmentImage(source, meta, pieces)
