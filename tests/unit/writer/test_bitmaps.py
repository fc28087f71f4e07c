"""Bitmaps as arrays, and how they are cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import UnsupportedFeatureError
from dumpfs.ranges import RangeSet
from dumpfs.writer.bitmaps import Batches, add_members, bits_of, count_bits, runs_of, window, without
from dumpfs.writer.sink_elf import all_runs

members = st.sets(st.integers(0, 999), max_size=300)


def bits(pfns: set[int], stop: int = 1000) -> np.ndarray:
    return bits_of(RangeSet((pfn, pfn + 1) for pfn in pfns), stop)


@given(members, st.integers(1, 1000))
def test_bits_below_the_end_are_the_members(pfns, stop):
    found = bits(pfns, stop)
    assert count_bits(found) == len([pfn for pfn in pfns if pfn < stop])


@given(members)
def test_runs_give_the_members_back(pfns):
    flags = window(bits(pfns), 0, 1000)
    assert [pfn for a, b in runs_of(flags) for pfn in range(a, b)] == sorted(pfns)


@given(members, st.integers(1, 1000), st.integers(1, 200), st.integers(64, 512))
def test_batches_cover_every_member_once(pfns, stop, limit, span):
    pfns = {pfn for pfn in pfns if pfn < stop}
    covered: list[int] = []
    for first, end, count in Batches(bits(pfns), 0, stop, limit, span):
        inside = [pfn for pfn in sorted(pfns) if first <= pfn < end]
        assert len(inside) == count
        assert first % 64 == 0
        assert end - first <= span
        covered += inside
    assert covered == sorted(pfns)


def test_batches_that_begin_at_the_end_are_none():
    assert list(Batches(bits({998, 999}), 1000, 1000, 10, 64)) == []


@pytest.mark.parametrize("first", [0, 64, 128])
def test_batches_of_a_part_have_only_its_pages(first):
    found = list(Batches(bits(set(range(200))), first, 192, 1000, 1 << 16))
    assert sum(count for _, _, count in found) == 192 - first


def test_memory_that_reaches_too_far_for_a_bitmap_is_refused():
    with pytest.raises(UnsupportedFeatureError, match="two bitmaps of 2048 MiB"):
        bits_of(RangeSet([(5, 6), ((1 << 34) - 1, 1 << 34)]), 1 << 34)


def test_bitmap_without_a_set_is_a_copy():
    bits = bits_of(RangeSet([(0, 70), (1 << 24, (1 << 24) + 9)]), 1 << 25)
    left = without(bits, RangeSet([(3, 5), (1 << 24, (1 << 24) + 4)]))
    add_members(left, RangeSet([(1000, 1001)]))
    assert list(all_runs(left, 1 << 25).tolist()) == [
        [0, 3], [5, 70], [1000, 1001], [(1 << 24) + 4, (1 << 24) + 9]
    ]  # fmt: skip
    assert count_bits(bits) == 79
