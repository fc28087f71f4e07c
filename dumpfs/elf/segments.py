"""Which ranges of RAM the program headers of a core describe, kept to a number that readers bear.

A real machine has some dozen ranges of RAM. A bitmap can hold millions (ballooned guests, hot-unplugged memory, a
hostile file), and every reader of a core keeps a record per PT_LOAD: gdb takes a second for 70,000, makedumpfile 16.
Past the limit near ranges are taken together; what lies between them is then described as RAM too.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from dumpfs.formats.base import DumpImage
from dumpfs.ranges import PfnSet, RangeSet
from dumpfs.units import Pfn

MAX_SEGMENTS = 16_000
"""PT_LOADs of RAM at most; makedumpfile opens 20,000 in 0.9 s, and its time grows with the square."""

_MIN_GRANULE = 4096
"""Bytes of bitmap judged at once: 32,768 pages. Big enough for the big-integer operations to cost nothing a page."""
_READ_BYTES = 1 << 20


class RamRanges(NamedTuple):
    """The ranges of RAM that a core describes."""

    ranges: list[tuple[int, int]]
    """Physical addresses `[start, stop)` in bytes, ascending and disjoint."""
    filler: int
    """Bytes inside the ranges that are not RAM, for want of more ranges."""


def ram_ranges(image: DumpImage, limit: int = MAX_SEGMENTS) -> RamRanges:
    """Ranges of RAM of `image`, at most `limit` of them and exact to the byte unless that forbids it.

    Costs one pass over the RAM map, some 4 ns per byte of bitmap; never a Python object per page or per run of pages.
    """
    runs, filler = bounded_runs(image.ram, limit)
    partial = image.partial
    block_size, first_paddr = image.meta.block_size, image.meta.first_paddr
    if len(runs) + len(partial) > limit:  # no room to cut ranges in the middle
        partial = _only_at_ends(runs, partial, block_size)
    ranges = _cut_partial(runs, partial, block_size)
    return RamRanges([(first_paddr + a, first_paddr + b) for a, b in ranges], filler * block_size)


def _only_at_ends(
    runs: list[tuple[Pfn, Pfn]], partial: Mapping[Pfn, tuple[int, int]], block_size: int
) -> dict[Pfn, tuple[int, int]]:
    """Of the partial blocks, what shortens a run without dividing it."""
    kept = {}
    for first, stop in runs:
        last = stop - 1
        low, high = partial.get(first, (0, 0))[0], partial.get(last, (0, block_size))[1]
        if first == last:
            kept[first] = (low, high)
        else:
            kept[first], kept[last] = (low, block_size), (0, high)
    return kept


def _cut_partial(
    runs: list[tuple[Pfn, Pfn]], partial: Mapping[Pfn, tuple[int, int]], block_size: int
) -> list[tuple[int, int]]:
    """Byte ranges of runs of blocks, cut where RAM begins or ends inside a block."""
    blocks = sorted(partial)
    ranges: list[tuple[int, int]] = []
    for first, stop in runs:
        start = first * block_size
        for block in blocks[bisect_left(blocks, first) : bisect_left(blocks, stop)]:
            inside_first, inside_stop = partial[block]
            base = block * block_size
            if inside_first > 0:
                ranges.append((start, base))
                start = base + inside_first
            if inside_stop < block_size:
                ranges.append((start, base + inside_stop))
                start = base + block_size
        ranges.append((start, stop * block_size))
    return [r for r in ranges if r[0] < r[1]]


def bounded_runs(members: PfnSet, limit: int) -> tuple[list[tuple[Pfn, Pfn]], int]:
    """Runs that cover `members`, at most `limit`, and how many pfns in them are not members."""
    runs = list(islice(members.runs(), limit + 1))
    if len(runs) <= limit:
        return runs, 0
    runs = _join_near(members, limit) if isinstance(members, RangeSet) else _join_dense(members, limit)
    return runs, sum(b - a for a, b in runs) - members.count()


def _join_near(members: RangeSet, limit: int) -> list[tuple[Pfn, Pfn]]:
    """Join across the smallest gaps: the best that can be done, for as many ranges as a file can list."""
    ranges = list(members)
    gaps = ((ranges[i + 1][0] - ranges[i][1], i) for i in range(len(ranges) - 1))
    kept = sorted(i for _, i in heapq.nlargest(limit - 1, gaps))
    firsts = [0, *(i + 1 for i in kept)]
    lasts = [*kept, len(ranges) - 1]
    return [(ranges[a][0], ranges[b][1]) for a, b in zip(firsts, lasts, strict=True)]


def _join_dense(members: PfnSet, limit: int) -> list[tuple[Pfn, Pfn]]:
    """Take granules of the bitmap with the most runs as one range each; describe the others exactly."""
    total = (members.stop + 7) // 8
    granule = _MIN_GRANULE
    while total > granule * (limit // 2):
        granule *= 2
    counts, bounds = _survey(members, total, granule)
    most = _most_runs(Counter(counts), limit)
    joined: list[tuple[Pfn, Pfn]] = []
    for number, count in enumerate(counts):
        if not count:
            continue
        first, stop = bounds[2 * number], bounds[2 * number + 1]
        for a, b in members.runs(first, stop) if 1 < count <= most else ((first, stop),):
            if joined and joined[-1][1] == a:
                joined[-1] = (joined[-1][0], b)
            else:
                joined.append((a, b))
    return joined


def _survey(members: PfnSet, total: int, granule: int) -> tuple[array[int], array[int]]:
    """Number of runs of each granule, and its lowest member and one past its highest."""
    counts, bounds = array("Q"), array("Q")
    full = b"\xff" * granule
    step = max(_READ_BYTES, granule)
    for offset in range(0, total, step):
        data = members.read_bits(offset, min(step, total - offset))
        for inside in range(0, len(data), granule):
            piece = data[inside : inside + granule]
            base = (offset + inside) * 8
            if piece == full:
                counts.append(1)
                bounds.extend((base, base + granule * 8))
                continue
            kept = piece.rstrip(b"\0")
            if not kept:
                counts.append(0)
                bounds.extend((0, 0))
                continue
            low = len(kept) - len(kept.lstrip(b"\0"))
            bits = int.from_bytes(kept, "little")
            counts.append((bits ^ bits << 1).bit_count() >> 1)  # every run changes the bit twice
            lowest = low * 8 + (kept[low] & -kept[low]).bit_length() - 1
            bounds.extend((base + lowest, base + bits.bit_length()))
    return counts, bounds


def _most_runs(histogram: Counter[int], limit: int) -> int:
    """The most runs that a granule may have to be described exactly, so that no more than `limit` result."""
    granules = sum(n for count, n in histogram.items() if count)
    spent, most = granules, 0
    for count in sorted(histogram):
        spent += (count - 1) * histogram[count] if count else 0
        if spent > limit:
            break
        most = count
    return most
