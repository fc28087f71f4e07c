"""The description of a dumped machine's memory, and what reading it must give."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """What becomes of a page; the numbers are those a reader reports, written down a second time on purpose."""

    STORED = 0
    EXCLUDED = 1
    ABSENT = 2
    LOST = 3
    CORRUPT = 4
    PARTIAL = 5


@dataclass(frozen=True)
class Page:
    """One page of the description."""

    data: bytes = b""
    """Content, one block; empty for pages without."""
    kind: Kind = Kind.STORED
    codec: str = "raw"
    """raw, zero (the shared zero page), zlib, lzo, snappy, zstd, or a variant of `tests.build.codecs`."""
    stored_form: tuple[int, bytes] | None = None
    """Overrides what is written: (descriptor flags, blob). For broken pages."""
    descriptor: tuple[int, int, int] | None = None
    """Overrides the whole descriptor: (offset, size, flags). For broken pages."""
    extent: tuple[int, int] | None = None
    """The `[first, stop)` bytes that are RAM, of a page in which RAM begins or ends."""

    def __repr__(self) -> str:
        extras = [str(x) for x in (self.stored_form, self.descriptor, self.extent) if x is not None]
        return " ".join([f"<{self.kind.name}", self.codec, f"{zlib.crc32(self.data):08x}", *extras]) + ">"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(repr(self))


@dataclass(frozen=True)
class Memory:
    """Pages by number; what is not in `pages` is absent."""

    block_size: int
    max_pfn: int
    pages: dict[int, Page] = field(default_factory=dict)

    def kind(self, pfn: int) -> Kind:
        """State that a reader must report."""
        page = self.pages.get(pfn)
        return Kind.ABSENT if page is None else page.kind

    def content(self, pfn: int) -> bytes:
        """One block: what a run shows for the page, zeros where there is no content."""
        page = self.pages.get(pfn)
        if page is None or page.kind not in (Kind.STORED, Kind.PARTIAL):
            return bytes(self.block_size)
        return page.data

    def run(self, first: int, count: int) -> tuple[bytes, bytes]:
        """What `read_run` must return."""
        pfns = range(first, first + count)
        return b"".join(self.content(p) for p in pfns), bytes(self.kind(p) for p in pfns)

    def where(self, *kinds: Kind) -> list[int]:
        """Pages of these kinds, ascending."""
        return [pfn for pfn in sorted(self.pages) if self.pages[pfn].kind in kinds]

    def ram(self) -> list[int]:
        """Pages that exist."""
        return sorted(self.pages)

    def dumpable(self) -> list[int]:
        """Pages with a bit in the second bitmap, hence with a descriptor."""
        return [pfn for pfn in sorted(self.pages) if self.pages[pfn].kind is not Kind.EXCLUDED]

    def changed(self, pfns: set[int], kind: Kind) -> Memory:
        """The same memory with some pages of another kind."""
        pages = {p: replace(page, kind=kind) if p in pfns else page for p, page in self.pages.items()}
        return replace(self, pages=pages)

    def bits(self, pfns: list[int]) -> bytes:
        """A bitmap of `pfns` over `[0, max_pfn)`, least significant bit first."""
        out = bytearray((self.max_pfn + 7) // 8)
        for pfn in pfns:
            out[pfn >> 3] |= 1 << (pfn & 7)
        return bytes(out)


def runs_of(pfns: list[int]) -> list[tuple[int, int]]:
    """Maximal half-open runs of an ascending list."""
    runs: list[tuple[int, int]] = []
    for pfn in pfns:
        if runs and runs[-1][1] == pfn:
            runs[-1] = (runs[-1][0], pfn + 1)
        else:
            runs.append((pfn, pfn + 1))
    return runs


@dataclass(frozen=True)
class Built:
    """A finished file and where its parts lie."""

    data: bytes
    places: dict[str, int]
    """Byte offsets by name ('sub', 'notes', 'bitmap1', ...)."""
    descriptors: dict[int, int] = field(default_factory=dict)
    """kdump: offset of each page's descriptor."""
    blobs: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Offset and size of each page's stored bytes."""

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes, {self.places}>"

    def poked(self, offset: int, data: bytes) -> bytes:
        """The file with some bytes replaced."""
        return self.data[:offset] + data + self.data[offset + len(data) :]
