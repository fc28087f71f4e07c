"""Compressing a batch of pages into one run of bytes.

For where `native.loops` is not to be had. `CodecPacker` does it with any codec. `LzoPacker` calls liblzo2 itself, and
`SnappyPacker` cramjam, from the batch's buffer into the output's: at their speed a copy of each page, in and out, costs
a third as much as the compression.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

from dumpfs.codecs.base import Codec
from dumpfs.codecs.registry import LZO, SNAPPY, codec
from dumpfs.structs import Buffer

_LIBRARIES = ("liblzo2.so.2", "liblzo2.2.dylib")
_WORK_BYTES = 1 << 18
"""LZO1X_1_MEM_COMPRESS is 16384 pointers, 128 KiB on 64-bit machines."""


class Packer(Protocol):
    """Compresses pages of a buffer."""

    def pack(self, data: bytes, offsets: Sequence[int], page_size: int) -> tuple[bytes, list[int]]:
        """The pages at `offsets` of `data`, compressed one behind the other, and the bytes of each.

        A page that does not become shorter is there as it is, with `page_size` bytes.
        """


class CodecPacker:
    """Packs with any codec.

    Args:
        codec: what compresses.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def pack(self, data: bytes, offsets: Sequence[int], page_size: int) -> tuple[bytes, list[int]]:
        """See `Packer.pack`."""
        view = memoryview(data)
        pages = [view[offset : offset + page_size] for offset in offsets]
        blobs: list[Buffer] = list(self._codec.encode(pages))
        sizes = list(map(len, blobs))
        if sizes and max(sizes) >= page_size:
            for i, size in enumerate(sizes):
                if size >= page_size:
                    blobs[i], sizes[i] = pages[i], page_size
        return b"".join(blobs), sizes


class SnappyPacker:
    """Packs with cramjam, from the batch's buffer into the output's.

    Raises:
        ImportError: cramjam is not installed.
    """

    def __init__(self) -> None:
        from cramjam import snappy

        self._compress_into = snappy.compress_raw_into
        self._out = bytearray()

    def pack(self, data: bytes, offsets: Sequence[int], page_size: int) -> tuple[bytes, list[int]]:
        """See `Packer.pack`."""
        slot = 32 + page_size + page_size // 6  # snappy's bound on what a page can become
        if len(self._out) < len(offsets) * page_size + slot:
            self._out = bytearray(len(offsets) * page_size + slot)
        compress_into = self._compress_into
        source, out = memoryview(data), memoryview(self._out)
        sizes: list[int] = []
        append = sizes.append
        position = 0
        for offset in offsets:
            page = source[offset : offset + page_size]
            size = compress_into(page, out[position : position + slot])
            if size >= page_size:
                out[position : position + page_size] = page
                size = page_size
            append(size)
            position += size
        return bytes(out[:position]), sizes


class LzoPacker:
    """Packs with liblzo2's lzo1x_1_compress.

    Raises:
        OSError: the library is not installed.
    """

    def __init__(self) -> None:
        library = _load()
        function = library.lzo1x_1_compress
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        function.restype = ctypes.c_int
        self._compress = function
        self._work = ctypes.create_string_buffer(_WORK_BYTES)
        self._out = ctypes.create_string_buffer(0)
        self._length = ctypes.c_size_t()

    def pack(self, data: bytes, offsets: Sequence[int], page_size: int) -> tuple[bytes, list[int]]:
        """See `Packer.pack`."""
        room = len(offsets) * page_size + page_size + page_size // 16 + 67  # the last page may expand, at most so much
        if len(self._out) < room:
            self._out = ctypes.create_string_buffer(room)
        compress, length = self._compress, self._length
        out = position = ctypes.addressof(self._out)
        length_at, work = ctypes.addressof(length), ctypes.addressof(self._work)
        base = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        sizes: list[int] = []
        append = sizes.append
        for offset in offsets:
            compress(base + offset, page_size, position, length_at, work)
            size = length.value
            if size >= page_size:
                ctypes.memmove(position, base + offset, page_size)
                size = page_size
            append(size)
            position += size
        return ctypes.string_at(out, position - out), sizes


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            return ctypes.PyDLL(name)  # keeps the interpreter's lock: a page takes microseconds
        except OSError:
            continue
    raise OSError("liblzo2 is not installed")


def packer(flag: int) -> Packer:
    """The best packer for a compression flag.

    Raises:
        CodecUnavailableError: no library for it is installed.
    """
    try:
        if flag == LZO:
            return LzoPacker()
        if flag == SNAPPY:
            return SnappyPacker()
    except (OSError, AttributeError, ImportError):
        return CodecPacker(codec(flag))  # by the binding, or its error that names the package
    return CodecPacker(codec(flag))
