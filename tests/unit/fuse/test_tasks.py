"""The scheduler of a worker: tasks, timers, descriptors, locks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dumpfs.fuse.tasks import Lock, Nursery, Tasks


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_run_ends_with_the_first_task(tasks):
    said = []

    async def main(word):
        said.append(word)

    tasks.run(main, "done")
    assert said == ["done"]


def test_what_a_task_raises_ends_all_and_is_raised_by_run(tasks):
    ended = []

    async def other():
        try:
            await tasks.sleep(60)
        finally:
            ended.append("other")

    async def main():
        tasks.start(other())
        await tasks.sleep(0)
        raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        tasks.run(main)
    assert ended == ["other"]


def test_sleepers_wake_in_the_order_of_their_times(tasks):
    woken = []

    async def sleeper(seconds):
        await tasks.sleep(seconds)
        woken.append(seconds)

    async def main():
        async with Nursery(tasks) as nursery:
            for seconds in (0.02, 0.0, 0.01):
                nursery.start_soon(sleeper, seconds)

    tasks.run(main)
    assert woken == [0.0, 0.01, 0.02]


def test_tasks_go_on_while_one_waits_for_a_descriptor(tasks, pipe):
    reader, writer = pipe
    said = []

    async def read():
        await tasks.wait_readable(reader)
        said.append(os.read(reader, 9))

    async def main():
        async with Nursery(tasks) as nursery:
            nursery.start_soon(read)
            await tasks.sleep(0.001)
            said.append(b"slept")
            os.write(writer, b"news")

    tasks.run(main)
    assert said == [b"slept", b"news"]


def test_end_of_the_other_side_wakes_a_reader(tasks):
    reader, writer = os.pipe()

    async def main():
        os.close(writer)
        await tasks.wait_readable(reader)

    tasks.run(main, timeout=10)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_time_is_up(tasks, pipe):
    async def main():
        await tasks.wait_readable(pipe[0])

    begin = time.monotonic()
    tasks.run(main, timeout=0.01)
    assert 0.01 <= time.monotonic() - begin < 5


def test_stop_ends_run_when_the_task_gives_way(tasks):
    said = []

    async def main():
        tasks.stop()
        said.append("still my turn")
        await tasks.sleep(0)
        said.append("never")

    tasks.run(main)
    assert said == ["still my turn"]


def test_run_may_be_called_again(tasks, pipe):
    async def wait():
        await tasks.wait_readable(pipe[0])

    tasks.run(wait, timeout=0)
    os.write(pipe[1], b"x")
    tasks.run(wait, timeout=10)


def test_lock_is_had_in_the_order_of_asking(tasks):
    lock = Lock(tasks)
    log = []

    async def use(name):
        await lock.acquire()
        log.append(name)
        await tasks.sleep(0.001)
        log.append(name)
        lock.release()

    async def main():
        async with Nursery(tasks) as nursery:
            for name in "abc":
                nursery.start_soon(use, name)

    tasks.run(main)
    assert log == list("aabbcc")


def test_nursery_waits_for_tasks_that_its_tasks_start(tasks):
    ended = []

    async def child(nursery, depth):
        if depth:
            nursery.start_soon(child, nursery, depth - 1)
        await tasks.sleep(0)
        ended.append(depth)

    async def main():
        async with Nursery(tasks) as nursery:
            nursery.start_soon(child, nursery, 2, name="child")
        ended.append("nursery")

    tasks.run(main)
    assert ended == [2, 1, 0, "nursery"]


def test_current_task_has_its_name(tasks):
    names = []

    async def child():
        names.append(tasks.current.name)

    async def main():
        async with Nursery(tasks) as nursery:
            nursery.start_soon(child, name="pyfuse-01")

    tasks.run(main)
    assert names == ["pyfuse-01"]


def test_tasks_that_wait_for_each_other_end_the_run(tasks):
    lock = Lock(tasks)

    async def main():
        await lock.acquire()
        await lock.acquire()

    with pytest.raises(RuntimeError, match="waits for another"):
        tasks.run(main)
