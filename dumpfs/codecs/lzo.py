"""LZO pages (makedumpfile -l): one raw LZO1X block, with no header and no length."""

from __future__ import annotations

from collections.abc import Sequence

from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecError
from dumpfs.structs import Buffer


class PythonLzo(Codec):
    """python-lzo, the binding of the original library; takes only `bytes`."""

    name = "lzo"
    flag = 0x2
    library = "python-lzo"

    def __init__(self) -> None:
        import lzo

        self._lzo_decompress = lzo.decompress
        self._lzo_compress = lzo.compress
        self._lzo_error = lzo.error

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`; the output buffer has the page's size and liblzo2 does not exceed it."""
        decompress = self._lzo_decompress
        try:
            pages = [decompress(bytes(blob), False, page_size) for blob in blobs]
        except self._lzo_error as exc:
            raise CodecError(self.name, "the stored bytes are damaged") from exc
        return self._checked(pages, page_size)

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`."""
        compress = self._lzo_compress
        return [compress(bytes(page), 1, False) for page in pages]


class AllrightLzo(PythonLzo):
    """lzallright to decode, a quarter faster; it compresses ten times slower, so python-lzo encodes.

    It grows its output as needed, but an LZO1X byte expands to 255 at most and a blob is no longer than a page, so
    a bomb is bounded: 1 MiB for 4 KiB pages.
    """

    library = "lzallright"

    def __init__(self) -> None:
        import lzallright

        self._decompress = lzallright.LZOCompressor.decompress
        self._error = lzallright.LZOError
        try:
            super().__init__()
        except ImportError:  # decoding does not need it
            self._lzo_compress = None

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`."""
        return self._decode_each(self._decompress, self._error, blobs, page_size)

    def decode_page(self, blob: Buffer, page_size: int) -> bytes:
        """See `Codec.decode_page`."""
        return self._decode_one(self._decompress, self._error, blob, page_size)

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`; lzallright's own compressor serves where python-lzo is missing."""
        if self._lzo_compress is not None:
            return super().encode(pages)
        import lzallright

        compressor = lzallright.LZOCompressor()
        return [bytes(compressor.compress(page)) for page in pages]
