"""A 1 TiB dump that takes some hundred megabytes: every page number counts, few pages differ.

Both bitmaps are pseudo-random, which is the worst fragmentation there is: no run index, no list of ranges and no
object per page would fit into memory.
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.build.notes import note, prstatus, vmcoreinfo_text

PFNS = 1 << 28
BLOCK = 4096
CONTENTS = 64
"""Different pages; the page of rank r has content number r % CONTENTS."""
_PIECE = 1 << 20
"""Bytes of bitmap made at once."""


def content(index: int) -> bytes:
    """One of the pages."""
    return (b"page %d of the sparse dump\n" % index).ljust(BLOCK, bytes((index,)))


def _bitmaps(pfns: int, thinning: int) -> Iterator[tuple[bytes, bytes]]:
    """Pieces of the two bitmaps: half of all pages are RAM, and 1 in 2^thinning of those is stored."""
    rng = random.Random(28)
    for offset in range(0, pfns // 8, _PIECE):
        size = min(_PIECE, pfns // 8 - offset)
        ram = stored = int.from_bytes(rng.randbytes(size), "little")
        for _ in range(thinning):
            stored &= int.from_bytes(rng.randbytes(size), "little")
        yield ram.to_bytes(size, "little"), stored.to_bytes(size, "little")


def sparse_tib(path: str | os.PathLike[str], pfns: int = PFNS, thinning: int = 5) -> int:
    """Write a dump of `pfns` (a multiple of 32768) 4 KiB pages, 2^28 of them by default; returns the stored pages.

    With the defaults 4.2 million pages are stored and the file takes 165 MB. It is complete: every descriptor
    points to one of `CONTENTS` pages, compressed with zlib.
    """
    header = bytearray(2 * BLOCK)
    header[:12] = b"KDUMP   " + struct.pack("<i", 6)
    header[272:278] = b"x86_64"
    bitmap_size = pfns // 8
    struct.pack_into("<qqIiiIIIIIIi", header, 408, 1700000000, 0, 1, BLOCK, 1, 2 * bitmap_size // BLOCK,
                     min(pfns, 0xFFFFFFFF), 0, 0, 0, 0, 1)  # fmt: skip
    cpu = prstatus(1, "little")
    info = vmcoreinfo_text()
    notes = cpu + note(b"VMCOREINFO", 0, info, "little")
    offset = BLOCK + 104
    struct.pack_into("<QiiQQQQQQQQQQQ", header, BLOCK, 0, 31, 0, 0, 0, offset + len(cpu) + 24, len(info), offset,
                     len(notes), 0, 0, 0, 0, pfns)  # fmt: skip
    header[offset : offset + len(notes)] = notes
    total = 0
    with Path(path).open("wb") as file:
        file.write(header)
        for i, (ram, stored) in enumerate(_bitmaps(pfns, thinning)):
            os.pwrite(file.fileno(), ram, 2 * BLOCK + i * _PIECE)
            os.pwrite(file.fileno(), stored, 2 * BLOCK + bitmap_size + i * _PIECE)
            total += int.from_bytes(stored, "little").bit_count()
        table = 2 * BLOCK + 2 * bitmap_size
        position = table + 24 * total
        entries = []
        for index in range(CONTENTS):
            blob = zlib.compress(content(index), 1)
            os.pwrite(file.fileno(), blob, position)
            entries.append(struct.pack("<QIIQ", position, len(blob), 1, 0))
            position += len(blob)
        cycle = b"".join(entries) * 1024
        for first in range(0, 24 * total, len(cycle)):
            os.pwrite(file.fileno(), cycle[: 24 * total - first], table + first)
    return total
