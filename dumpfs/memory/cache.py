"""Decoded pages that were read lately.

Small reads (a pointer here, a string there, a 4 KiB request of the kernel) come back to the same pages again
and again; long reads pass it by. Bounded in bytes; any thread may use it, and each worker process has its own.
"""

from __future__ import annotations

from collections.abc import Callable

from dumpfs.units import Pfn

DEFAULT_CACHE_BYTES = 16 << 20


class PageCache:
    """Blocks by number, in two generations: when the young one is half the limit, it becomes the old one.

    A hit costs a dict look-up and no bookkeeping. (Evicting the oldest entry of one dict does not: finding it means
    stepping over all that were deleted before, 7 us a page.)

    Args:
        limit: bytes of page content to keep at most; 0 keeps nothing.
    """

    def __init__(self, limit: int = DEFAULT_CACHE_BYTES) -> None:
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._lent: Callable[[], int] = int
        self._young: dict[Pfn, bytes] = {}
        self._old: dict[Pfn, bytes] = {}
        self._young_bytes = 0

    def get(self, block: Pfn) -> bytes | None:
        """The block's bytes, or None."""
        data = self._young.get(block)
        if data is None:
            data = self._old.get(block)
            if data is None:
                self.misses += 1
                return None
            self.put(block, data)  # asked for again: it belongs to the young
        self.hits += 1
        return data

    def put(self, block: Pfn, data: bytes) -> None:
        """Keep a block."""
        half = self.limit // 2
        if len(data) > half:
            return
        if self._young_bytes + len(data) > half:
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[block] = data
        self._young_bytes += len(data)

    def lend(self, used: Callable[[], int]) -> int:
        """Leave half of the limit to another keeper of pages, who tells by `used` how much it has; that half."""
        half = self.limit // 2
        self.limit -= half
        self._lent = used
        return half

    @property
    def used(self) -> int:
        """Bytes kept, also by who was lent a part of the limit."""
        return self._young_bytes + sum(map(len, self._old.values())) + self._lent()
