"""What a codec is.

Every codec bounds its output *before* it allocates: stored bytes that would expand past one page are corrupt, never
a gigabyte of memory. Codecs are safe to use from any thread (a library context that is not is kept per thread).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from dumpfs.errors import CodecError
from dumpfs.structs import Buffer


class Codec(ABC):
    """Compresses and decompresses whole pages, with one library."""

    name: ClassVar[str]
    """Lower case: zlib, lzo, snappy, zstd."""
    flag: ClassVar[int]
    """The bit in a page descriptor: zlib 0x1, lzo 0x2, snappy 0x4, zstd 0x20."""
    library: ClassVar[str]
    """The PyPI package that does the work, or 'standard library'."""

    @abstractmethod
    def decode(self, blobs: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """The pages that `blobs` hold, each of exactly `page_size` bytes.

        A blob is at most a page long; callers check that first, since it bounds what a library may expand.

        Raises:
            CodecError: a blob does not decode to exactly one page; none of the batch is returned.
        """

    def decode_page(self, blob: Buffer, page_size: int) -> bytes:
        """One page.

        Raises:
            CodecError: as `decode`.
        """
        return bytes(self.decode((blob,), page_size)[0])

    @abstractmethod
    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """Each page compressed, at the level makedumpfile uses (the fastest)."""

    def _decode_each(
        self,
        decompress: Callable[[Buffer, int], Buffer],
        error: type[Exception],
        blobs: Sequence[Buffer],
        page_size: int,
    ) -> Sequence[Buffer]:
        """`decode` by a library whose `decompress(blob, page_size)` raises `error` for damaged bytes."""
        try:
            pages = [decompress(blob, page_size) for blob in blobs]
        except error as exc:
            raise CodecError(self.name, "the stored bytes are damaged") from exc
        return self._checked(pages, page_size)

    def _decode_one(
        self,
        decompress: Callable[[Buffer, int], Buffer],
        error: type[Exception],
        blob: Buffer,
        page_size: int,
    ) -> bytes:
        """`decode_page` by such a library: a reader of single pages waits for each."""
        try:
            page = decompress(blob, page_size)
        except error as exc:
            raise CodecError(self.name, "the stored bytes are damaged") from exc
        if len(page) != page_size:
            raise CodecError(self.name, f"expands to {len(page)} bytes instead of {page_size}")
        return page if type(page) is bytes else bytes(page)

    def _checked(self, pages: Sequence[Buffer], page_size: int) -> Sequence[Buffer]:
        """`pages`, all of the right length."""
        for length in set(map(len, pages)):
            if length != page_size:
                raise CodecError(self.name, f"expands to {length} bytes instead of {page_size}")
        return pages
