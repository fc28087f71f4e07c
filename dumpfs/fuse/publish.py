"""Content of slow files, built once in a helper process and seen by all workers.

A file that is not `ready` may take seconds to build (a classification of all pages, say). The worker whose request
meets it first forks a helper, which builds and puts the bytes into a memory file; every worker maps them from there.
Requests that need the file wait, others go on.

The memory file exists before the workers are forked. It begins with a table, by inode number, that is changed only
under a record lock; the contents follow, each from a page boundary on. A helper that dies leaves its row in the
state 'building' with a process id that no longer exists, and the next who looks takes over.

Functions of one `Publisher` are called from one thread; different processes may call at the same time.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple

import trio

from dumpfs.errors import DumpfsError
from dumpfs.fuse.eventloop import EventLoop
from dumpfs.fuse.process import is_alive, render_exit, spawn
from dumpfs.vfs.node import Node

_LOG = logging.getLogger("dumpfs")

_FIRST_POLL_SECONDS = 0.002
_LAST_POLL_SECONDS = 0.05
"""How often a waiting request looks whether the file is there; the news may come from any process."""
_MAX_TRIES = 3
"""Helpers that may die over one file before it is given up."""


class State(IntEnum):
    """How far the content of a file is."""

    EMPTY = 0
    BUILDING = 1
    READY = 2
    INLINE = 3
    """There is nothing to publish; every worker makes the content by itself."""
    FAILED = 4


class Row(NamedTuple):
    """What the table knows of one file."""

    ino: int
    state: int
    pid: int
    """Process that builds."""
    offset: int
    """Where content, or the message of a failure, begins in the memory file."""
    size: int
    """Its bytes."""
    number: int
    """Helpers that died; of a failed file its error number."""


_HEAD = struct.Struct("=QQ")  # rows in use, end of the contents
_ROW = struct.Struct("=QIIQQQ")
_MAX_ROWS = 2000
_TABLE_BYTES = -(-(_HEAD.size + _MAX_ROWS * _ROW.size) // mmap.PAGESIZE) * mmap.PAGESIZE


class BuildError(DumpfsError):
    """A file could not be built; said by the helper, heard by every worker."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class Publisher:
    """The contents of a mount's slow files. Made once, before the workers are forked.

    Args:
        loop: the event loop of the workers.
        on_build: called by the worker that starts a helper, to count.
    """

    def __init__(self, loop: EventLoop, on_build: Callable[[], None]) -> None:
        self._loop = loop
        self._on_build = on_build
        self._fd = os.memfd_create("dumpfs-views", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _TABLE_BYTES)
        self._table = mmap.mmap(self._fd, _TABLE_BYTES)
        _HEAD.pack_into(self._table, 0, 0, _TABLE_BYTES)

    async def prepare(self, node: Node) -> None:
        """Return when `node` can be read without delay.

        Raises:
            DumpfsError: it cannot be built.
        """
        if self._settled(node):
            return
        async with self._loop.waiting():
            child = 0
            pause = _FIRST_POLL_SECONDS
            while not self._settled(node):
                if child:
                    child = self._reap(node.ino, child)
                elif self._claim(node.ino):
                    child = self._start(node)
                await trio.sleep(pause)
                pause = min(pause * 1.5, _LAST_POLL_SECONDS)
            if child:
                os.waitpid(child, 0)  # it is on its last line

    def _settled(self, node: Node) -> bool:
        """Hand the content over if it is there; False while it is not.

        Raises:
            BuildError: it will never be.
        """
        row = self._find(node.ino)
        if row is None or row.state in (State.EMPTY, State.BUILDING):
            return False
        if row.state == State.FAILED:
            message = os.pread(self._fd, row.size, row.offset).decode("utf-8", "replace")
            raise BuildError(message, row.number)
        if row.state == State.READY:
            node.adopt(self._view(row))
        return True

    def adopt_published(self, find: Callable[[int], Node]) -> None:
        """Hand over whatever is there, so that this process can tell of it what any other can.

        Args:
            find: the node with an inode number; LookupError when there is none.
        """
        with self._locked():
            rows = [row for _, row in self._rows() if row.state == State.READY]
        for row in rows:
            try:
                node = find(row.ino)
            except LookupError:
                continue
            if not node.ready:
                node.adopt(self._view(row))

    def _view(self, row: Row) -> memoryview:
        if not row.size:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._fd, row.size, access=mmap.ACCESS_READ, offset=row.offset))

    # -- the helper

    def _start(self, node: Node) -> int:
        """Fork the helper that builds; its process id."""
        self._on_build()
        pid = spawn(lambda: self._build(node), on_parent_death=signal.SIGKILL)
        self._update(node.ino, State.BUILDING, pid=pid)
        return pid

    def _build(self, node: Node) -> int:
        """What the helper does."""
        os.close(self._loop.fd)  # else a mount whose workers are dead would not end before we do
        try:
            data = node.build()
        except DumpfsError as exc:
            _LOG.warning("%s", exc.message)
            self._finish(node.ino, State.FAILED, exc.message.encode("utf-8", "backslashreplace"), exc.errno)
        except Exception:  # noqa: BLE001  # the waiting requests must hear of it
            _LOG.exception("unexpected error while building inode %#x", node.ino)
            self._finish(node.ino, State.FAILED, b"building failed unexpectedly; see the log", errno.EIO)
        else:
            self._finish(node.ino, State.INLINE if data is None else State.READY, data or b"", 0)
        return 0

    def _finish(self, ino: int, state: State, data: bytes, number: int) -> None:
        with self._locked():
            count, offset = _HEAD.unpack_from(self._table)
            stop = offset + -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self._fd, stop)
            _HEAD.pack_into(self._table, 0, count, stop)
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        self._update(ino, state, pid=0, offset=offset, size=len(data), number=number)

    def _reap(self, ino: int, child: int) -> int:
        """Look after our helper: its id while it runs, 0 when it has died without a result."""
        pid, status = os.waitpid(child, os.WNOHANG)
        if not pid:
            return child
        row = self._find(ino)
        if row is not None and row.state == State.BUILDING and row.pid == child:
            self._bury(row, render_exit(status))
        return 0

    def _bury(self, row: Row, how: str) -> None:
        """The helper of a file died: let the next one try, or give the file up."""
        _LOG.warning("the helper that was building inode %#x %s", row.ino, how)
        tries = row.number + 1
        if tries < _MAX_TRIES:
            self._update(row.ino, State.EMPTY, pid=0, number=tries)
        else:
            message = f"inode {row.ino:#x} cannot be built: {tries} helper processes died"
            _LOG.error("%s", message)
            self._finish(row.ino, State.FAILED, message.encode(), errno.EIO)

    # -- the table

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _rows(self) -> Iterator[tuple[int, Row]]:
        count = _HEAD.unpack_from(self._table)[0]
        for place in range(_HEAD.size, _HEAD.size + count * _ROW.size, _ROW.size):
            yield place, Row._make(_ROW.unpack_from(self._table, place))

    def failures(self) -> dict[int, str]:
        """Files that could not be built, by inode number, with the reason; of all processes."""
        with self._locked():
            rows = [row for _, row in self._rows() if row.state == State.FAILED]
        return {row.ino: os.pread(self._fd, row.size, row.offset).decode("utf-8", "replace") for row in rows}

    def _find(self, ino: int) -> Row | None:
        with self._locked():
            return next((row for _, row in self._rows() if row.ino == ino), None)

    def _claim(self, ino: int) -> bool:
        """Whether it is up to this process to build now; the table then says that it does."""
        with self._locked():
            place, number = None, 0
            for here, row in self._rows():
                if row.ino == ino:
                    if row.state == State.BUILDING and is_alive(row.pid):
                        return False
                    if row.state not in (State.EMPTY, State.BUILDING):
                        return False
                    place, number = here, row.number
                    break
            if place is None:
                count, stop = _HEAD.unpack_from(self._table)
                if count == _MAX_ROWS:
                    raise BuildError("too many slow files were opened", errno.ENOSPC)
                place = _HEAD.size + count * _ROW.size
                _HEAD.pack_into(self._table, 0, count + 1, stop)
            _ROW.pack_into(self._table, place, ino, State.BUILDING, os.getpid(), 0, 0, number)
        return True

    def _update(self, ino: int, state: State, **changes: int) -> None:
        """Change a row, unless its content was published meanwhile."""
        with self._locked():
            for place, row in self._rows():
                if row.ino == ino and row.state in (State.EMPTY, State.BUILDING):
                    _ROW.pack_into(self._table, place, *row._replace(state=state, **changes))
