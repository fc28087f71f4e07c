"""`overlay`: what is seen of intervals laid over one another."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dumpfs.ranges import overlay

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15)).map(lambda p: (p[0], p[0] + p[1])), max_size=14)


@given(INTERVALS)
def test_last_interval_over_a_point_shows(intervals):
    model = {point: index for index, (first, stop) in enumerate(intervals) for point in range(first, stop)}
    seen = {}
    for first, stop, index in overlay([a for a, _ in intervals], [b for _, b in intervals]):
        seen.update(dict.fromkeys(range(first, stop), index))
    assert seen == model


@given(INTERVALS)
def test_pieces_are_disjoint_ascending_and_maximal(intervals):
    pieces = list(overlay([a for a, _ in intervals], [b for _, b in intervals]))
    for (_, stop, index), (first, _, after) in pairwise(pieces):
        assert stop <= first
        assert (stop, index) != (first, after)
    assert len(pieces) <= 2 * len(intervals)
