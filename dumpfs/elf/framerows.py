"""Many FDEs written at once: what `callframes.FrameSection.add` does for one row after the other, for arrays of rows.

A kernel's unwind tables have some hundred thousand rows, but only some hundred different ones. So a row is a number in
a menu, and numpy puts all of them in their places: a tenth of the time, and half of what is left is numpy's import.
Records here are those of little-endian targets with 64-bit addresses.

Sources: DWARF 4 section 6.4.1 (FDE) and 7.23 (DW_CFA_advance_loc).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dumpfs.elf.callframes import FrameKind, FrameSection

Numbers = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]

_WORD = 8
_HEAD = 24
"""Bytes of an FDE before its augmentation: length, offset of its CIE, start, size."""
_ADVANCE, _ADVANCE1, _ADVANCE2, _ADVANCE4 = 0x40, 0x02, 0x03, 0x04
_ADVANCE_LIMITS = np.array((1, 0x40, 1 << 8, 1 << 16))
"""Distances from which an advance takes more bytes: see `_ADVANCE_SIZES`."""
_ADVANCE_SIZES = np.array((0, 1, 2, 3, 5))


class RowMenu:
    """The different rows of a table.

    Args:
        rows: kind of frame and operations of each.
    """

    def __init__(self, rows: Sequence[tuple[FrameKind, bytes]]) -> None:
        numbers: dict[FrameKind, int] = {}
        self.kind: Numbers = np.array([numbers.setdefault(kind, len(numbers)) for kind, _ in rows], dtype=np.int64)
        """Of each row, its number in `kinds`."""
        self.kinds = tuple(numbers)
        self.sizes: Numbers = np.array([len(operations) for _, operations in rows], dtype=np.int64)
        """Bytes of each row's operations."""
        self.heads: Numbers = np.array([_HEAD + kind.signal for kind in self.kinds], dtype=np.int64)
        """By kind, bytes of an FDE before its operations."""
        widest = int(self.sizes.max(initial=1))
        padded = b"".join(operations.ljust(widest, b"\0") for _, operations in rows)
        self.columns = np.frombuffer(padded, np.uint8).reshape(len(rows), widest).T.copy()
        """The first byte of all rows' operations, the second of all, and so on."""


class FrameRows(NamedTuple):
    """Rows of FDEs that do not overlap."""

    menu: RowMenu
    places: Addresses
    """Where each row begins; ascending within an FDE."""
    rows: Numbers
    """Each row's number in the menu; all of an FDE are of one kind."""
    firsts: Numbers
    """Index of each FDE's first row, ascending from 0. The FDE starts where the row does."""
    stops: Addresses
    """End of each FDE."""

    @property
    def starts(self) -> Addresses:
        """Start of each FDE."""
        return self.places[self.firsts]


def add_rows(section: FrameSection, rows: FrameRows) -> None:
    """Append FDEs to a section, as `FrameSection.add` would, in the order that they have here.

    Args:
        section: of a little-endian target with 64-bit addresses.
        rows: they may be none.
    """
    if not len(rows.firsts):
        return
    if (section.word_size, section.byteorder) != (_WORD, "little"):
        raise ValueError("rows are packed for little-endian targets with 64-bit addresses")
    kinds = rows.menu.kind[rows.rows[rows.firsts]]
    # A CIE stands before the first FDE of its kind.
    new = {int(np.argmax(kinds == number)): rows.menu.kinds[number] for number in set(kinds.tolist())}
    new = {at: kind for at, kind in new.items() if not section.has(kind)}
    for at, stop in pairwise((*sorted({0, *new}), len(kinds))):
        if at in new:
            section.cie(new[at])
        section.append(_pack(section, rows, at, stop, kinds[at:stop]))


def _pack(section: FrameSection, rows: FrameRows, begin: int, end: int, kinds: Numbers) -> bytes:
    """The records of FDEs `[begin, end)`, whose CIEs the section has."""
    menu = rows.menu
    low = int(rows.firsts[begin])
    high = int(rows.firsts[end]) if end < len(rows.firsts) else len(rows.rows)
    numbers, places = rows.rows[low:high], rows.places[low:high]
    firsts = rows.firsts[begin:end] - low
    distances = np.zeros(len(places), np.int64)
    distances[1:] = np.diff(places).view(np.int64)
    distances[firsts] = 0
    advances = _ADVANCE_SIZES[np.searchsorted(_ADVANCE_LIMITS, distances, side="right")]
    row_sizes = advances + menu.sizes[numbers]
    row_ends = np.cumsum(row_sizes)
    heads = menu.heads[kinds]
    sizes = heads + np.add.reduceat(row_sizes, firsts)
    sizes += -sizes % _WORD
    offsets = np.cumsum(sizes) - sizes

    out = np.zeros(int(sizes.sum()), np.uint8)
    words, halves = out.view("<u8"), out.view("<u4")
    starts = places[firsts]
    halves[offsets >> 2] = sizes - 4
    cies = [
        int.from_bytes(section.cie(kind), "little") if number in kinds else 0 for number, kind in enumerate(menu.kinds)
    ]
    halves[(offsets >> 2) + 1] = np.array(cies)[kinds]
    words[(offsets >> 3) + 1] = starts
    words[(offsets >> 3) + 2] = rows.stops[begin:end] - starts

    # From a row's place among all operations to its place among all records.
    shifts = offsets + heads - (row_ends - row_sizes)[firsts]
    at = row_ends - row_sizes + np.repeat(shifts, np.diff(firsts, append=len(places)))
    _put_advances(out, at, distances, advances)
    _put_operations(out, at + advances, numbers, menu)
    return out.tobytes()


def _put_advances(out: npt.NDArray[np.uint8], at: Numbers, distances: Numbers, sizes: Numbers) -> None:
    short = np.flatnonzero(sizes == 1)
    out[at[short]] = _ADVANCE | distances[short]
    for size, operation in ((2, _ADVANCE1), (3, _ADVANCE2), (5, _ADVANCE4)):
        some = np.flatnonzero(sizes == size)
        out[at[some]] = operation
        for byte in range(size - 1):
            out[at[some] + 1 + byte] = distances[some] >> 8 * byte & 0xFF


def _put_operations(out: npt.NDArray[np.uint8], at: Numbers, numbers: Numbers, menu: RowMenu) -> None:
    sizes = menu.sizes[numbers]
    for position, column in enumerate(menu.columns):
        some = np.flatnonzero(sizes > position)
        out[at[some] + position] = column[numbers[some]]
