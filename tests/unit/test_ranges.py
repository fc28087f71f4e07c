"""Sets of pages kept as ranges, and sets seen through another page size or a window."""

from __future__ import annotations

import pytest

from dumpfs.ranges import MaskedSet, RangeSet, ScaledSet


def test_touching_and_overlapping_ranges_are_merged():
    assert list(RangeSet([(10, 20), (0, 5), (20, 30), (25, 28), (5, 6)])) == [(0, 6), (10, 30)]


def test_empty_ranges_are_dropped():
    assert list(RangeSet([(3, 3), (5, 4)])) == []


def test_empty_set_has_no_members():
    empty = RangeSet()
    assert (empty.stop, empty.count(), len(empty), 0 in empty) == (0, 0, 0, False)
    assert list(empty.runs()) == []
    assert empty.read_bits(0, 10) == b""


def test_membership_is_half_open():
    pages = RangeSet([(4, 6)])
    assert [pfn in pages for pfn in (3, 4, 5, 6)] == [False, True, True, False]


@pytest.mark.parametrize("other", [-1, "4", None], ids=repr)
def test_only_page_numbers_are_members(other):
    assert other not in RangeSet([(0, 10)])


def test_rank_counts_the_members_below():
    pages = RangeSet([(4, 6), (10, 13)])
    assert [pages.rank(pfn) for pfn in (0, 4, 5, 6, 9, 10, 12, 13, 99)] == [0, 0, 1, 2, 2, 2, 4, 5, 5]


def test_runs_are_cut_to_the_asked_window():
    pages = RangeSet([(4, 6), (10, 13), (20, 30)])
    assert list(pages.runs(5, 22)) == [(5, 6), (10, 13), (20, 22)]


def test_bits_come_least_significant_first():
    assert RangeSet([(0, 1), (3, 4), (9, 17)]).read_bits(0, 100) == bytes((0b1001, 0b11111110, 0b1))


def test_bits_may_be_read_in_pieces():
    pages = RangeSet([(0, 1), (3, 4), (9, 17)])
    assert b"".join(pages.read_bits(i, 1) for i in range(5)) == pages.read_bits(0, 3)


def test_equal_sets_are_equal_and_hash_alike():
    one, two = RangeSet([(1, 3), (3, 5)]), RangeSet([(1, 5)])
    assert one == two
    assert hash(one) == hash(two)
    assert one != RangeSet([(1, 6)])


def test_a_block_is_as_many_pages_as_fit():
    pages = ScaledSet(RangeSet([(1, 2), (4, 6)]), 16)
    assert list(pages.runs()) == [(16, 32), (64, 96)]
    assert (pages.count(), pages.stop) == (48, 96)
    assert [pages.rank(pfn) for pfn in (15, 16, 20, 32, 64, 95, 96)] == [0, 0, 4, 16, 16, 47, 48]


def test_blocks_may_be_numbered_from_the_start_of_ram():
    pages = ScaledSet(RangeSet([(0, 2)]), 1, 0x40000)
    assert list(pages.runs()) == [(0x40000, 0x40002)]
    assert 0 not in pages
    assert 0x40001 in pages


def test_a_window_hides_the_members_outside():
    pages = MaskedSet(RangeSet([(0, 10), (20, 30)]), RangeSet([(5, 22), (28, 99)]))
    assert list(pages.runs()) == [(5, 10), (20, 22), (28, 30)]
    assert pages.count() == 9
    assert pages.stop == 30
    assert [pages.rank(pfn) for pfn in (5, 7, 21, 28, 30)] == [0, 2, 6, 7, 9]
