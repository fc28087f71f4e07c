"""Bitmaps of pages as numpy arrays, least significant bit first, for the writer.

A bitmap of 12 TiB is 384 MiB, so nothing here makes a byte per page but for the window it works on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dumpfs.errors import UnsupportedFeatureError
from dumpfs.ranges import PfnSet
from dumpfs.units import Pfn

Bits: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]

_READ_BYTES = 1 << 20
_MAX_BYTES = 1 << 30
"""Of one bitmap: 32 TiB of 4 KiB pages. A header may claim more, or a segment lie there, with nothing between."""
_POPCOUNT = np.array([i.bit_count() for i in range(256)], dtype=np.uint8)


def bits_of(members: PfnSet, stop: Pfn) -> Bits:
    """The members below `stop` as a bitmap of `ceil(stop / 8)` bytes.

    Raises:
        UnsupportedFeatureError: memory reaches too far for that.
    """
    size = (stop + 7) // 8
    if size > _MAX_BYTES:
        raise UnsupportedFeatureError(
            "write",
            f"memory reaches to page {stop:#x}, and a dump of it takes two bitmaps of {size >> 20} MiB",
            hint="dumpfs mount and dumpfs cat show what is there",
        )
    out = np.zeros(size, dtype=np.uint8)  # what is not written to takes no memory
    add_members(out, members)
    if stop % 8 and size:
        out[-1] &= 0xFF >> (8 - stop % 8)
    return out


def add_members(bits: Bits, members: PfnSet) -> None:
    """Set the bits of a set's members, as far as the bitmap goes."""
    for offset, data in _pieces(members, len(bits)):
        bits[offset : offset + len(data)] |= data


def add_bits(bits: Bits, more: Bits) -> None:
    """Set the bits that another bitmap of the same size has; stretches without any take no memory."""
    for offset in range(0, len(bits), _READ_BYTES):
        piece = more[offset : offset + _READ_BYTES]
        if piece.any():
            bits[offset : offset + len(piece)] |= piece


def without(bits: Bits, members: PfnSet) -> Bits:
    """A copy of a bitmap without a set's members."""
    out = np.zeros(len(bits), dtype=np.uint8)
    for offset in range(0, len(bits), _READ_BYTES):
        piece = bits[offset : offset + _READ_BYTES]
        if piece.any():
            out[offset : offset + len(piece)] = piece
    for offset, data in _pieces(members, len(bits)):
        out[offset : offset + len(data)] &= ~data
    return out


def _pieces(members: PfnSet, size: int) -> Iterator[tuple[int, Bits]]:
    """(offset, bytes) of the pieces of a set's bitmap in which there are members."""
    offset = 0
    while offset < size:
        data = members.read_bits(offset, min(_READ_BYTES, size - offset))
        if not data:
            return
        piece = np.frombuffer(data, dtype=np.uint8)
        if piece.any():
            yield offset, piece
        offset += len(data)


def pfn_flags(members: PfnSet, first: Pfn, stop: Pfn) -> Flags:
    """One flag for each pfn of `[first, stop)`, read from the set itself; `first` is a multiple of 8."""
    size = (stop + 7) // 8 - first // 8
    data = members.read_bits(first // 8, size).ljust(size, b"\0")
    flags = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")[: stop - first]
    return flags.view(np.bool_)


def window(bits: Bits, first: Pfn, stop: Pfn) -> Flags:
    """One flag for each pfn of `[first, stop)`; `first` is a multiple of 8."""
    flags = np.unpackbits(bits[first // 8 : (stop + 7) // 8], bitorder="little")[: stop - first]
    return flags.view(np.bool_)


def count_bits(bits: Bits) -> int:
    """Number of members."""
    total = 0
    for offset in range(0, len(bits), _READ_BYTES):
        total += int(_POPCOUNT[bits[offset : offset + _READ_BYTES]].sum(dtype=np.int64))
    return total


def runs_of(flags: Flags, base: Pfn = 0) -> Iterator[tuple[Pfn, Pfn]]:
    """Maximal runs of set flags, as pfns counted from `base`."""
    edges = (np.flatnonzero(flags[1:] != flags[:-1]) + (base + 1)).tolist()
    if len(flags) and flags[0]:
        edges.insert(0, base)
    if len(edges) % 2:
        edges.append(base + len(flags))
    return zip(edges[::2], edges[1::2], strict=True)


class Batches:
    """The members of a bitmap cut into batches of consecutive pfns, each of some hundred members.

    Args:
        bits: the bitmap.
        first: first pfn, a multiple of 64.
        stop: one past the last.
        limit: members of a batch at most (a granule of 64 pfns is not cut, so up to 63 more).
        span: pfns of a batch at most.
    """

    GRANULE = 64

    def __init__(self, bits: Bits, first: Pfn, stop: Pfn, limit: int, span: int) -> None:
        self._bits, self._first, self._stop = bits, first, stop
        self._limit, self._span = limit, span

    def __iter__(self) -> Iterator[tuple[Pfn, Pfn, int]]:
        """(first, stop, members) of each batch, ascending; stretches without members are passed over."""
        if self._first >= self._stop:
            return
        granule = self.GRANULE
        start, members = -1, 0
        last = -1
        for base, counts in self._counts():
            for i in np.flatnonzero(counts).tolist():
                pfn = base + i * granule
                count = int(counts[i])
                if start >= 0 and (members + count > self._limit or pfn + granule - start > self._span):
                    yield start, min(last, self._stop), members
                    start, members = -1, 0
                if start < 0:
                    start = pfn
                members += count
                last = pfn + granule
        if start >= 0:
            yield start, min(last, self._stop), members

    def granules_apart(self, wanted: int) -> list[Pfn]:
        """First pfns of about `wanted` granules that have members, at even distances among all that have."""
        filled = [(base, int(np.count_nonzero(counts))) for base, counts in self._counts()]
        total = sum(count for _, count in filled)
        numbers = np.unique(np.arange(wanted, dtype=np.int64) * total // max(wanted, 1))
        chosen: list[Pfn] = []
        before = 0
        for base, counts in self._counts():
            places = np.flatnonzero(counts)
            here = numbers[(numbers >= before) & (numbers < before + len(places))] - before
            chosen += (base + places[here] * self.GRANULE).tolist()
            before += len(places)
        return chosen

    def _counts(self) -> Iterator[tuple[Pfn, npt.NDArray[np.int64]]]:
        granule_bytes = self.GRANULE // 8
        begin, end = self._first // 8, (self._stop + 7) // 8
        for offset in range(begin, end, _READ_BYTES):
            piece = _POPCOUNT[self._bits[offset : min(offset + _READ_BYTES, end)]]
            if end * 8 > self._stop and offset + len(piece) == end and self._stop % 8:
                kept = int(self._bits[end - 1]) & (0xFF >> (8 - self._stop % 8))
                piece[-1] = kept.bit_count()
            whole = len(piece) // granule_bytes * granule_bytes
            sums = piece[:whole].reshape(-1, granule_bytes).sum(axis=1, dtype=np.int64)
            if whole < len(piece):
                sums = np.append(sums, piece[whole:].sum(dtype=np.int64))
            yield offset * 8, sums
