"""How a worker waits for its next request.

pyfuse3 looks its event loop up under the name `pyfuse3.trio`; its asyncio support puts another object there, and so
do we. What trio itself does between two requests (a lock, a registration with epoll, a turn of its scheduler) costs
more than a request for a page, and wakes every worker for each request. Requests are answered inline, so nearly
always no other task of the worker has anything to do meanwhile, and then the best wait is none at all: pyfuse3's
read(2) blocks, and the kernel wakes one worker.

Only while a handler awaits something (a slow view that is being built) do we hand the wait to trio. A read may then
still block, when another worker was quicker after trio woke us; a timer interrupts it, and pyfuse3 tries again.

One more thing is done for readers of single pages. Each of their requests costs two sleeps and wake-ups of a
processor, ours and theirs, which on a virtual machine take longer than the work: 15,000 requests/s were measured
with one worker, 46,000 with a look around of 50 us before we sleep. After larger reads it is not done.

Everything in here runs in the one thread of a worker.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import pyfuse3
import trio

_LINGER_NS = 200_000
"""How long to look for the next request after a small read: some wake-ups of a virtual processor, which take longest
on a machine that is otherwise idle (50 us there gave a tenth fewer requests)."""

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
        linger: set by a handler after a small read; the next wait then looks around before it sleeps.
        fd: the descriptor of the FUSE session, known after the first wait.
    """

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self) -> None:
        self.linger = False
        self.fd = -1
        self._cooperative = 1  # until `serve`: the first request is waited for beside a timeout
        self._lock = trio.Lock()
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
        self._lock = trio.Lock()
        self._ready = None
        signal.signal(signal.SIGALRM, _ignore)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Around what a handler awaits: other requests are answered meanwhile."""
        if not self._cooperative:
            signal.setitimer(signal.ITIMER_REAL, _INTERRUPT_SECONDS, _INTERRUPT_SECONDS)
        self._cooperative += 1
        try:
            yield
        finally:
            self._cooperative -= 1
            if not self._cooperative:
                signal.setitimer(signal.ITIMER_REAL, 0)

    # -- what pyfuse3 uses of trio

    open_nursery = staticmethod(trio.open_nursery)

    def Lock(self) -> EventLoop:  # the name of trio's class
        """Stands for `trio.Lock`; pyfuse3 has one, which serialises waits for the descriptor."""
        return self

    def __aenter__(self) -> Any:  # noqa: ANN401  # an awaitable
        """Take the lock; no wait of ours needs it while nothing can come between."""
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
        if self.linger:
            self.linger = False
            ready = self._ready or self._poll(fd)
            if not ready(0):
                _look_around(ready)
        return _DONE

    async def _wait_politely(self, fd: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(fd)
            if self._poll(fd)(0):  # another worker may have been quicker
                break
        # The lock that __aexit__ gives back is trio's, whatever other tasks did meanwhile.
        self._quick = False

    def _poll(self, fd: int) -> Callable[[int], list[tuple[int, int]]]:
        if self._ready is None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            self._ready = poll.poll
        return self._ready

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)


def _look_around(ready: Callable[[int], list[tuple[int, int]]]) -> None:
    """Return when a request has come, or after a while."""
    until = time.monotonic_ns() + _LINGER_NS
    while time.monotonic_ns() < until:
        os.sched_yield()  # the reader may be on this processor
        if ready(0):
            return


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """A handler that does nothing: the signal is there to interrupt a system call."""
