"""zstd pages (makedumpfile -z): one frame per page."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecError
from dumpfs.structs import Buffer

_UNKNOWN_SIZE = -1
"""What python-zstandard reports for a frame that does not tell its content size."""


class StandardZstd(Codec):
    """python-zstandard, with one context per thread: they are dear to make and not safe to share."""

    name = "zstd"
    flag = 0x20
    library = "zstandard"

    def __init__(self) -> None:
        import zstandard

        self._zstandard = zstandard
        self._local = threading.local()

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """See `Codec.decode`.

        The frame's own content size wins over `max_output_size` in this library, so it is looked at first.
        """
        content_size = self._zstandard.frame_content_size
        try:
            decompress = self._local.decompress
        except AttributeError:
            decompress = self._local.decompress = self._zstandard.ZstdDecompressor().decompress
        pages = []
        try:
            for blob in blobs:
                size = content_size(blob)
                if size != page_size and size != _UNKNOWN_SIZE:
                    raise CodecError(self.name, f"says it expands to {size} bytes instead of {page_size}")
                pages.append(decompress(blob, max_output_size=page_size))
        except self._zstandard.ZstdError as exc:
            raise CodecError(self.name, f"the stored bytes are damaged ({exc})") from exc
        return self._checked(pages, page_size)

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """See `Codec.encode`."""
        try:
            compress = self._local.compress
        except AttributeError:
            compress = self._local.compress = self._zstandard.ZstdCompressor(level=1).compress
        return [compress(page) for page in pages]
