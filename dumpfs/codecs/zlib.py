"""zlib pages (makedumpfile -c): a zlib stream with its two-byte header and Adler-32."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecError
from dumpfs.structs import Buffer


class DeflateZlib(Codec):
    """libdeflate: twice as fast as zlib at decoding a page, and at level 1 at encoding one."""

    name = "zlib"
    flag = 0x1
    library = "deflate"

    def __init__(self) -> None:
        import deflate

        self._decompress = deflate.zlib_decompress
        self._compress = deflate.zlib_compress
        self._error = deflate.DeflateError

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`; the output buffer has the page's size and libdeflate does not exceed it."""
        return self._decode_each(self._decompress, self._error, blobs, page_size)

    def decode_page(self, blob: Buffer, page_size: int) -> bytes:
        """See `Codec.decode_page`."""
        return self._decode_one(self._decompress, self._error, blob, page_size)

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`."""
        compress = self._compress
        return [bytes(compress(page, 1)) for page in pages]


class StandardZlib(Codec):
    """The standard library's zlib."""

    name = "zlib"
    flag = 0x1
    library = "standard library"

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`."""
        pages = []
        try:
            for blob in blobs:
                stream = zlib.decompressobj()  # zlib.decompress has no bound on its output
                pages.append(stream.decompress(blob, page_size + 1))
                if not stream.eof:  # its checksum has not been seen, or it goes on
                    raise CodecError(self.name, f"does not end within one page of {page_size} bytes")
        except zlib.error as exc:
            raise CodecError(self.name, f"the stored bytes are damaged ({exc})") from exc
        return self._checked(pages, page_size)

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`."""
        return [zlib.compress(page, 1) for page in pages]
