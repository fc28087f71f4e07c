"""Ranges of RAM: exact while they are few, bounded and covering when they are many."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.bitmap import Bitmap
from dumpfs.elf.segments import bounded_runs, ram_ranges
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState
from tests.unit.vfs.fakes import PAGE, FakeImage, S


def bitmap(pfns: set[int], stop: int | None = None) -> Bitmap:
    bits = bytearray((stop or max(pfns, default=0) + 1) // 8 + 1)
    for p in pfns:
        bits[p // 8] |= 1 << p % 8
    return Bitmap.from_bytes(bytes(bits), stop)


def members_of(runs: list[tuple[int, int]]) -> set[int]:
    return {p for a, b in runs for p in range(a, b)}


def check(members: set[int], runs: list[tuple[int, int]], filler: int, limit: int) -> None:
    assert len(runs) <= limit
    assert all(a < b for a, b in runs)
    assert all(x[1] < y[0] for x, y in pairwise(runs)), "sorted, disjoint, not touching"
    covered = members_of(runs)
    assert members <= covered
    assert filler == len(covered) - len(members)


@given(st.sets(st.integers(0, 2000)), st.integers(4, 40), st.booleans())
def test_any_set_is_covered_within_the_limit(members, limit, as_ranges):
    pfn_set = RangeSet((p, p + 1) for p in members) if as_ranges else bitmap(members)
    runs, filler = bounded_runs(pfn_set, limit)
    check(members, runs, filler, limit)


def test_few_runs_are_exact():
    members = {*range(5), *range(1000, 2000), 70000}
    assert bounded_runs(bitmap(members), 3) == ([(0, 5), (1000, 2000), (70000, 70001)], 0)


def test_ranges_are_joined_across_the_smallest_gaps():
    ranges = RangeSet([(0, 1), (3, 4), (100, 101), (102, 103), (1000, 1001)])
    assert bounded_runs(ranges, 3) == ([(0, 4), (100, 103), (1000, 1001)], 3)


def test_bitmap_is_coarse_only_where_it_is_fragmented():
    rng = random.Random(3)
    torn = {p for p in range(32768, 65536) if rng.random() < 0.5}
    members = {*range(100, 200), *torn, *range(200000, 300000)}
    runs, filler = bounded_runs(bitmap(members), 100)
    check(members, runs, filler, 100)
    assert runs[0] == (100, 200)
    assert runs[-1] == (200000, 300000)
    assert len(runs) == 3


def test_full_and_empty_granules_do_not_split_a_run():
    members = {*range(200000), *range(300000, 300100, 2)}
    runs, _ = bounded_runs(bitmap(members), 4)
    assert runs[0] == (0, 200000)


def test_bits_above_the_end_are_not_ram():
    assert bounded_runs(Bitmap.from_bytes(b"\xff" * 100, 333), 10) == ([(0, 333)], 0)


@pytest.mark.parametrize(
    ("partial", "expected"),
    [
        ({}, [(0, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
        ({3: (0, 1024)}, [(0, 3 * PAGE + 1024), (8 * PAGE, 9 * PAGE)]),
        ({0: (512, PAGE)}, [(512, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
        ({8: (512, 1024)}, [(0, 4 * PAGE), (8 * PAGE + 512, 8 * PAGE + 1024)]),
        ({1: (0, 1024)}, [(0, PAGE + 1024), (2 * PAGE, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
        ({1: (1024, PAGE)}, [(0, PAGE), (PAGE + 1024, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
        ({1: (16, 32)}, [(0, PAGE), (PAGE + 16, PAGE + 32), (2 * PAGE, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
        ({5: (0, 16)}, [(0, 4 * PAGE), (8 * PAGE, 9 * PAGE)]),
    ],
)
def test_partial_pages_cut_ranges_to_the_byte(partial, expected):
    image = FakeImage(dict.fromkeys([0, 1, 2, 3, 8], S), partial=partial)
    assert ram_ranges(image).ranges == expected


def test_too_many_partial_pages_are_cut_only_at_the_ends_of_ranges():
    image = FakeImage(dict.fromkeys(range(10), S), partial=dict.fromkeys(range(10), (0, 16)))
    assert ram_ranges(image, limit=5).ranges == [(0, 9 * PAGE + 16)]


def test_blocks_may_count_from_elsewhere_and_be_large():
    image = FakeImage({1: S, 2: PageState.EXCLUDED}, block_size=65536, first_paddr=0x40000000)
    assert ram_ranges(image).ranges == [(0x40010000, 0x40030000)]


def test_filler_is_bytes():
    image = FakeImage(dict.fromkeys([0, 2, 100], S))
    assert ram_ranges(image, limit=2).filler == PAGE
