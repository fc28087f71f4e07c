"""Sets of page frame numbers, and sorted half-open ranges.

`PfnSet` is what a format says about pages (which exist, which are stored); `RangeSet` is the one kept as
ranges, for formats that describe memory by segments, and `ScaledSet` shows a set of large blocks as a set of
kernel pages. The bitmap one is in `dumpfs.bitmap`. All are immutable; any thread may use them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Protocol

from dumpfs.units import Pfn


class PfnSet(Protocol):
    """A set of page frame numbers, possibly of billions of members."""

    @property
    def stop(self) -> Pfn:
        """One past the highest pfn the set can hold."""

    def __contains__(self, pfn: object) -> bool: ...

    def count(self) -> int:
        """Number of members."""

    def rank(self, pfn: Pfn) -> int:
        """Number of members below `pfn`; above the end, the total."""

    def runs(self, first: Pfn = 0, stop: Pfn | None = None) -> Iterator[tuple[Pfn, Pfn]]:
        """Maximal runs of members within `[first, stop)`, as half-open pairs in ascending order."""

    def read_bits(self, offset: int, size: int) -> bytes:
        """Bytes `[offset, offset + size)` of the set as a bitmap, least significant bit first.

        Short only at the end, `ceil(stop / 8)`.
        """


class RangeSet:
    """Sorted, disjoint, half-open ranges of integers (pfns, or bytes); a `PfnSet`.

    Built from ranges in any order; overlapping and touching ones are merged, empty ones dropped.
    """

    __slots__ = ("_firsts", "_ranks", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        firsts = array("Q")
        stops = array("Q")
        for first, stop in sorted(r for r in ranges if r[0] < r[1]):
            if stops and first <= stops[-1]:
                stops[-1] = max(stops[-1], stop)
            else:
                firsts.append(first)
                stops.append(stop)
        ranks = array("Q")
        total = 0
        for first, stop in zip(firsts, stops, strict=True):
            ranks.append(total)
            total += stop - first
        ranks.append(total)
        self._firsts, self._stops, self._ranks = firsts, stops, ranks

    @property
    def stop(self) -> int:
        """One past the highest member, 0 when empty."""
        return self._stops[-1] if self._stops else 0

    def __len__(self) -> int:
        """Number of ranges (not of members: see `count`)."""
        return len(self._firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._stops, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._firsts == other._firsts and self._stops == other._stops

    def __hash__(self) -> int:
        return hash((bytes(self._firsts), bytes(self._stops)))

    def __repr__(self) -> str:
        return f"RangeSet({[(hex(a), hex(b)) for a, b in self]})"

    def __contains__(self, member: object) -> bool:
        if not isinstance(member, int) or member < 0:
            return False
        i = bisect_right(self._firsts, member) - 1
        return i >= 0 and member < self._stops[i]

    def count(self) -> int:
        """Number of members."""
        return self._ranks[-1]

    def rank(self, member: int) -> int:
        """Number of members below `member`."""
        i = bisect_right(self._firsts, member) - 1
        if i < 0:
            return 0
        return self._ranks[i] + min(member, self._stops[i]) - self._firsts[i]

    def runs(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """The ranges, cut to `[first, stop)`."""
        if stop is None:
            stop = self.stop
        i = max(bisect_right(self._firsts, first) - 1, 0)
        while i < len(self._firsts) and self._firsts[i] < stop:
            a, b = max(self._firsts[i], first), min(self._stops[i], stop)
            if a < b:
                yield a, b
            i += 1

    def gaps(self, stop: int) -> Iterator[tuple[int, int]]:
        """What of `[0, stop)` is not a member, as maximal half-open ranges."""
        position = 0
        for first, end in self.runs(0, stop):
            if position < first:
                yield position, first
            position = end
        if position < stop:
            yield position, stop

    def read_bits(self, offset: int, size: int) -> bytes:
        """See `PfnSet.read_bits`."""
        size = max(min(size, (self.stop + 7) // 8 - offset), 0)
        return render_bits(self, offset, size)


def overlay(firsts: Sequence[int], stops: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """What is seen of half-open intervals laid over one another, a later one hiding the earlier.

    Yields `(first, stop, index)` pieces in ascending order, disjoint, with the index of the interval that shows;
    at most twice as many as there are intervals, which must not be empty. Costs n log n whatever they are.
    """
    order = sorted(range(len(firsts)), key=firsts.__getitem__)
    active: list[tuple[int, int]] = []  # heap of (-index, stop) of the intervals begun; ended ones leave lazily
    begun, count = 0, len(order)
    position = 0
    held = (0, 0, -1)  # the last piece, kept back while it may still grow
    while begun < count or active:
        if not active:
            index = order[begun]
            position, stop = firsts[index], stops[index]
            if begun + 1 == count or firsts[order[begun + 1]] >= stop:  # alone: the usual case, made quick
                if held[2] >= 0:
                    yield held
                held = (position, stop, index)
                begun += 1
                continue
        while begun < count and firsts[order[begun]] <= position:
            heappush(active, (-order[begun], stops[order[begun]]))
            begun += 1
        while active and active[0][1] <= position:
            heappop(active)
        if not active:
            continue
        index, stop = -active[0][0], active[0][1]
        if begun < count:
            stop = min(stop, firsts[order[begun]])
        if held[2] == index and held[1] == position:
            held = (held[0], stop, index)
        else:
            if held[2] >= 0:
                yield held
            held = (position, stop, index)
        position = stop
    if held[2] >= 0:
        yield held


def merge_runs(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending half-open runs, those that touch or overlap joined."""
    held = (-1, -1)
    for first, stop in runs:
        if first <= held[1]:
            held = held[0], max(stop, held[1])
            continue
        if held[0] >= 0:
            yield held
        held = first, stop
    if held[0] >= 0:
        yield held


