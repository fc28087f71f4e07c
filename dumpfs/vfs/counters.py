"""Numbers and bad pages that all worker processes of a mount share, for /status and the log.

Lives in anonymous shared memory made before the workers are forked. Each process adds to its own row of numbers
without a lock; totals are sums over the rows, so a reader may see a number that is a moment old. Bad pages are rare:
their list is kept under a record lock, so that each is named once, whichever worker met it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from enum import IntEnum

from dumpfs.errors import PageError
from dumpfs.memory.cache import PageCache
from dumpfs.units import PageState, Pfn

MAX_WORKERS = 64
"""Rows of numbers: more processes than this never serve one mount."""


class Count(IntEnum):
    """Position of a number in a process's row."""

    PID = 0
    """0 while the row is free."""
    REQUESTS = 1
    READS = 2
    BYTES = 3
    """Bytes handed out by reads."""
    ERRORS = 4
    """Requests answered with an error that a file gave as its own: bad and excluded pages, a failing disk."""
    BUGS = 5
    """Requests answered with EIO because a handler raised what it should not."""
    CACHE_HITS = 6
    CACHE_MISSES = 7
    BUILT = 8
    """Slow files whose building this process started."""
    NATIVE_HITS = 10
    NATIVE_MISSES = 11
    """As CACHE_HITS and CACHE_MISSES, of pages that the loop in C keeps."""
    CACHE_BYTES = 12
    """Bytes of decoded pages that this process keeps."""
    RESTARTS = 9
    """Workers that were started in place of one that died; only in the row of the supervisor."""


_WORDS = 16
"""64-bit words of a row: two cache lines, so that neighbours do not fight over one."""
_ROWS_BYTES = (MAX_WORKERS + 1) * _WORDS * 8
_SUPERVISOR = MAX_WORKERS

_HEAD = struct.Struct("=QQ")  # runs in the list, pages that no longer fitted
_RUN = struct.Struct("=QQB55s")  # first pfn, one past the last, length of the reason, the reason in UTF-8
MAX_RUNS = 1000
"""Runs of bad pages that are named; pages beyond are only counted."""
_NEVER = 1 << 64
"""More than any page number."""
_SIZE = _ROWS_BYTES + _HEAD.size + MAX_RUNS * _RUN.size

_NAMES: dict[Count, str] = {
    Count.REQUESTS: "requests",
    Count.READS: "reads",
    Count.BYTES: "bytes_read",
    Count.ERRORS: "errors",
    Count.BUGS: "unexpected_errors",
    Count.CACHE_HITS: "cache_hits",
    Count.CACHE_MISSES: "cache_misses",
    Count.CACHE_BYTES: "cache_bytes",
    Count.BUILT: "views_built",
    Count.RESTARTS: "workers_restarted",
}


