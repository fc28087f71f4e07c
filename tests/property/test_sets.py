"""Every kind of page set behaves as Python's own set of the same members."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.bitmap import Bitmap
from dumpfs.ranges import MaskedSet, RangeSet, ScaledSet
from tests.build.model import Memory, Page, runs_of

STOP = 3 * 4096 + 100

pages = st.builds(
    lambda ranges, singles: frozenset(p for a, n in ranges for p in range(a, min(a + n, STOP))) | singles,
    st.lists(st.tuples(st.integers(0, STOP - 1), st.integers(1, 5000)), max_size=4),
    st.frozensets(st.integers(0, STOP - 1), max_size=12),
)
spots = st.integers(-3, STOP + 50)


def as_bitmap(members: frozenset[int]) -> Bitmap:
    pfns = sorted(members)
    return Bitmap.from_bytes(Memory(4096, STOP, {p: Page() for p in pfns}).bits(pfns), STOP)


def as_ranges(members: frozenset[int]) -> RangeSet:
    return RangeSet(runs_of(sorted(members)))


def check(found, members: frozenset[int], a: int, b: int) -> None:
    """All of the `PfnSet` protocol at two places."""
    first, stop = min(a, b), max(a, b)
    assert found.count() == len(members)
    for spot in (a, b):
        assert (spot in found) == (spot in members)
        assert found.rank(max(spot, 0)) == sum(p < spot for p in members)
    assert list(found.runs()) == runs_of(sorted(members))
    assert list(found.runs(max(first, 0), max(stop, 0))) == runs_of([p for p in sorted(members) if first <= p < stop])
    bits = int.from_bytes(found.read_bits(0, STOP), "little")
    assert bits == sum(1 << p for p in members)
    offset, size = max(first, 0) // 8, (stop - first) // 8
    piece = int.from_bytes(found.read_bits(offset, size), "little")
    assert piece == bits >> 8 * offset & (1 << 8 * size) - 1


@settings(max_examples=60)
@given(pages, spots, spots)
def test_bitmap(members, a, b):
    found = as_bitmap(members)
    check(found, members, a, b)
    assert found.find(a) == (sum(p < a for p in members) if a in members else -1)
    ordered = sorted(members)
    for index in {0, len(ordered) // 2, max(len(ordered) - 1, 0), len(ordered)}:
        assert found.select(index) == (ordered[index] if index < len(ordered) else STOP)


@settings(max_examples=60)
@given(pages, spots, spots)
def test_range_set(members, a, b):
    check(as_ranges(members), members, a, b)


@settings(max_examples=60)
@given(pages, pages, spots, spots)
def test_masked_set(members, window, a, b):
    base = as_bitmap(members)
    found = MaskedSet(base, as_ranges(window))
    both = members & window
    first, stop = max(min(a, b), 0), max(a, b, 0)
    assert found.count() == len(both)
    assert [(p in found) for p in (a, b)] == [(p in both) for p in (a, b)]
    assert found.rank(stop) == sum(p < stop for p in both)
    assert [p for r in found.runs(first, stop) for p in range(*r)] == [p for p in sorted(both) if first <= p < stop]
    assert int.from_bytes(found.read_bits(0, STOP), "little") == sum(1 << p for p in both)


@settings(max_examples=60)
@given(
    st.frozensets(st.integers(0, 99), max_size=20),
    st.sampled_from([1, 2, 16]),
    st.sampled_from([0, 5, 64]),
    st.integers(0, 1700),
    st.integers(0, 1700),
)
def test_scaled_set(blocks, scale, shift, a, b):
    members = frozenset(shift + p * scale + i for p in blocks for i in range(scale))
    check(ScaledSet(as_ranges(blocks), scale, shift), members, a, b)
    check(ScaledSet(as_bitmap(blocks), scale, shift), members, a, b)
