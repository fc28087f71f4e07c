"""Reading every page of an image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dumpfs.errors import DumpfsError
from dumpfs.memory import scan
from dumpfs.memory.scan import BadRange, ScanTotals, plan_batches, plan_windows, scan_image
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState

BLOCK = 4096
WINDOW = scan._WINDOW_BYTES // BLOCK


class FakeImage:
    """An image whose pages have states and zeros."""

    def __init__(self, ram: list[tuple[int, int]], states: dict[int, PageState]) -> None:
        self.meta = SimpleNamespace(block_size=BLOCK)
        self.ram = RangeSet(ram)
        outside = {PageState.EXCLUDED, PageState.LOST}
        self.stored = RangeSet(
            (p, p + 1) for a, b in ram for p in range(a, b) if states.get(p, PageState.STORED) not in outside
        )
        self.lost = RangeSet((p, p + 1) for p, state in states.items() if state is PageState.LOST)
        self.states = states
        self.asked: list[tuple[int, int]] = []

    def read_run(self, first: int, count: int) -> tuple[bytes, bytes]:
        self.asked.append((first, count))
        pfns = range(first, first + count)
        default = PageState.STORED
        return b"", bytes(self.states.get(p, default) if p in self.ram else PageState.ABSENT for p in pfns)


def total(image: FakeImage, jobs: int = 1) -> ScanTotals:
    totals = ScanTotals()
    totals.add_lost(image.lost)
    for result in scan_image(image, jobs):  # type: ignore[arg-type]
        totals.add(result)
    return totals


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [(0, 1)],
        [(5, 6), (7, 9)],
        [(0, WINDOW)],
        [(0, WINDOW + 1)],
        [(3, 5 * WINDOW)],
        [(0, 1), (WINDOW, WINDOW + 1)],
    ],
    ids=str,
)
def test_windows_cover_every_member_once(runs: list[tuple[int, int]]) -> None:
    pages = RangeSet(runs)
    windows = list(plan_windows(pages.runs(), BLOCK))
    covered = [p for first, count in windows for p in range(first, first + count) if p in pages]
    assert covered == [p for a, b in runs for p in range(a, b)]
    assert all(0 < count <= WINDOW for _, count in windows)


def test_window_begins_and_ends_with_a_member() -> None:
    pages = RangeSet([(10, 12), (20, 21), (100_000, 100_001)])
    assert list(plan_windows(pages.runs(), BLOCK)) == [(10, 11), (100_000, 1)]


def test_progress_counts_only_what_was_asked_for() -> None:
    states = {7: PageState.CORRUPT, 8: PageState.EXCLUDED, 9: PageState.LOST}
    image = FakeImage([(0, 12), (14, 20)], states)
    assert sum(result.members for result in scan_image(image)) == image.stored.count() == 16  # type: ignore[arg-type]


def test_far_pages_are_read_one_by_one_but_told_together() -> None:
    pages = RangeSet((p, p + 1) for p in range(0, 100_000, 100))
    assert [len(batch) for batch in plan_batches(pages.runs(), BLOCK)] == [1000]
    assert {count for batch in plan_batches(pages.runs(), BLOCK) for _, count in batch} == {1}


@pytest.mark.parametrize("jobs", [1, 3])
def test_scan_counts_pages_by_state(jobs: int) -> None:
    states = {7: PageState.CORRUPT, 8: PageState.PARTIAL, 3 * WINDOW: PageState.CORRUPT}
    totals = total(FakeImage([(0, 4 * WINDOW)], states), jobs)
    assert totals.counts[PageState.CORRUPT] == 2
    assert totals.counts[PageState.PARTIAL] == 1
    assert totals.counts[PageState.STORED] == 4 * WINDOW - 3


def test_bad_range_that_crosses_windows_is_one() -> None:
    states = dict.fromkeys(range(WINDOW - 2, WINDOW + 2), PageState.CORRUPT)
    assert total(FakeImage([(0, 2 * WINDOW)], states)).bad_ranges() == [
        BadRange(WINDOW - 2, WINDOW + 2, PageState.CORRUPT)
    ]


def test_bad_ranges_of_two_states_stay_apart() -> None:
    states = {4: PageState.CORRUPT, 5: PageState.LOST}
    assert total(FakeImage([(0, 8)], states)).bad_ranges() == [
        BadRange(4, 5, PageState.CORRUPT),
        BadRange(5, 6, PageState.LOST),
    ]


def test_excluded_pages_are_not_asked_for() -> None:
    states = dict.fromkeys(range(100, 90_000), PageState.EXCLUDED)
    image = FakeImage([(0, 90_000)], states)
    total(image)
    assert image.asked == [(0, 100)]


def test_pages_known_to_be_lost_are_counted_unasked() -> None:
    image = FakeImage([(0, 200)], dict.fromkeys(range(100, 200), PageState.LOST))
    totals = total(image)
    assert totals.counts[PageState.LOST] == 100
    assert totals.bad_ranges() == [BadRange(100, 200, PageState.LOST)]
    assert image.asked == [(0, 100)]


def test_page_found_lost_by_reading_joins_those_known() -> None:
    image = FakeImage([(0, 8)], {4: PageState.LOST, 5: PageState.LOST})
    image.stored = RangeSet([(0, 5), (6, 8)])
    image.lost = RangeSet([(5, 6)])
    assert total(image).bad_ranges() == [BadRange(4, 6, PageState.LOST)]


def test_ranges_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MAX_RANGES", 3)
    states = dict.fromkeys(range(0, 20, 2), PageState.CORRUPT)
    totals = total(FakeImage([(0, 20)], states))
    assert (len(totals.bad_ranges()), totals.dropped, totals.counts[PageState.CORRUPT]) == (3, 7, 10)


def test_closing_a_parallel_scan_ends_its_processes() -> None:
    import multiprocessing

    results = scan_image(FakeImage([(0, 8 * WINDOW)], {}), 2)  # type: ignore[arg-type]
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_error_in_a_process_reaches_the_caller() -> None:
    class Broken(FakeImage):
        def read_run(self, first: int, count: int) -> tuple[bytes, bytes]:
            raise DumpfsError("the disk is on fire")

    with pytest.raises(DumpfsError, match="the disk is on fire"):
        total(Broken([(0, 2 * WINDOW)], {}), 2)


def test_process_that_dies_is_an_error() -> None:
    class Dying(FakeImage):
        def read_run(self, first: int, count: int) -> tuple[bytes, bytes]:
            import os

            os._exit(9)

    with pytest.raises(DumpfsError, match="ended early"):
        total(Dying([(0, 2 * WINDOW)], {}), 2)