class SharedCounters:
    """Counters of a mount; implements `vfs.context.Counters`.

    Args:
        cache: this process's page cache (each worker forks with its own copy), or None.

    Attributes:
        mine: the row of this process; add to it by `Count`. Belongs to the supervisor until `attach`.
    """

    def __init__(self, cache: PageCache | None = None) -> None:
        # A memory file rather than anonymous memory, because the lock needs a descriptor.
        self._fd = os.memfd_create("dumpfs-counters", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _SIZE)
        self._map = mmap.mmap(self._fd, _SIZE)
        self._words = memoryview(self._map)[:_ROWS_BYTES].cast("Q")
        self._cache = cache
        self._hits_before = self._misses_before = 0
        self._known: list[tuple[Pfn, Pfn]] = []
        self.mine = self._row(_SUPERVISOR)

    def _row(self, index: int) -> memoryview:
        return self._words[index * _WORDS : (index + 1) * _WORDS]

    def attach(self, worker: int) -> None:
        """Count from now on as worker number `worker` (0 to MAX_WORKERS - 1), in the process that is it."""
        self.mine = self._row(worker)
        if self._cache is not None:  # what it counted before it came here is another's
            self._hits_before = self.mine[Count.CACHE_HITS] - self._cache.hits
            self._misses_before = self.mine[Count.CACHE_MISSES] - self._cache.misses
        self.mine[Count.PID] = os.getpid()

    def asked(self, worker: int) -> int:
        """How often this and earlier processes in the row of a worker were asked something; any process may look."""
        row = self._row(worker)
        return int(row[Count.REQUESTS] + row[Count.READS])

    def detach(self, worker: int) -> None:
        """Forget the process of a worker that has ended; what it counted stays."""
        self._row(worker)[Count.PID] = self._row(worker)[Count.CACHE_BYTES] = 0

    def restarted(self) -> None:
        """Count a worker that was started in place of a dead one; the supervisor calls it."""
        self._row(_SUPERVISOR)[Count.RESTARTS] += 1

    def publish(self) -> None:
        """Copy what this process's cache counted into its row."""
        if self._cache is not None:
            self.mine[Count.CACHE_HITS] = self._hits_before + self._cache.hits
            self.mine[Count.CACHE_MISSES] = self._misses_before + self._cache.misses
            self.mine[Count.CACHE_BYTES] = self._cache.used

    def total(self, count: Count) -> int:
        """One number, summed over all processes."""
        return sum(self._words[count::_WORDS])

    def values(self) -> Mapping[str, int]:
        """See `Counters`."""
        self.publish()
        values = {name: self.total(count) for count, name in _NAMES.items()}
        values[_NAMES[Count.CACHE_HITS]] += self.total(Count.NATIVE_HITS)
        values[_NAMES[Count.CACHE_MISSES]] += self.total(Count.NATIVE_MISSES)
        dropped = self._head()[1]
        if dropped:
            values["bad_pages_not_named"] = dropped
        return values

    def workers(self) -> Sequence[int]:
        """See `Counters`."""
        pids = (self._row(i)[Count.PID] for i in range(MAX_WORKERS))
        return tuple(pid for pid in pids if pid)

    # -- bad pages

    def _head(self) -> tuple[int, int]:
        count, dropped = _HEAD.unpack_from(self._map, _ROWS_BYTES)
        return min(count, MAX_RUNS), dropped

    def _run(self, index: int) -> tuple[Pfn, Pfn, str]:
        first, stop, length, reason = _RUN.unpack_from(self._map, _ROWS_BYTES + _HEAD.size + index * _RUN.size)
        return first, stop, reason[:length].decode("utf-8", "replace")

    def bad_runs(self) -> Sequence[tuple[Pfn, Pfn, str]]:
        """See `Counters`."""
        return sorted(self._run(i) for i in range(self._head()[0]))

    def bad_page(self, error: PageError) -> bool:
        """See `Counters`; pages that were left out on purpose, or are no RAM, are not bad.

        True for a page that begins a new run; one that lengthens a known run is in /status, but no news.
        """
        pfn = error.pfn
        if error.state in (PageState.EXCLUDED, PageState.ABSENT) or self._is_known(pfn):
            return False
        state = error.state.name.lower()
        reason = _cut(f"{state}: {error.detail}" if error.detail else state)
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            new = self._remember(pfn, reason)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self._known = [(first, stop) for first, stop, _ in self.bad_runs()]
        return new

    def _is_known(self, pfn: Pfn) -> bool:
        """Whether a run that this process has seen holds the page; without the lock, for pages met again."""
        index = bisect_right(self._known, (pfn, _NEVER)) - 1
        return index >= 0 and pfn < self._known[index][1]

    def _remember(self, pfn: Pfn, reason: str) -> bool:
        """Put a page into the list, under the lock; True when it begins a run."""
        count, dropped = self._head()
        text = reason.encode()
        for index in range(count):
            first, stop, why = self._run(index)
            if first <= pfn < stop:
                return False
            if why == reason and pfn in (stop, first - 1):
                self._set_run(index, min(pfn, first), max(pfn + 1, stop), text)
                return False
        if count == MAX_RUNS:
            _HEAD.pack_into(self._map, _ROWS_BYTES, count, dropped + 1)
            return False
        self._set_run(count, pfn, pfn + 1, text)
        _HEAD.pack_into(self._map, _ROWS_BYTES, count + 1, dropped)
        return True

    def _set_run(self, index: int, first: Pfn, stop: Pfn, text: bytes) -> None:
        offset = _ROWS_BYTES + _HEAD.size + index * _RUN.size
        _RUN.pack_into(self._map, offset, first, stop, len(text), text)


def _cut(reason: str, limit: int = 55) -> str:
    """`reason`, cut to `limit` bytes of UTF-8 between two characters."""
    return reason.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
