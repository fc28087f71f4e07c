"""Counters and bad pages that processes share."""

from __future__ import annotations

import os

import pytest

from dumpfs.errors import PageError, page_error
from dumpfs.memory.cache import PageCache
from dumpfs.units import PageState
from dumpfs.vfs import counters as module
from dumpfs.vfs.counters import MAX_RUNS, Count, SharedCounters


def corrupt(pfn: int, detail: str = "broken") -> PageError:
    return page_error(pfn, PageState.CORRUPT, detail)


def in_child(function) -> int:
    """Run a function in a forked process; its value is the exit code."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = int(function())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_numbers_of_all_processes_are_added():
    counters = SharedCounters()

    def work() -> int:
        counters.attach(3)
        counters.mine[Count.READS] += 5
        return counters.total(Count.READS)

    counters.attach(0)
    counters.mine[Count.READS] += 2
    assert in_child(work) == 7
    assert counters.values()["reads"] == 7
    assert counters.workers()[0] == os.getpid()
    assert len(counters.workers()) == 2


def test_worker_that_ended_is_forgotten_but_not_what_it_counted():
    counters = SharedCounters()
    counters.attach(1)
    counters.mine[Count.BYTES] += 10
    counters.detach(1)
    assert counters.workers() == ()
    assert counters.values()["bytes_read"] == 10


def test_worker_in_the_place_of_another_counts_on():
    cache = PageCache()
    counters = SharedCounters(cache)

    def work(misses: int) -> int:
        counters.attach(0)
        for _ in range(misses):
            cache.get(1)
        counters.publish()
        return 0

    for misses in (5, 3):
        assert in_child(lambda misses=misses: work(misses)) == 0
        counters.detach(0)
    assert counters.total(Count.CACHE_MISSES) == 8


def test_requests_of_a_workers_place_are_known_to_others():
    counters = SharedCounters()

    def work() -> int:
        counters.attach(2)
        counters.mine[Count.REQUESTS] += 2
        counters.mine[Count.READS] += 3
        return 0

    assert in_child(work) == 0
    assert (counters.asked(1), counters.asked(2)) == (0, 5)


def test_counts_of_the_cache_are_published():
    cache = PageCache()
    counters = SharedCounters(cache)
    cache.get(1)
    cache.put(1, b"x")
    cache.get(1)
    assert (counters.values()["cache_hits"], counters.values()["cache_misses"]) == (1, 1)


def test_restarts_are_counted():
    counters = SharedCounters()
    counters.restarted()
    assert counters.values()["workers_restarted"] == 1


def test_bad_page_is_news_once_whoever_meets_it():
    counters = SharedCounters()
    assert in_child(lambda: counters.bad_page(corrupt(5))) == 1
    assert not counters.bad_page(corrupt(5))
    assert in_child(lambda: counters.bad_page(corrupt(5))) == 0
    assert counters.bad_runs() == [(5, 6, "corrupt: broken")]


def test_neighbours_with_the_same_reason_are_one_run():
    counters = SharedCounters()
    news = [counters.bad_page(corrupt(pfn)) for pfn in (5, 6, 4, 8, 7)]
    assert news == [True, False, False, True, False]
    assert counters.bad_runs() == [(4, 8, "corrupt: broken"), (8, 9, "corrupt: broken")]
    assert not counters.bad_page(corrupt(7))


def test_other_reason_is_another_run():
    counters = SharedCounters()
    assert counters.bad_page(corrupt(5))
    assert counters.bad_page(page_error(6, PageState.LOST, "cut off"))
    assert counters.bad_runs() == [(5, 6, "corrupt: broken"), (6, 7, "lost: cut off")]


@pytest.mark.parametrize("state", [PageState.EXCLUDED, PageState.ABSENT])
def test_page_left_out_on_purpose_is_not_bad(state):
    counters = SharedCounters()
    assert not counters.bad_page(page_error(1, state))
    assert counters.bad_runs() == []


def test_list_is_bounded_and_the_rest_counted():
    counters = SharedCounters()
    for pfn in range(0, 2 * MAX_RUNS, 2):
        assert counters.bad_page(corrupt(pfn))
    assert not counters.bad_page(corrupt(10**6))
    assert len(counters.bad_runs()) == MAX_RUNS
    assert counters.values()["bad_pages_not_named"] == 1


def test_long_reason_is_cut_between_characters():
    counters = SharedCounters()
    counters.bad_page(corrupt(1, "ü" * 100))
    reason = counters.bad_runs()[0][2]
    assert reason.startswith("corrupt: üü")
    assert len(reason.encode()) <= 55


def test_page_numbers_may_be_large():
    counters = SharedCounters()
    counters.bad_page(corrupt((1 << 52) - 1))
    assert counters.bad_runs() == [((1 << 52) - 1, 1 << 52, "corrupt: broken")]


def test_rows_do_not_overlap():
    counters = SharedCounters()
    for worker in range(module.MAX_WORKERS):
        counters.attach(worker)
        counters.mine[Count.READS] = 1
    assert counters.values()["reads"] == module.MAX_WORKERS
    counters.bad_page(corrupt(1))
    assert counters.values()["reads"] == module.MAX_WORKERS
