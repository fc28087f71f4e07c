"""A bound on the work code does, told without a clock: tests must hold on machines of any speed, under any load."""

from __future__ import annotations

import cProfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded_work(limit: int, what: str = "") -> Iterator[None]:
    """Fail if more than `limit` functions are called in this thread, those written in C included.

    A loop that a hostile number makes too long calls something each time round, and each time that a generator goes on
    counts as well; a loop that calls nothing is left to the time limit of the whole run.

    Args:
        limit: calls allowed; some times what was measured, for what is called differs between versions of Python.
        what: what was worked on, for the message.
    """
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls <= limit, f"{what or 'this'} took {calls:,} calls, of {limit:,} allowed"
