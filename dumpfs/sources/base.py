"""What a source of bytes is.

A source is read by position and has no cursor, so that any number of threads and of forked processes may share
one. Reads are short only at the end.
"""

from __future__ import annotations

from typing import Protocol


class ByteSource(Protocol):
    """Bytes by position; any thread may read."""

    @property
    def name(self) -> str:
        """What messages call it: a path, or a path with a remark."""

    @property
    def size(self) -> int:
        """Bytes in it when it was opened."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes `[offset, offset + size)`; shorter only at the end.

        Raises:
            SourceError: the bytes are there but cannot be read.
        """

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` (writable, of bytes) from `offset` on; returns the bytes read, fewer only at the end.

        Raises:
            SourceError: as `read_at`.
        """

    @property
    def is_flattened(self) -> bool:
        """Whether the bytes are rearranged from a flattened stream."""

    @property
    def incomplete_reason(self) -> str:
        """Why bytes are known to be missing from it, in one clause; '' when none are."""

    def next_data(self, offset: int) -> int:
        """The first offset from `offset` on that does not lie in a hole of zeros, `size` when only a hole is left.

        `offset` itself where holes are not known; lets a scan step over what nobody wrote.
        """

    def next_hole(self, offset: int) -> int:
        """The first offset from `offset` on at which a hole of zeros begins; `size` where none does or is known."""

    def change(self) -> str | None:
        """What happened to the input since it was opened ('truncated from 5 to 3 bytes'), or None."""

    def close(self) -> None:
        """Release what is held; reads afterwards fail."""


def read_exactly(source: ByteSource, offset: int, size: int, what: str) -> bytes:
    """`size` bytes at `offset`, which hold `what`.

    Raises:
        TruncatedDumpError: the source ends before.
    """
    from dumpfs.errors import TruncatedDumpError

    if offset < 0 or offset + size > source.size:
        raise TruncatedDumpError(
            source.name,
            f"{what} ({size} bytes) lies beyond the end of the file ({source.size} bytes)",
            offset=offset,
            hint="the file may have been cut short while it was copied",
        )
    data = source.read_at(offset, size)
    if len(data) != size:
        raise TruncatedDumpError(source.name, f"{what}: {len(data)} of {size} bytes", offset=offset)
    return data
