"""How a worker waits for its next request.

pyfuse3 looks its event loop up under the name `pyfuse3.trio`; its asyncio support puts another object there, and so
do we. What trio itself does between two requests (a lock, a registration with epoll, a turn of its scheduler) costs
more than a request for a page, and wakes every worker for each request. Requests are answered inline, so nearly
always no other task of the worker has anything to do meanwhile, and then the best wait is none at all: pyfuse3's
read(2) blocks, and the kernel wakes one worker.

Only while a handler awaits something (a slow view that is being built) do tasks take turns: see `dumpfs.fuse.tasks`. A
read may then still block, when another worker was quicker after we were woken; a timer interrupts it, and pyfuse3 tries
again.

Where the loop in C is there (`requests`), it waits and reads instead of libfuse, and what libfuse is to answer comes
by a socket; the rest is as told.

One more thing is done for readers of single pages. Each of their requests costs two sleeps and wake-ups of a
processor, ours and theirs, which on a virtual machine take longer than the work: 15,000 requests/s were measured
with one worker, 46,000 with a look around of 50 us before we sleep. After larger reads it is not done.

Everything in here runs in the one thread of a worker.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import pyfuse3

from dumpfs.fuse.tasks import Lock, Nursery, Task, Tasks

if TYPE_CHECKING:
    from dumpfs.fuse.requests import Reader, Requests
    from dumpfs.vfs.counters import SharedCounters

_LINGER_NS = 200_000
"""How long to look for the next request after a small read: some wake-ups of a virtual processor, which take longest
on a machine that is otherwise idle (50 us there gave a tenth fewer requests)."""

SMALL_READ = 64 << 10
"""Largest read of somebody who looks at single pages."""

_INTERRUPT_SECONDS = 0.02
"""How often a blocking read is interrupted while a handler waits."""


_NOTHING: Iterator[Any] = iter(())
"""Ended; kept, for a generator made for each wait would cost as much as what it stands for."""


class _Done:
    """An awaitable that is done: awaiting it costs no turn of the scheduler."""

    def __await__(self) -> Iterator[Any]:
        return _NOTHING


_DONE = _Done()


class EventLoop:
    """What pyfuse3 takes for the trio module.

    Attributes:
        tasks: runs what pyfuse3 starts.
        linger: set by a handler after a small read; the next wait then looks around before it sleeps.
        requests: takes the requests in place of libfuse, or None.
        fd: the descriptor of the FUSE session, known after the first wait.
    """

    class ClosedResourceError(Exception):
        """What pyfuse3 takes for the end of the mount."""

    def __init__(self) -> None:
        self.linger = False
        self.fd = -1
        self.requests: Requests | None = None
        self._cooperative = 1  # until `serve`: the first request is waited for beside a timeout
        self.tasks = Tasks()
        self._lock = Lock(self.tasks)
        self._quick = False
        self._ready: Callable[[int], list[tuple[int, int]]] | None = None
        self.lowlevel = self
        """Stands for `trio.lowlevel`."""

    def install(self) -> None:
        """Put this object where pyfuse3 looks for its event loop; before `pyfuse3.main` first runs."""
        pyfuse3.trio = self  # type: ignore[attr-defined]  # not among its stubs

    def serve(self) -> None:
        """From now on block while nothing else is going on; called by each worker before it serves."""
        self._cooperative = 0
        self._lock = Lock(self.tasks)
        self._ready = None
        signal.signal(signal.SIGALRM, _ignore)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Around what a handler awaits: other requests are answered meanwhile."""
        self._begin_waiting()
        try:
            yield
        finally:
            self._end_waiting()

    def _begin_waiting(self) -> None:
        if not self._cooperative:
            signal.setitimer(signal.ITIMER_REAL, _INTERRUPT_SECONDS, _INTERRUPT_SECONDS)
        self._cooperative += 1

    def _end_waiting(self) -> None:
        self._cooperative -= 1
        if not self._cooperative:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.requests is not None:
            self.requests.carry()  # a task that ends after its answer does not come to the next wait

    def run(self, max_tasks: int) -> None:
        """Answer requests until the file system is unmounted.

        Args:
            max_tasks: requests that may wait before no more are taken.
        """
        self.tasks.run(pyfuse3.main, 1, max_tasks)

    def close(self) -> None:
        """Close what requests come from, in a process that was forked from a worker and answers none."""
        if self.fd >= 0:  # else nothing is mounted yet
            os.close(self.fd)
        if self.requests is not None:
            self.requests.close()

    # -- by the loop in C

    def take_over(self, device: int, reader: Reader, counters: SharedCounters) -> None:
        """Have the loop in C take the requests of this worker; after `serve`.

        Args:
            device: the FUSE device that it reads.
            reader: answers reads that the loop does not.
            counters: where it counts.
        """
        from dumpfs.fuse.requests import Requests

        self.requests = Requests(device, self.fd, reader, counters, self._read_slowly)

    def _read_slowly(self, read: Callable[[], Awaitable[None]]) -> None:
        """Have a read answered by a task of its own; from now on other tasks have their turns."""
        self._begin_waiting()
        self.tasks.start(self._read_and_end(read))

    async def _read_and_end(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        finally:
            self._end_waiting()

    def _take(self, requests: Requests, fd: int) -> Any:  # noqa: ANN401  # an awaitable
        requests.carry()
        try:
            while not requests.take(polite=False):
                if self._cooperative:
                    return self._wait_with_lock(fd)
        except OSError as exc:
            raise _as_pyfuse3_expects(exc) from exc
        return _DONE

    async def _wait_with_lock(self, fd: int) -> None:
        self._quick = False  # we wait as others do from here on; the lock's owner must not take our flag for its own
        await self._lock.acquire()
        await self._wait_politely(fd)

    # -- what pyfuse3 uses of trio

    def open_nursery(self) -> Nursery:
        """Stands for `trio.open_nursery`."""
        return Nursery(self.tasks)

    def Lock(self) -> EventLoop:  # the name of trio's class
        """Stands for `trio.Lock`; pyfuse3 has one, which serialises waits for the descriptor."""
        return self

    def __aenter__(self) -> Any:  # noqa: ANN401  # an awaitable
        """Take the lock; no wait of ours needs it while nothing can come between."""
        if self.requests is not None:
            self.requests.carry()  # what waits for the lock would keep them
        self._quick = not self._cooperative
        return _DONE if self._quick else self._lock.acquire()

    def __aexit__(self, *_: object) -> _Done:
        """Give the lock back. A quick wait never lets another task run, so the flag is still its own."""
        if self._quick:
            self._quick = False
        else:
            self._lock.release()
        return _DONE

    def wait_readable(self, fd: int) -> Any:  # noqa: ANN401  # an awaitable
        """Stands for `trio.lowlevel.wait_readable`."""
        self.fd = fd
        if not self._quick:
            return self._wait_politely(fd)
        if self.requests is not None:
            return self._take(self.requests, fd)
        if self.linger:
            self.linger = False
            ready = self._ready or self._poll(fd)
            if not ready(0):
                _look_around(ready)
        return _DONE

    async def _wait_politely(self, fd: int) -> None:
        requests = self.requests
        try:
            come = False
            while not come:  # another worker may have been quicker
                await self.tasks.wait_readable(fd if requests is None else requests.fd)
                if requests is None:
                    come = bool(self._poll(fd)(0))
                else:
                    requests.carry()
                    come = requests.take(polite=True)
        except OSError as exc:
            raise _as_pyfuse3_expects(exc) from exc
        finally:
            self._quick = False  # the lock that __aexit__ gives back is `_lock`, whatever other tasks did meanwhile

    def _poll(self, fd: int) -> Callable[[int], list[tuple[int, int]]]:
        if self._ready is None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            self._ready = poll.poll
        return self._ready

    def current_task(self) -> Task:
        """Stands for `trio.lowlevel.current_task`, which is asked for a name."""
        return self.tasks.current

    def current_trio_token(self) -> None:
        """Stands for `trio.lowlevel.current_trio_token`, for other threads; there are none."""


def _as_pyfuse3_expects(error: OSError) -> BaseException:
    """What a failed read of the device means: the end of the mount, or the error."""
    return EventLoop.ClosedResourceError() if error.errno == errno.ENODEV else error


def _look_around(ready: Callable[[int], list[tuple[int, int]]]) -> None:
    """Return when a request has come, or after a while."""
    until = time.monotonic_ns() + _LINGER_NS
    while time.monotonic_ns() < until:
        os.sched_yield()  # the reader may be on this processor
        if ready(0):
            return


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """A handler that does nothing: the signal is there to interrupt a system call."""
