"""Snappy pages (makedumpfile -p): the raw block format, not the framed one."""

from __future__ import annotations

from collections.abc import Sequence

from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecError
from dumpfs.structs import Buffer


class CramjamSnappy(Codec):
    """cramjam, which python-snappy wraps, used directly."""

    name = "snappy"
    flag = 0x4
    library = "cramjam"

    def __init__(self) -> None:
        from cramjam import DecompressionError, snappy

        self._decompress_into = snappy.decompress_raw_into
        self._compress = snappy.compress_raw
        self._error = DecompressionError

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`; into a buffer of one page, which refuses a longer result before it is made."""
        decompress_into = self._decompress_into
        scratch = bytearray(page_size)
        pages = []
        try:
            for blob in blobs:
                length = decompress_into(blob, scratch)
                if length != page_size:
                    raise CodecError(self.name, f"expands to {length} bytes instead of {page_size}")
                pages.append(bytes(scratch))
        except self._error as exc:
            raise CodecError(self.name, f"the stored bytes are damaged ({exc})") from exc
        return pages

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`."""
        compress = self._compress
        return [bytes(compress(page)) for page in pages]