def render_bits(members: PfnSet, offset: int, size: int) -> bytes:
    """`size` bytes of `members` as a bitmap from byte `offset` on, made from its runs."""
    base = offset * 8
    out = bytearray(size)
    for first, stop in members.runs(base, base + size * 8):
        a, b = first - base, stop - base
        whole_first, whole_stop = (a + 7) // 8, b // 8
        if whole_first > whole_stop:  # inside one byte
            out[a // 8] |= (1 << (b - a)) - 1 << (a % 8)
            continue
        if a % 8:
            out[a // 8] |= 0xFF << (a % 8) & 0xFF
        if b % 8:
            out[b // 8] |= (1 << (b % 8)) - 1
        if whole_stop > whole_first:
            out[whole_first:whole_stop] = b"\xff" * (whole_stop - whole_first)
    return bytes(out)


_SCAN_BYTES = 1 << 16


def last_stop(members: PfnSet) -> Pfn:
    """One past the highest member, 0 when there is none; looks at bits from the end backwards."""
    end = (members.stop + 7) // 8
    while end > 0:
        begin = max(end - _SCAN_BYTES, 0)
        bits = members.read_bits(begin, end - begin).rstrip(b"\0")
        if bits:
            return (begin + len(bits) - 1) * 8 + bits[-1].bit_length()
        end = begin
    return 0


class ScaledSet:
    """A set of blocks seen as a set of pages: block b is pages `shift + b * scale` to `shift + (b + 1) * scale`.

    For dumps whose block is larger than the kernel's page (QEMU's arm64: 64 KiB over 4 KiB), and for those
    that number blocks from the start of RAM instead of physical 0 (makedumpfile's 32-bit ARM: `shift`).
    """

    __slots__ = ("_blocks", "_scale", "_shift")

    def __init__(self, blocks: PfnSet, scale: int, shift: int = 0) -> None:
        self._blocks, self._scale, self._shift = blocks, scale, shift

    @property
    def stop(self) -> Pfn:
        """One past the highest page."""
        return self._shift + self._blocks.stop * self._scale

    def __contains__(self, pfn: object) -> bool:
        if not isinstance(pfn, int):
            return False
        return (pfn - self._shift) // self._scale in self._blocks

    def count(self) -> int:
        """Number of pages."""
        return self._blocks.count() * self._scale

    def rank(self, pfn: Pfn) -> int:
        """Number of pages below `pfn`."""
        if pfn <= self._shift:
            return 0
        block, inside = divmod(pfn - self._shift, self._scale)
        return self._blocks.rank(block) * self._scale + (inside if block in self._blocks else 0)

    def runs(self, first: Pfn = 0, stop: Pfn | None = None) -> Iterator[tuple[Pfn, Pfn]]:
        """Maximal runs of pages within `[first, stop)`."""
        if stop is None:
            stop = self.stop
        scale, shift = self._scale, self._shift
        low = max((first - shift) // scale, 0)
        high = max(-((shift - stop) // scale), 0)
        for a, b in self._blocks.runs(low, high):
            x, y = max(shift + a * scale, first), min(shift + b * scale, stop)
            if x < y:
                yield x, y

    def read_bits(self, offset: int, size: int) -> bytes:
        """See `PfnSet.read_bits`."""
        size = max(min(size, (self.stop + 7) // 8 - offset), 0)
        return render_bits(self, offset, size)


class MaskedSet:
    """The members of a set that lie in some windows: what an incomplete dump, or one part of a set, really holds."""

    __slots__ = ("_base", "_windows")

    def __init__(self, base: PfnSet, windows: RangeSet) -> None:
        self._base, self._windows = base, windows

    @property
    def stop(self) -> Pfn:
        """The whole set's end."""
        return self._base.stop

    def __contains__(self, pfn: object) -> bool:
        return pfn in self._windows and pfn in self._base

    def count(self) -> int:
        """Number of members within the windows."""
        return sum(self._base.rank(stop) - self._base.rank(first) for first, stop in self._windows)

    def rank(self, pfn: Pfn) -> int:
        """Number of members below `pfn`."""
        rank = self._base.rank
        return sum(rank(stop) - rank(first) for first, stop in self._windows.runs(0, pfn))

    def runs(self, first: Pfn = 0, stop: Pfn | None = None) -> Iterator[tuple[Pfn, Pfn]]:
        """Runs of members within `[first, stop)`; runs end where a window does."""
        for low, high in self._windows.runs(first, self.stop if stop is None else stop):
            yield from self._base.runs(low, high)

    def read_bits(self, offset: int, size: int) -> bytes:
        """See `PfnSet.read_bits`; the base's own bits, as a set of single pages has as many runs as members."""
        data = self._base.read_bits(offset, size)
        mask = render_bits(self._windows, offset, len(data))
        joined = int.from_bytes(data, "little") & int.from_bytes(mask, "little")
        return joined.to_bytes(len(data), "little")
