"""Decoded pages that were read lately.

Small reads (a pointer here, a string there, a 4 KiB request of the kernel) come back to the same pages again
and again; long reads pass it by. Bounded in bytes; any thread may use it, and each worker process has its own.
"""

from __future__ import annotations

from dumpfs.units import Pfn

DEFAULT_CACHE_BYTES = 16 << 20


class PageCache:
    """Blocks by number, evicted in the order they came in (a dict keeps it; no bookkeeping on a hit).

    Args:
        limit: bytes of page content to keep at most; 0 keeps nothing.
    """

    def __init__(self, limit: int = DEFAULT_CACHE_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self.hits = 0
        self.misses = 0
        self._pages: dict[Pfn, bytes] = {}

    def get(self, block: Pfn) -> bytes | None:
        """The block's bytes, or None."""
        data = self._pages.get(block)
        if data is None:
            self.misses += 1
        else:
            self.hits += 1
        return data

    def put(self, block: Pfn, data: bytes) -> None:
        """Keep a block, dropping the oldest ones to make room."""
        if len(data) > self.limit:
            return
        pages = self._pages
        old = pages.pop(block, None)
        if old is not None:
            self.used -= len(old)
        pages[block] = data
        self.used += len(data)
        while self.used > self.limit:
            try:
                oldest = next(iter(pages))
                self.used -= len(pages.pop(oldest))
            except (KeyError, StopIteration, RuntimeError):  # another thread evicted at the same moment
                break
