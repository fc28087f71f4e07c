"""Page data of a large dump, written past the page cache.

A cached page costs its allocation, a copy and the writing back, together about as much as snappy's work on the three
pages that it holds; and a dump of many gigabytes would drive much else out of memory. Measured on ext4, 5.2 GB with
snappy: 5.6 s through the cache, 3.7 s past it.

Only page data go this way. Everything else stays in the cache, and in pages of its own: where the same page is written
in both ways at once, the kernel promises nothing.

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
"""What offsets, lengths and addresses are multiples of; a disk that asks for more refuses."""
_COPIED = 2 << 20
"""Bytes copied before they are written: as fast as more, and what every worker has beside a batch."""
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class UncachedFile:
    """A second way into a file, for several processes at once.

    Args:
        fd: opened with O_DIRECT; closed by `close`.

    Raises:
        OSError: there is no memory for the copies.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.refused = False
        """Whether the file was found not to take such writes."""
        self._room = mmap.mmap(-1, _COPIED, flags=mmap.MAP_PRIVATE)  # begins at a page; each forked process has its own

    @classmethod
    def of(cls, fd: int) -> UncachedFile | None:
        """The other way into the file open as `fd`; None where it is not to be had, or may be no better.

        That is anything but a file on a file system of one block device: over a network, latency would be waited for.
        """
        what = os.fstat(fd)
        if not stat.S_ISREG(what.st_mode) or not os.major(what.st_dev):
            return None
        return cls._reopened(fd)

    @classmethod
    def _reopened(cls, fd: int) -> UncachedFile | None:
        try:
            return cls(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:  # the file system has no such thing, there is no /proc, or no memory
            return None

    def write(self, offset: int, views: Sequence[memoryview]) -> int:
        """Write `views` one behind the other.

        Args:
            offset: multiple of `BLOCK`.
            views: of bytes, none empty; together a multiple of `BLOCK`.

        Returns:
            Bytes of `views` that were written; the rest, all of them perhaps, must go the other way.

        Raises:
            OSError: as write(2), but not that the file cannot be written like this.
        """
        done = 0
        for nbytes, buffers in self._pieces(views):
            if self.refused:
                break
            try:
                written = os.pwritev(self._fd, buffers, offset + done)
            except OSError as exc:
                if exc.errno not in _REFUSALS:
                    raise
                self.refused = True
                break
            done += written
            if written < nbytes:
                break
        return done

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _pieces(self, views: Sequence[memoryview]) -> Iterator[tuple[int, list[Buffer]]]:
        """Bytes that come next and the blocks to write for them: copies, but for those the first view has in place."""
        first, *others = views
        whole = len(first) - len(first) % BLOCK if _address(first) % BLOCK == 0 else 0
        blocks: list[Buffer] = [first[:whole]] if whole else []
        room, used = memoryview(self._room), 0
        for view in (first[whole:], *others):
            at = 0
            while at < len(view):
                count = min(len(view) - at, _COPIED - used)
                room[used : used + count] = view[at : at + count]
                at, used = at + count, used + count
                if used == _COPIED:
                    yield whole + used, [*blocks, room]
                    whole, blocks, used = 0, [], 0
        if used:
            blocks.append(room[:used])
        if blocks:
            yield whole + used, blocks


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
