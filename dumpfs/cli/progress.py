"""A progress bar for people: one line on the terminal, rewritten in place; nothing at all anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from dumpfs.units import render_size

_INTERVAL = 0.1
"""Seconds between two drawings: smooth for an eye, nothing for the CPU."""

_ETA_AFTER = 1.0
"""Seconds before a remaining time is shown; earlier it would be a guess."""

_BAR_WIDTH = 24


def render_duration(seconds: float) -> str:
    """`seconds` for a person: '4 s', '2:05', '1:02:05'."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """A bar over a known number of bytes.

    Args:
        what: the word in front, 'checking'.
        total: bytes there are in all; 0 is allowed.
        stream: where to draw, stderr by default. Nothing is drawn unless it is a terminal.
        clock: seconds, for tests.
    """

    def __init__(
        self, what: str, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._started = clock()
        self._drawn = self._started
        self._width = 0
        self.done = 0
        """Bytes so far."""
        self.active = self._stream.isatty()
        """True when there is a terminal to draw on."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more, and draw when the last drawing is old enough."""
        self.done += nbytes
        if not self.active:
            return
        now = self._clock()
        if now - self._drawn >= _INTERVAL:
            self._drawn = now
            self._draw(self.render())

    def render(self) -> str:
        """The line: share, bar, bytes, speed, time left."""
        share = min(self.done / self._total, 1.0) if self._total else 1.0
        filled = int(share * _BAR_WIDTH)
        elapsed = self.elapsed
        speed = self.done / elapsed if elapsed > 0 else 0.0
        line = (
            f"{self._what} {100 * share:3.0f}% [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] "
            f"{render_size(self.done)} of {render_size(self._total)}, {speed / 1e6:.0f} MB/s"
        )
        if elapsed >= _ETA_AFTER and speed and self.done < self._total:
            line += f", {render_duration((self._total - self.done) / speed)} left"
        return line

    def _draw(self, line: str) -> None:
        columns = shutil.get_terminal_size().columns
        line = line[: max(columns - 1, 0)]
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def close(self) -> None:
        """Wipe the line, so that what follows starts on a clean one."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
