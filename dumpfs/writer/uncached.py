"""Page data of a large dump, written past the page cache.

A cached page costs its allocation, a copy and the writing back, together about as much as snappy's work on the three
pages that it holds; and a dump of many gigabytes would drive everything else out of memory, its source first. Measured
on ext4, 5.2 GB with snappy: 5.6 s through the cache, 3.9 s past it.

Only page data go this way. Everything else stays in the cache, in pages of its own: the kernel does not promise that
one page of a file can be written in both ways at once.

Sources: open(2) on O_DIRECT (offset, length and address are multiples of the block size); Linux fs/iomap/direct-io.c.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np

from dumpfs.structs import Buffer

BLOCK = 4096
"""What offsets, lengths and addresses are multiples of; no disk asks for more."""
_COPIED = 2 << 20
"""Bytes copied before they are written: as fast as more, and what every worker has beside a batch."""
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class UncachedFile:
    """A second way into a file, for several processes at once.

    Args:
        fd: opened with O_DIRECT; closed by `close`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._refused = False
        self._room: mmap.mmap | None = None
        self._owner = 0

    @classmethod
    def of(cls, fd: int) -> UncachedFile | None:
        """The other way into the file open as `fd`; None where it is not to be had, or was found to be no better.

        That is anything but a file on a block device of this machine: over a network, latency would be waited for.
        """
        what = os.fstat(fd)
        if not stat.S_ISREG(what.st_mode) or not os.major(what.st_dev):
            return None
        return cls._reopened(fd)

    @classmethod
    def _reopened(cls, fd: int) -> UncachedFile | None:
        try:
            return cls(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:  # the file system has no such thing, or there is no /proc
            return None

    def write(self, offset: int, views: Sequence[memoryview]) -> int:
        """Write `views` one behind the other, and zeros up to the next multiple of `BLOCK`.

        Args:
            offset: multiple of `BLOCK`.
            views: of bytes.

        Returns:
            Bytes of `views` that were written; the rest, all of them perhaps, must go the other way.

        Raises:
            OSError: as write(2), but not that the file cannot be written like this.
        """
        done = 0
        for nbytes, buffers in self._pieces(views):
            if self._refused:
                break
            try:
                written = min(os.pwritev(self._fd, buffers, offset + done), nbytes)
            except OSError as exc:
                if exc.errno not in _REFUSALS:
                    raise
                self._refused = True
                break
            done += written
            if written < nbytes:
                break
        return done

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _pieces(self, views: Sequence[memoryview]) -> Iterator[tuple[int, list[Buffer]]]:
        """Bytes of `views` that come next, and the blocks to write for them: in place but for the last, or copied."""
        if len(views) == 1 and _address(views[0]) % BLOCK == 0:
            view, used = views[0], len(views[0]) % BLOCK
            if not used:
                yield len(view), [view]
                return
            last = self._memory()[:BLOCK]
            last[:used] = view[len(view) - used :]
            last[used:] = bytes(BLOCK - used)
            yield len(view), [view[: len(view) - used], last]
            return
        room, used = self._memory(), 0
        for view in views:
            at = 0
            while at < len(view):
                count = min(len(view) - at, _COPIED - used)
                room[used : used + count] = view[at : at + count]
                at, used = at + count, used + count
                if used == _COPIED:
                    yield used, [room]
                    used = 0
        if used:
            padded = -(-used // BLOCK) * BLOCK
            room[used:padded] = bytes(padded - used)
            yield used, [room[:padded]]

    def _memory(self) -> memoryview:
        """This process's own memory, at a page boundary."""
        if self._room is None or self._owner != os.getpid():
            self._room = mmap.mmap(-1, _COPIED, flags=mmap.MAP_PRIVATE)
            self._owner = os.getpid()
        return memoryview(self._room)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
