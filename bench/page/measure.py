"""Rows, sections, and how sides take turns."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from barlib import Missing, say

OURS = "dumpfs"
ORDER = ("sequential", "random", "parallel", "log", "open", "lists", "gdb", "programs", "writing")
"""The sections as the page has them."""
CEILINGS = frozenset({"passthrough", "local file"})
"""What decodes nothing, and so shows what is left to gain; to be slower than these is no defeat."""
LESS_IS_BETTER = frozenset({"s", "µs", "CPU s"})
Value = float | dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    quick: bool

    def rounds(self, full: int = 5, quick: int = 3) -> int:
        """How often sides take turns."""
        return quick if self.quick else full

    @property
    def sequential_pages(self) -> int:
        """Greatest number of pages of a sequential read."""
        return 1 << 16 if self.quick else 1 << 40

    @property
    def random_reads(self) -> int:
        """Pages of a random read."""
        return 20_000 if self.quick else 50_000


@dataclass
class Row:
    """One line of a table: values of each side in the order of the rounds, and why a side has none."""

    title: str
    unit: str
    values: dict[str, list[float]]
    missing: dict[str, str] = field(default_factory=dict)

    def ratios(self, peer: str) -> list[float]:
        """How many times as fast as a peer we are, in each round."""
        ours, theirs = self.values.get(OURS, []), self.values.get(peer, [])
        if len(ours) != len(theirs):
            return []
        less = self.unit in LESS_IS_BETTER
        return [(b / a if less else a / b) for a, b in zip(ours, theirs, strict=True)]

    def ratio(self, peer: str) -> float:
        """The median of these; 0 without any."""
        return statistics.median(self.ratios(peer) or [0.0])

    def middle(self, side: str) -> float:
        """A side's median; 0 without values."""
        return statistics.median(self.values.get(side) or [0.0])


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    about: str
    measure: Callable[[Plan], Iterable[Row]]


SECTIONS: dict[str, Section] = {}


def section(name: str, title: str, about: str) -> Callable[[Callable[[Plan], Iterator[Row]]], None]:
    """Enter a function into the table of sections."""

    def enter(measure: Callable[[Plan], Iterator[Row]]) -> None:
        SECTIONS[name] = Section(name, title, " ".join(about.split()), measure)

    return enter


def _without_folders(text: str) -> str:
    """A message with the names of files, but not where they lie."""
    return re.sub(r"/(?:[\w.@+-]+/)+", "", text)


class Turns:
    """Measures that take turns.

    Args:
        rounds: how often.
        sides: name to what measures it: a value, or several by name. In every second round the order is reversed. One
            that raises `Missing`, or of a peer that fails, has no values; it is not tried again.
    """

    def __init__(self, rounds: int, sides: Mapping[str, Callable[[], Value]], ours: str = OURS) -> None:
        self.values: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        for number in range(rounds):
            for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
                if name not in self.missing:
                    self._take(name, side, name.startswith(ours))

    def _take(self, name: str, side: Callable[[], Value], our_own: bool) -> None:
        try:
            value = side()
        except (Missing, RuntimeError) as exc:
            if our_own and not isinstance(exc, Missing):
                raise
            self.missing[name] = _without_folders(" ".join(str(exc).split()))
            say(f"  {name}: {self.missing[name]}")
            return
        for key, number in (value if isinstance(value, dict) else {name: value}).items():
            self.values.setdefault(key, []).append(number)

    def row(self, title: str, unit: str, **columns: str) -> Row:
        """A row; `columns` are side (`_` for a blank) to the name of what was measured, or of what is missing."""
        row = Row(title, unit, {})
        for column, name in columns.items():
            side = column.replace("_", " ")
            if name in self.values:
                row.values[side] = self.values[name]
            else:
                whole = next((n for n in self.missing if name.startswith(n)), "")
                row.missing[side] = self.missing.get(whole, "not measured")
        what = ", ".join(f"{side} {row.middle(side):,.3g}" for side in row.values)
        say(f"  {title}: {what} {unit}")
        return row
