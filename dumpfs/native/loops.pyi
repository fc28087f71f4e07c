"""What is written in C; see `module.c`."""

from collections.abc import Sequence

from dumpfs.structs import Buffer

VERSION: int
"""Of what is in here; see `dumpfs.native`."""

def has_codec(flag: int) -> bool:
    """Whether the library of a compression (the flag in a page descriptor) is installed."""

def encode(flag: int, data: Buffer, page_size: int, kinds: Buffer, zero_kind: int) -> tuple[memoryview, bytes, bytes]:
    """The pages of `data` in the form in which they are stored: their bytes one behind the other, and two arrays of
    32-bit numbers with the size and the compression flag of each.

    A page that does not become shorter is stored as it is.

    Args:
        flag: of the compression.
        data: whole pages.
        page_size: 64 to 65536 bytes.
        kinds: a writable byte for each page; only those with 0 are stored, the others have size 0.
        zero_kind: what a page of zeros gets in `kinds`; with 0 it is stored as others are.

    Raises:
        ValueError: the library is not installed, or there are not as many pages as kinds.
    """

class Pages:
    """Pages of a plain little-endian kdump-compressed file, as far as they are in order; for one thread."""

    def __init__(
        self,
        *,
        fd: int,
        bitmap: int,
        stop: int,
        ranks: Buffer,
        table: int,
        count: int,
        page_size: int,
        zeros: bool,
        cache: int,
    ) -> None:
        """See `pages.h`.

        Args:
            fd: the file; it must stay open.
            bitmap: offset of the bitmap of stored pages.
            stop: one past the last page.
            ranks: 64-bit numbers: stored pages before each 4096 pages.
            table: offset of the descriptors.
            count: how many there are.
            page_size: in bytes.
            zeros: whether memory that is not stored reads as zeros.
            cache: bytes of decoded pages to keep at most; one page at least.

        Raises:
            ValueError: pages of that size are not to be had.
        """

    def read(self, address: int, size: int) -> bytes | None:
        """`size` bytes of physical memory, or None: something is not in order."""

    def used(self) -> int:
        """Bytes of decoded pages that are kept."""

class Loop:
    """Takes requests from a FUSE device and answers those that read memory; for one thread."""

    def __init__(
        self, *, device: int, room: int, counters: Buffer, reads: int, bytes: int, hits: int, misses: int
    ) -> None:
        """See `loop.h`.

        Args:
            device: descriptor of the device; it must stay open.
            room: bytes of the largest request.
            counters: 64-bit numbers to count in; the others are places among them.
            reads: where reads are counted.
            bytes: where bytes handed out are.
            hits: where pages that were kept are.
            misses: where pages that had to be decoded are.

        Raises:
            ValueError: a place that is none.
        """

    def add(self, handle: int, pages: Pages, extents: Sequence[tuple[int, int, int]]) -> None:
        """Answer reads of the file with that handle: (offset, size, physical address) of each part that is memory.

        Raises:
            ValueError: extents do not ascend.
        """

    def linger(self) -> None:
        """Look out for a request before the next wait sleeps, as after a small read."""

    def next(self, polite: bool) -> bytes | None:
        """The next request that is not answered here; None at a signal and, if `polite`, after a while.

        Raises:
            OSError: of reading the device; ENODEV when the file system is unmounted.
        """
