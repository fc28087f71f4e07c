"""LiME memory images: per range a 32-byte header and the bytes.

Source: LiME's documentation of its format, version 1.
"""

from __future__ import annotations

import struct

MAGIC = 0x4C694D45


def build_lime(ranges: list[tuple[int, bytes]]) -> bytes:
    """An image of (physical address, bytes) ranges; the end address in a header is inclusive."""
    return b"".join(struct.pack("<IIQQ8x", MAGIC, 1, paddr, paddr + len(data) - 1) + data for paddr, data in ranges)
