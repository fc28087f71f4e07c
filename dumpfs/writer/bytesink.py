"""Where the bytes of a dump go: a file by position, or a flattened stream.

A sink is used by the parent process and, through the same file descriptor, by forked workers. `concurrent` says whether
several may write at once; those of a stream are let in one after the other, in order.

Source: makedumpfile common.h and makedumpfile.c (the flattened format: a 4 KiB header, records of offset, size and data
in big-endian, an end mark of two times -1).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from typing import Protocol

from dumpfs.structs import Buffer
from dumpfs.writer.uncached import UncachedFile

FLAT_SIGNATURE = b"makedumpfile\0\0\0\0"
FLAT_HEADER_SIZE = 4096
_FLAT_TYPE, _FLAT_VERSION = 1, 1
_RECORD = struct.Struct(">qq")
_PAIR = struct.Struct(">qq")
_END = _RECORD.pack(-1, -1)
_MAX_IOV = 1000
"""Buffers of one writev; IOV_MAX is 1024 on Linux."""


class ByteSink(Protocol):
    """Bytes by position."""

    concurrent: bool
    """Whether pieces may be written in any order and by several processes at once."""

    @property
    def waits(self) -> bool:
        """Whether writing page data takes time without work: other work can be done meanwhile."""

    def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """Write `chunks` one behind the other from `offset` on.

        Raises:
            OSError: with ENOSPC or EFBIG when there is no room, within the limit or on the device.
        """

    def write_data(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """Write page data: as `write_at`, and zeros behind them as the file's form asks for.

        Raises:
            OSError: as `write_at`.
        """

    def reserve(self, offset: int, size: int) -> None:
        """Make sure that `size` bytes at `offset` can be written later.

        Raises:
            OSError: there is no room for them.
        """

    def sync(self) -> None:
        """Have on the disk what was written so far, where there is a disk."""

    def finish(self) -> None:
        """Write what the form needs at its end."""


class PlainSink:
    """A file or block device.

    Args:
        fd: open for writing; not closed here.
        limit: bytes it may grow to (-L), or None.
    """

    concurrent = True

    def __init__(self, fd: int, limit: int | None = None) -> None:
        self.fd = fd
        self._limit = limit
        self.alignment = 1
        """What page data begin at multiples of. Zeros are put behind them up to the next one: what was there before, on
        a device or when an earlier run is continued, must not stay amid a finished dump."""
        self.uncached: UncachedFile | None = None
        """The way past the page cache for page data, where `alignment` is `uncached.BLOCK`."""

    @property
    def waits(self) -> bool:
        """See `ByteSink.waits`."""
        return self.uncached is not None and not self.uncached.refused

    def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """See `ByteSink.write_at`."""
        self._write(offset, self._within_limit(offset, chunks))

    def write_data(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """See `ByteSink.write_data`."""
        padding = -(offset + sum(len(chunk) for chunk in chunks)) % self.alignment
        views = self._within_limit(offset, [*chunks, bytes(padding)])
        if self.uncached is not None and views:
            done = self.uncached.write(offset, views)
            offset += done
            views = _after(views, done)
        self._write(offset, views)

    def _within_limit(self, offset: int, chunks: Sequence[Buffer]) -> list[memoryview]:
        views = [memoryview(chunk) for chunk in chunks if len(chunk)]
        if self._limit is not None and offset + sum(len(view) for view in views) > self._limit:
            raise OSError(errno.EFBIG, f"the limit of {self._limit} bytes is reached")
        return views

    def _write(self, offset: int, views: list[memoryview]) -> None:
        while views:
            group = views[:_MAX_IOV]
            done = os.pwritev(self.fd, group, offset)
            offset += done
            views = _after(views, done)

    def reserve(self, offset: int, size: int) -> None:
        """See `ByteSink.reserve`; on a device there is room or there is not."""
        if size and stat.S_ISREG(os.fstat(self.fd).st_mode):
            if self._limit is not None and offset + size > self._limit:
                raise OSError(errno.EFBIG, f"the limit of {self._limit} bytes is reached")
            os.posix_fallocate(self.fd, offset, size)

    def sync(self) -> None:
        """See `ByteSink.sync`."""
        try:
            os.fsync(self.fd)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # a device that has no such thing
                raise

    def finish(self) -> None:
        """Nothing is needed."""


class FlatSink:
    """A flattened stream on a file, pipe or socket.

    Args:
        fd: open for writing; not closed here.
        limit: bytes of the stream (-L), or None.
    """

    concurrent = False
    waits = False

    def __init__(self, fd: int, limit: int | None = None) -> None:
        self.fd = fd
        self._limit = limit
        self._written = _shared_counter()

    def begin(self) -> None:
        """Write the header of the stream."""
        header = FLAT_SIGNATURE + _PAIR.pack(_FLAT_TYPE, _FLAT_VERSION)
        self._put([header.ljust(FLAT_HEADER_SIZE, b"\0")])

    def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """See `ByteSink.write_at`; one record."""
        total = sum(len(chunk) for chunk in chunks)
        if total:
            self._put([_RECORD.pack(offset, total), *chunks])

    def write_data(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """See `ByteSink.write_data`; nothing is put behind it."""
        self.write_at(offset, chunks)

    def reserve(self, offset: int, size: int) -> None:
        """Nothing can be kept free in a stream."""

    def sync(self) -> None:
        """Nothing: a stream's reader sees the mark of an incomplete dump cleared only after everything else."""

    def finish(self) -> None:
        """Write the end mark."""
        self._put([_END], reserve=0)

    def _put(self, chunks: Sequence[Buffer], reserve: int = len(_END)) -> None:
        views = [memoryview(chunk) for chunk in chunks if len(chunk)]
        total = sum(len(view) for view in views)
        written = self._written[0]
        if self._limit is not None and written + total + reserve > self._limit:
            raise OSError(errno.EFBIG, f"the limit of {self._limit} bytes is reached")
        while views:
            views = _after(views, os.writev(self.fd, views[:_MAX_IOV]))
        self._written[0] = written + total


class NullSink:
    """A sink that keeps nothing, for passes that only look."""

    concurrent = True
    waits = False

    def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """Nothing is kept."""

    def write_data(self, offset: int, chunks: Sequence[Buffer]) -> None:
        """See `ByteSink.write_data`; nothing is put behind it."""
        self.write_at(offset, chunks)

    def reserve(self, offset: int, size: int) -> None:
        """Nothing is kept."""

    def sync(self) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing is kept."""


def _shared_counter() -> memoryview:
    """One signed 64-bit number, zero, that forked processes share."""
    import mmap

    return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")


def _after(views: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `views` when `done` bytes of them were written."""
    for i, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[i + 1 :]] if done else views[i:]
        done -= len(view)
    return []
