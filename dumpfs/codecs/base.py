"""What a codec is.

Every codec bounds its output *before* it allocates: stored bytes that would expand past one page are corrupt, never
a gigabyte of memory. Codecs are safe to use from any thread (a library context that is not is kept per thread).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dumpfs.structs import Buffer


class Codec(Protocol):
    """Compresses and decompresses whole pages."""

    @property
    def name(self) -> str:
        """Lower case: zlib, lzo, snappy, zstd."""

    @property
    def flag(self) -> int:
        """The bit in a page descriptor: zlib 0x1, lzo 0x2, snappy 0x4, zstd 0x20."""

    def decode(self, blobs: Sequence[Buffer], page_size: int) -> list[bytes]:
        """The pages that `blobs` hold, each of exactly `page_size` bytes.

        Raises:
            CodecError: a blob does not decode to exactly one page; none of the batch is returned.
        """

    def decode_page(self, blob: Buffer, page_size: int) -> bytes:
        """One page.

        Raises:
            CodecError: as `decode`.
        """

    def encode(self, pages: Sequence[Buffer]) -> list[bytes]:
        """Each page compressed, at the level makedumpfile uses (the fastest)."""
