"""Stored forms of pages, by the reference libraries and by hand.

The hand-made ones use corners of each format that a compressor at its fastest level never emits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache

import cramjam
import lzo
import zstandard

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20


def zlib_page(data: bytes) -> bytes:
    """As `compress2` at level 1."""
    return zlib.compress(data, 1)


def zlib_stored_blocks(data: bytes) -> bytes:
    """Level 0: a zlib stream of stored blocks, larger than the page."""
    return zlib.compress(data, 0)


def lzo_page(data: bytes) -> bytes:
    """LZO1X-1 without python-lzo's five-byte header."""
    return bytes(lzo.compress(data, 1, False))


def lzo_literals(data: bytes) -> bytes:
    """LZO1X as one literal run and the end mark; only for four bytes or more.

    A first byte of 18 to 255 means (byte - 17) literals; 0 means 18 literals more than the length that follows as a
    count of zero bytes (255 each) and a last byte.
    """
    if len(data) <= 238:
        head = bytes((17 + len(data),))
    else:
        zeros, last = divmod(len(data) - 18, 255)
        if last == 0:
            zeros, last = zeros - 1, 255
        head = bytes(1 + zeros) + bytes((last,))
    return head + data + b"\x11\0\0"


def snappy_page(data: bytes) -> bytes:
    """The raw block format."""
    return bytes(cramjam.snappy.compress_raw(data))


def varint(value: int) -> bytes:
    """Seven bits a byte, low first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def snappy_literals(data: bytes) -> bytes:
    """One literal element with a two-byte length."""
    return varint(len(data)) + b"\xf4" + struct.pack("<H", len(data) - 1) + data


def zstd_page(data: bytes) -> bytes:
    """One frame at level 1, which says its content size."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def zstd_without_size(data: bytes) -> bytes:
    """A frame whose header does not say how much it holds."""
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def zstd_raw_blocks(data: bytes) -> bytes:
    """A frame made by hand: single segment, two-byte content size, one raw block; for 256 to 65791 bytes."""
    header = struct.pack("<IBH", 0xFD2FB528, 0x60, len(data) - 256)
    return header + struct.pack("<I", len(data) << 3 | 1)[:3] + data


ENCODERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "zlib": (ZLIB, zlib_page),
    "lzo": (LZO, lzo_page),
    "snappy": (SNAPPY, snappy_page),
    "zstd": (ZSTD, zstd_page),
    "zstd-without-size": (ZSTD, zstd_without_size),
}
"""Name to (descriptor flag, encoder)."""

FLAG_NAMES = {0: "raw", ZLIB: "zlib", LZO: "lzo", SNAPPY: "snappy", ZSTD: "zstd"}


def store(codec: str, data: bytes) -> tuple[int, bytes]:
    """(descriptor flags, blob) as makedumpfile does it: raw when compression gains nothing."""
    if codec in ("raw", "zero"):
        return 0, data
    flag, encode = ENCODERS[codec]
    blob = encode(data)
    return (flag, blob) if len(blob) < len(data) else (0, data)


@cache
def bombs() -> dict[str, tuple[int, bytes]]:
    """Small blobs that claim to be, or would expand to, far more than a page: name to (flags, blob)."""
    stream = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    endless = b"".join(stream.compress(bytes(1 << 20)) for _ in range(100)) + stream.flush()
    huge = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 40) + struct.pack("<I", 1 << 17 << 3 | 3)[:3] + b"\0"
    return {
        "zlib-100MB": (ZLIB, zlib.compress(bytes(100_000_000), 9)[:4000]),
        "zlib-1MB": (ZLIB, zlib.compress(bytes(1_000_000), 9)),
        "zstd-100MB-with-size": (ZSTD, zstandard.ZstdCompressor(level=3).compress(bytes(100_000_000))),
        "zstd-100MB-without-size": (ZSTD, endless),
        "zstd-claims-1TiB": (ZSTD, huge),
        "snappy-claims-4GiB": (SNAPPY, varint((1 << 32) - 1) + b"\xf0" + bytes(16)),
        "snappy-1MB": (SNAPPY, snappy_page(bytes(1_000_000))[:4000]),
        "lzo-1MB": (LZO, lzo_page(bytes(1_000_000))[:4000]),
        "lzo-endless-match": (LZO, b"\x12\0" + b"\x20" + bytes(3900) + b"\x01\x04\0" + b"\x11\0\0"),
    }
