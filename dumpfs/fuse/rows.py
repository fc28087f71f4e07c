"""What the processes of a mount tell each other of a slow file: a row of the table of `publish`."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class State(IntEnum):
    """How far the content of a file is."""

    EMPTY = 0
    BUILDING = 1
    READY = 2
    INLINE = 3
    """There is nothing to publish; every worker makes the content by itself."""
    FAILED = 4
    STANDBY = 5
    """A process is there that would build it quickly, and waits to be asked."""
    ASKED = 6
    """It has been asked."""


UNSETTLED = frozenset((State.EMPTY, State.BUILDING, State.STANDBY, State.ASKED))
TAKEN = UNSETTLED - {State.EMPTY}
"""States in which the process that the row names is to settle it."""


class Row(NamedTuple):
    """What the table knows of one file."""

    ino: int
    state: int
    pid: int
    """Process that builds."""
    offset: int
    """Where content, or the message of a failure, begins in the memory file."""
    size: int
    """Its bytes."""
    number: int
    """Helpers that died; of a failed file its error number."""
