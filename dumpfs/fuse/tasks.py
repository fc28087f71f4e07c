"""The little of trio that a mount needs: tasks, a lock, sleeping, and waiting for a descriptor.

Importing trio took 0.1 s, half of what `dumpfs mount` took, and read 150 files. A worker answers its requests inline;
only while a slow view is being built do a few tasks wait beside each other. So this is a queue of coroutines, without
cancellation, threads, or anything else that takes a library to get right.

A coroutine gives way by yielding nothing in particular; whoever knows what it waits for puts its task back into the
queue. A `Tasks` belongs to one thread.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any


@coroutine
def _give_way() -> Generator[None, None, None]:
    yield


class Task:
    """A coroutine on its way."""

    __slots__ = ("coroutine", "name")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        self.coroutine = coroutine
        self.name = name


class Tasks:
    """Tasks that take turns.

    Attributes:
        current: the task whose turn it is.
    """

    current: Task

    def __init__(self) -> None:
        self._live: dict[Task, None] = {}  # in the order they were started
        self._ready: deque[Task] = deque()
        self._asleep: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._readers: dict[int, Task] = {}
        self._poll = select.poll()
        self._stopped = False

    def run(self, main: Callable[..., Coroutine[Any, Any, Any]], *args: object, timeout: float | None = None) -> None:
        """Run `main` and what it starts until it is done, `stop` was called or the time is up; close what is left.

        What a task raises ends them all, and is raised here.

        Args:
            main: the first task's coroutine function, called with `args`.
            timeout: seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self._stopped = False
        first = self.start(main(*args))
        try:
            while first in self._live and not self._stopped:
                if self._ready:
                    self._step(self._ready.popleft())
                elif not self._wait(until):
                    break
        finally:
            for task in self._live:
                task.coroutine.close()
            for fd in tuple(self._readers):
                self._take_reader(fd)
            self._live.clear()
            self._ready.clear()
            self._asleep.clear()

    def stop(self) -> None:
        """Have `run` return when the current task gives way."""
        self._stopped = True

    def _step(self, task: Task) -> None:
        """Let a task go on until it gives way or ends."""
        self.current = task
        try:
            task.coroutine.send(None)
        except StopIteration:
            del self._live[task]

    def _wait(self, until: float | None) -> bool:
        """Sleep until a task can go on; False when it is `until`."""
        times = [self._asleep[0][0]] if self._asleep else []
        if until is not None:
            times.append(until)
        # Rounded up, lest the last part of a millisecond is waited for by trying again and again.
        left = max(min(times) - time.monotonic(), 0) * 1000 + 1 if times else None
        if left is None and not self._readers:
            raise RuntimeError("every task waits for another one")  # better a worker that ends than one that is deaf
        for fd, _ in self._poll.poll(left):
            self.resume(self._take_reader(fd))
        now = time.monotonic()
        while self._asleep and self._asleep[0][0] <= now:
            self.resume(heapq.heappop(self._asleep)[2])
        return until is None or now < until

    def _take_reader(self, fd: int) -> Task:
        self._poll.unregister(fd)
        return self._readers.pop(fd)

    # -- what coroutines call

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> Task:
        """Start another task."""
        task = Task(coroutine, name)
        self._live[task] = None
        self._ready.append(task)
        return task

    def resume(self, task: Task) -> None:
        """Let a task that gave way have its turn again."""
        self._ready.append(task)

    async def sleep(self, seconds: float) -> None:
        """Go on after some time."""
        heapq.heappush(self._asleep, (time.monotonic() + seconds, next(self._numbers), self.current))
        await _give_way()

    async def wait_readable(self, fd: int) -> None:
        """Go on when a descriptor has something to read, or its end; one task at a time may wait for it."""
        self._readers[fd] = self.current
        self._poll.register(fd, select.POLLIN)
        await _give_way()


class Lock:
    """A lock that tasks wait for in the order they come."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._taken = False
        self._waiting: deque[Task] = deque()

    async def acquire(self) -> None:
        """Take it."""
        if self._taken:
            self._waiting.append(self._tasks.current)
            await _give_way()
        self._taken = True

    def release(self) -> None:
        """Give it back."""
        if self._waiting:
            self._tasks.resume(self._waiting.popleft())  # whose it is from now on
        else:
            self._taken = False


class Nursery:
    """Starts tasks; `async with` ends when they all have."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._children = 0
        self._parent: Task | None = None

    def start_soon(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: object, name: str = "") -> None:
        """Start a task."""
        self._children += 1
        self._tasks.start(self._run(work, *args), name)

    async def _run(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> None:
        await work(*args)
        self._children -= 1
        if not self._children and self._parent is not None:
            self._tasks.resume(self._parent)

    async def __aenter__(self) -> Nursery:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._children:
            self._parent = self._tasks.current
            await _give_way()
