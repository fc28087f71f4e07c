"""Content of slow files, built once in a helper process and seen by all workers.

A file that is not `ready` may take seconds to build (a classification of all pages, say). The worker whose request
meets it first forks a helper, which builds and puts the bytes into a memory file; every worker maps them from there.
Requests that need the file wait, others go on.

The memory file exists before the workers are forked. It begins with a table, by inode number, that is changed only
under a record lock; the contents follow, each from a page boundary on. A helper that dies leaves its row in the
state 'building' with a process id that no longer exists, and the next who looks takes over. A helper whose worker dies
is adopted by the supervisor and goes on, for the requests of that worker are asked again.

Who asked for one file may soon want others that take the same knowledge of the kernel (`Node.wanted_next` and
`wanted_perhaps`). So a helper may leave a copy of itself behind, an orphan from the beginning, which knows what the
helper found out. It forks a helper for each file that is sure to be wanted, and for a moment stands by for the others:
in the state 'standby' the row of a file has its process id, and a worker that needs the file changes that to 'asked'.

Any process may be killed at any moment, and the lock is free then. So the table is changed by single stores of whole
words, in an order that leaves it valid after each.

Functions of one `Publisher` are called from one thread; different processes may call at the same time.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dumpfs.errors import DumpfsError
from dumpfs.fuse.eventloop import EventLoop
from dumpfs.fuse.process import end_unless_adopted, is_alive, limit_memory, render_exit, spawn
from dumpfs.fuse.rows import TAKEN, UNSETTLED, Row, State
from dumpfs.vfs.node import Node

_LOG = logging.getLogger("dumpfs")

_FIRST_POLL_SECONDS = 0.002
_LAST_POLL_SECONDS = 0.05
_POLL_SLOWDOWN = 1.03
"""How often a waiting request looks whether the file is there; the news may come from any process. By the slowdown, it
comes at most some hundredths later than it could."""
_ORPHANED = signal.SIGUSR1
"""What tells a helper that its worker died; SIGTERM shall end it."""
_STANDBY_SECONDS = 2.0
"""How long a process stands by; gdb takes a tenth of that from the script to what the script asks for."""
_STANDBY_POLL_SECONDS = 0.002
_HELPER_BYTES = 2 << 30
"""What a helper may take on top of what it has, before the file is given up."""
_MAX_TRIES = 3
"""Helpers that may die over one file before it is given up."""


# The table consists of 64-bit words. It begins with:
_COUNT = 0
"""Rows in use."""
_END = 1
"""Where the contents end in the memory file."""
_HEAD_WORDS = 2
_ROW_WORDS = 5
_STATE_BITS = 32
"""The second word of a row is its state, and above these bits the process id."""
_MAX_ROWS = 2000
_TABLE_BYTES = -(-8 * (_HEAD_WORDS + _MAX_ROWS * _ROW_WORDS) // mmap.PAGESIZE) * mmap.PAGESIZE


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
        self._table = memoryview(mmap.mmap(self._fd, _TABLE_BYTES)).cast("Q")
        self._table[_END] = _TABLE_BYTES

    async def prepare(self, node: Node, patience: float | None = None) -> bool:
        """Return when `node` can be read without delay, or False when that takes more than `patience` seconds.

        Raises:
            DumpfsError: it cannot be built.
        """
        if self.settled(node):
            return True
        until = None if patience is None else time.monotonic() + patience
        async with self._loop.waiting():
            child = 0
            pause = _FIRST_POLL_SECONDS
            try:
                while not self.settled(node):
                    if until is not None and time.monotonic() >= until:
                        self._loop.tasks.start(self._see_through(node, child))
                        return False
                    if child:
                        child = self._reap(node.ino, child)
                    elif self._claim(node.ino):
                        child = self._start(node, os.getppid())
                    await self._loop.tasks.sleep(pause)
                    pause = min(pause * _POLL_SLOWDOWN, _LAST_POLL_SECONDS)
            except BuildError:
                _wait_for(child)
                raise
            _wait_for(child)
        return True

    async def _see_through(self, node: Node, child: int) -> None:
        """Look after our child, if the helper is one, until it has ended, though nobody waits for it any more."""
        async with self._loop.waiting():
            while child:
                await self._loop.tasks.sleep(_LAST_POLL_SECONDS)
                child = self._reap(node.ino, child)

    def begin(self, node: Node) -> None:
        """Start the helper for a file that somebody will surely want; before the mount and its workers are there.

        Should it fail, nobody is told: whoever asks for the file has it tried again.
        """
        if not node.ready and self._claim(node.ino):
            self._start(node, os.getpid(), asked=False)

    def settled(self, node: Node) -> bool:
        """Hand the content over if it is there; False while it is not.

        Raises:
            BuildError: it will never be.
        """
        row = self._find(node.ino)
        if row is None or row.state in UNSETTLED:
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

    def _start(self, node: Node, supervisor: int, *, asked: bool = True) -> int:
        """Fork the helper that builds; its process id."""
        self._on_build()
        try:
            pid = spawn(lambda: self._help(node, supervisor, asked=asked), on_parent_death=_ORPHANED)
        except OSError:
            self._update(node.ino, State.EMPTY, pid=0)
            raise
        self._update(node.ino, State.BUILDING, pid=pid)
        return pid

    def _help(self, node: Node, supervisor: int, *, asked: bool) -> int:
        """What the helper does."""
        self._loop.close()  # else requests of a dead worker, or a mount without any, would not end before we do
        end_unless_adopted(supervisor, _ORPHANED)
        return self._build(node, supervisor, asked=asked)

    def _build(self, node: Node, supervisor: int, *, asked: bool = True) -> int:
        """Build a file and publish it."""
        self._update(node.ino, State.BUILDING, pid=os.getpid())  # who started us may die before it can say so
        limit_memory(_HELPER_BYTES)
        try:
            data = node.build()
        except DumpfsError as exc:
            if not asked:
                self._update(node.ino, State.EMPTY, pid=0)
                return 0
            _LOG.warning("%s", exc.message)
            self._finish(node.ino, State.FAILED, exc.message.encode("utf-8", "backslashreplace"), exc.errno)
        except MemoryError:
            _LOG.error("not enough memory to build inode %#x", node.ino)
            self._finish(node.ino, State.FAILED, b"not enough memory to build it", errno.ENOMEM)
        except Exception:  # noqa: BLE001  # the waiting requests must hear of it
            _LOG.exception("unexpected error while building inode %#x", node.ino)
            self._finish(node.ino, State.FAILED, b"building failed unexpectedly; see the log", errno.EIO)
        else:
            self._begin_next(node, supervisor)
            self._finish(node.ino, State.INLINE if data is None else State.READY, data or b"", 0)
        return 0

    def _begin_next(self, node: Node, supervisor: int) -> None:
        """Have made what will be wanted after `node`; before that is published, so that nobody else begins."""
        sure = [following for following in node.wanted_next() if self._is_free(following, State.BUILDING)]
        perhaps = [following for following in node.wanted_perhaps() if self._is_free(following, State.STANDBY)]
        if not sure and not perhaps:
            return
        try:
            pid = spawn(lambda: self._go_on(sure, perhaps, supervisor), on_parent_death=_ORPHANED, guardian=supervisor)
        except OSError:  # too many processes; who wants these files will find that out
            for following in (*sure, *perhaps):
                self._update(following.ino, State.EMPTY, pid=0)
        else:
            for following in (*sure, *perhaps):
                self._update(following.ino, pid=pid)

    def _is_free(self, node: Node, state: State) -> bool:
        """Whether nobody else builds a node; it then is in `state`, by this process."""
        if node.ready or node.prepared_by() is not node:
            return False
        try:
            return self._claim(node.ino, state)
        except BuildError:
            return False  # too many files; whoever asks for it will be told

    def _go_on(self, sure: Sequence[Node], perhaps: Sequence[Node], supervisor: int) -> int:
        """What the copy of a helper does: fork helpers for some files, and for others when they are asked for."""
        for node in (*sure, *perhaps):
            self._update(node.ino, pid=os.getpid())
        children = dict(self._fork(node, supervisor, asked=False) for node in sure)
        waiting = {node.ino: node for node in perhaps}
        for node in perhaps:
            node.load()
        until = time.monotonic() + _STANDBY_SECONDS
        while waiting:
            leave = time.monotonic() >= until
            for ino in list(waiting):
                asked = self._was_asked(ino, leave)
                if asked:
                    children.update((self._fork(waiting[ino], supervisor),))
                if asked or leave:
                    del waiting[ino]
            self._wait_for_children(children, os.WNOHANG)
            time.sleep(_STANDBY_POLL_SECONDS)
        self._wait_for_children(children)
        return 0

    def _fork(self, node: Node, supervisor: int, *, asked: bool = True) -> tuple[int, int]:
        """Fork a helper; its process id and the file's inode number."""
        self._update(node.ino, State.BUILDING)
        pid = spawn(lambda: self._build(node, supervisor, asked=asked), on_parent_death=_ORPHANED, guardian=supervisor)
        self._update(node.ino, pid=pid)
        return pid, node.ino

    def _wait_for_children(self, children: dict[int, int], options: int = 0) -> None:
        """Take children that have ended out of the table of inode numbers by process ids."""
        while children:
            pid, status = os.waitpid(-1, options)
            if not pid:
                break
            self._look_back(children.pop(pid), pid, status)

    def _finish(self, ino: int, state: State, data: bytes, number: int) -> None:
        with self._locked():
            offset = self._table[_END]
            stop = offset + -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self._fd, stop)
            self._table[_END] = stop
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        self._update(ino, state, pid=0, offset=offset, size=len(data), number=number)

    def _reap(self, ino: int, child: int) -> int:
        """Look after our helper: its id while it runs, 0 when it has died without a result."""
        pid, status = os.waitpid(child, os.WNOHANG)
        if not pid:
            return child
        self._look_back(ino, child, status)
        return 0

    def _look_back(self, ino: int, child: int, status: int) -> None:
        """A helper has ended: see whether it has done what it was there for."""
        row = self._find(ino)
        if row is not None and row.state == State.BUILDING and row.pid == child:
            self._bury(row, render_exit(status))

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
        for place in range(_HEAD_WORDS, _HEAD_WORDS + self._table[_COUNT] * _ROW_WORDS, _ROW_WORDS):
            ino, progress, offset, size, number = self._table[place : place + _ROW_WORDS]
            state, pid = progress & (1 << _STATE_BITS) - 1, progress >> _STATE_BITS
            yield place, Row(ino, state, pid, offset, size, number)

    def _put(self, place: int, row: Row) -> None:
        """Write a row; last its state, which says what the rest means."""
        self._table[place] = row.ino
        self._table[place + 2] = row.offset
        self._table[place + 3] = row.size
        self._table[place + 4] = row.number
        self._table[place + 1] = row.state | row.pid << _STATE_BITS

    def failures(self) -> dict[int, str]:
        """Files that could not be built, by inode number, with the reason; of all processes."""
        with self._locked():
            rows = [row for _, row in self._rows() if row.state == State.FAILED]
        return {row.ino: os.pread(self._fd, row.size, row.offset).decode("utf-8", "replace") for row in rows}

    def _find(self, ino: int) -> Row | None:
        with self._locked():
            return next((row for _, row in self._rows() if row.ino == ino), None)

    def _claim(self, ino: int, state: State = State.BUILDING) -> bool:
        """Whether it is up to this process to build; the table then says `state`. A process that stands by is asked."""
        with self._locked():
            for place, row in self._rows():
                if row.ino == ino:
                    dead = row.state in TAKEN and not is_alive(row.pid)
                    if dead:
                        _LOG.warning("process %d, which was building inode %#x, is gone; another begins", row.pid, ino)
                    free = dead or row.state == State.EMPTY
                    if free:
                        self._put(place, row._replace(state=state, pid=os.getpid()))
                    elif row.state == State.STANDBY:
                        self._put(place, row._replace(state=State.ASKED))
                    return free
            count = self._table[_COUNT]
            if count == _MAX_ROWS:
                raise BuildError("too many slow files were opened", errno.ENOSPC)
            row = Row(ino, state, os.getpid(), 0, 0, 0)
            self._put(_HEAD_WORDS + count * _ROW_WORDS, row)
            self._table[_COUNT] = count + 1
        return True

    def _was_asked(self, ino: int, leave: bool) -> bool:
        """Whether somebody wants a file that we stand by for; if not and we `leave`, the next may build it."""
        with self._locked():
            for place, row in self._rows():
                if row.ino == ino and row.pid == os.getpid():
                    if row.state == State.STANDBY and leave:
                        self._put(place, row._replace(state=State.EMPTY, pid=0))
                    return row.state == State.ASKED
        return False

    def _update(self, ino: int, state: State | None = None, **changes: int) -> None:
        """Change a row, unless its content was published meanwhile."""
        with self._locked():
            for place, row in self._rows():
                if row.ino == ino and row.state in UNSETTLED:
                    self._put(place, row._replace(state=row.state if state is None else state, **changes))


def _wait_for(child: int) -> None:
    """Wait for the end of a helper, if there is one, that has said what it had to say."""
    if child:
        os.waitpid(child, 0)
