"""Kernel virtual memory beside the direct map and the kernel image: vmalloc, modules, vmemmap, fixmap and the like.

A core needs to know which addresses are mapped, and later what is at one of them. The list is made table by table: the
lowest byte of an entry says what it is, so the 512 bytes of a table are sorted into nothing, memory and table by one
translation and into runs by one search, and no object is made for a page.

Nothing in the tables is trusted: no table is listed more than a few times, the tables and the ranges are counted, and
what is mapped in all is held against the memory there is. Any thread may read.

Sources: Linux Documentation/arch/x86/x86_64/mm.rst and Documentation/arch/arm64/memory.rst (what lies where).
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from dumpfs.arch.walk import MAX_TABLES, MAX_VISITS, Level, PageTables
from dumpfs.errors import AbsentPageError, DumpfsError, ExcludedPageError, TranslationError
from dumpfs.linux.kernel import Kernel
from dumpfs.memory.physical import PhysMemory
from dumpfs.units import PageState

MACHINES = frozenset(("x86_64", "aarch64"))
"""Those whose page tables dumpfs lists."""
MAX_GAP = 1 << 20
"""Largest gap that two ranges are joined across, bytes."""
_MIN_PAGE = 0x1000
_DIRECT_ALIGN = 1 << 30
"""Nothing else is nearer to the direct map on the architectures listed."""
_KEPT_RANGES = 1 << 16
"""Ranges kept while listing, before near ones are joined; a real machine has some hundred per gigabyte."""
_RAM_MULTIPLE = 4
"""How many times as much as its RAM a kernel may map here; a sane one stays under once."""
_SPARE = 1 << 30
"""Bytes that any kernel may map in addition, for small machines."""
_NOTHING, _MEMORY, _TABLE = range(3)
_RUNS = re.compile(rb"\x01+|\x02")


class AreaList(NamedTuple):
    """Mapped ranges."""

    ranges: tuple[tuple[int, int], ...]
    """(virtual address, bytes), ascending, apart from each other, whole pages."""
    notices: tuple[str, ...]
    """What was left out or joined, one sentence each."""


@dataclass(slots=True)
class _Counts:
    """What one listing met."""

    tables: int = 0
    unreadable: int = 0
    repeated: int = 0
    joined: int = 0
    """Largest gap that ranges were joined across, bytes."""
    dropped: int = 0
    """Ranges left out."""
    dropped_bytes: int = 0
    truncated: bool = False


class AreaLister:
    """Lists what page tables map.

    Args:
        tables: of the kernel.
        skip: (first, stop) of virtual memory that is not wanted: the direct map and the kernel image.
    """

    def __init__(self, tables: PageTables, skip: Sequence[tuple[int, int]] = ()) -> None:
        self._tables = tables
        self._phys = tables.phys
        self._low_byte = 0 if tables.byteorder == "little" else 7
        self._skip = sorted(skip)
        last = len(tables.levels) - 1
        self._kinds = [_kinds(level, i == last) for i, level in enumerate(tables.levels)]
        self._visits: Counter[tuple[int, int]] = Counter()
        # Descending: the top of kernel memory (modules, fixmap, entry code) is small and matters most.
        self._stops = array("Q")
        self._starts = array("Q")
        self._gap = 0
        self.counts = _Counts()

    def find(self) -> list[tuple[int, int]]:
        """(first, stop) of every mapped range, ascending."""
        tables = self._tables
        self._walk(0, tables.root, tables.base, tables.first, tables.stop)
        pairs = zip(reversed(self._starts), reversed(self._stops), strict=True)
        return self._without_skipped([(first, stop + 1) for first, stop in pairs])

    def _walk(self, depth: int, table: int, base: int, first: int, stop: int) -> None:
        counts = self.counts
        if counts.tables >= MAX_TABLES:
            counts.truncated = True
            return
        if self._visits[depth, table] >= MAX_VISITS:
            counts.repeated += 1
            return
        self._visits[depth, table] += 1
        counts.tables += 1
        level = self._tables.levels[depth]
        try:
            data = self._phys.read(table, 8 << level.bits)
        except DumpfsError:
            counts.unreadable += 1
            return
        kinds = data[self._low_byte :: 8].translate(self._kinds[depth])
        low = max((first - base) >> level.shift, 0)
        high = min(-((base - stop) >> level.shift), 1 << level.bits)
        for match in reversed(list(_RUNS.finditer(kinds, low, high))):
            begin = base + (match.start() << level.shift)
            end = base + (match.end() << level.shift)
            if self._skips(begin, end):
                continue
            if kinds[match.start()] == _TABLE:
                entry = int.from_bytes(data[match.start() * 8 : match.start() * 8 + 8], self._tables.byteorder)
                self._walk(depth + 1, self._address(entry, level), begin, first, stop)
                if counts.truncated:
                    return
            elif level.shift > 16:
                self._add_large(data, level, match.start(), match.end(), base)
            else:
                self._add(begin, end)

    @staticmethod
    def _address(entry: int, level: Level) -> int:
        return entry & level.table_mask | (entry & level.high_mask) << level.high_shift

    def _skips(self, first: int, stop: int) -> bool:
        return any(a <= first and stop <= b for a, b in self._skip)

    def _add_large(self, data: bytes, level: Level, low: int, high: int, base: int) -> None:
        """Large pages; those of devices are no memory (a graphics card's may be larger than all of the RAM)."""
        for index in range(high - 1, low - 1, -1):
            entry = int.from_bytes(data[index * 8 : index * 8 + 8], self._tables.byteorder)
            paddr = entry & level.address_mask & -(1 << level.shift) | (entry & level.high_mask) << level.high_shift
            if self._is_ram(paddr, 1 << level.shift):
                vaddr = base + (index << level.shift)
                self._add(vaddr, vaddr + (1 << level.shift))

    def _is_ram(self, paddr: int, size: int) -> bool:
        """Whether some of a large page is RAM, by looking at a few of its pages."""
        if paddr >= self._phys.size:
            return False
        shift = self._phys.page_shift
        return any(
            self._phys.state(at >> shift) is not PageState.ABSENT
            for at in (paddr, paddr + size // 2, paddr + size - _MIN_PAGE)
        )

    def _add(self, first: int, stop: int) -> None:
        # The last byte is kept, for the end of memory is 2^64.
        if self._starts and stop + self._gap >= self._starts[-1]:
            self._starts[-1] = first
            return
        self._starts.append(first)
        self._stops.append(stop - 1)
        if len(self._starts) > _KEPT_RANGES:
            self._join()

    def _join(self) -> None:
        """Join ranges across the least gap that halves their number, or end the listing."""
        while self._gap < MAX_GAP and len(self._starts) > _KEPT_RANGES // 2:
            self._gap = max(self._gap * 2, _MIN_PAGE)
            self.counts.joined = self._gap
            starts, stops = self._starts, self._stops
            self._starts, self._stops = array("Q"), array("Q")
            for first, last in zip(starts, stops, strict=True):
                self._add(first, last + 1)
        if len(self._starts) > _KEPT_RANGES // 2:
            self.counts.truncated = True

    def _without_skipped(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        for low, high in self._skip:
            kept = []
            for first, stop in ranges:
                if stop <= low or high <= first:
                    kept.append((first, stop))
                    continue
                if first < low:
                    kept.append((first, low))
                if high < stop:
                    kept.append((high, stop))
            ranges = kept
        return ranges


def _kinds(level: Level, last: bool) -> bytes:
    """What the lowest byte of an entry makes it, for all 256."""
    table = bytearray(256)
    for byte in range(256):
        if byte & level.present_mask == level.present_value and byte:
            leaf = byte & level.leaf_mask == level.leaf_value
            table[byte] = _MEMORY if leaf else _NOTHING if last else _TABLE
    return bytes(table)


def find_areas(kernel: Kernel, limit: int) -> AreaList:
    """What `kernel` maps beside its direct map and its image, in at most `limit` ranges.

    Args:
        kernel: the kernel; without page tables, or of another architecture, the list is empty.
        limit: near ranges are joined to stay below it, and ranges at the low end left out if that is not enough.
    """
    space = kernel.space
    tables = space.tables if space is not None else None
    if not isinstance(tables, PageTables) or kernel.machine not in MACHINES:
        return AreaList((), ())
    if kernel.page_offset is None:
        return AreaList((), ("vmalloc memory is left out, for the direct map was not found",))
    lister = AreaLister(tables, _wanted_elsewhere(kernel))
    ranges = lister.find()
    counts = lister.counts
    ranges = _bounded(ranges, limit, counts)
    most = _RAM_MULTIPLE * kernel.phys.ram.count() * kernel.page_size + _SPARE
    ranges = _affordable(ranges, most, counts)
    return AreaList(tuple((first, stop - first) for first, stop in ranges), tuple(_notices(counts)))


def _wanted_elsewhere(kernel: Kernel) -> list[tuple[int, int]]:
    """Virtual memory that a core describes by physical address."""
    assert kernel.page_offset is not None
    phys = kernel.phys
    # Both ends are rounded: memory beside the RAM (firmware tables, a capture kernel's) is mapped with it.
    lowest = (next((first for first, _ in phys.ram.runs()), 0) << phys.page_shift) & -_DIRECT_ALIGN
    highest = -(-phys.size // _DIRECT_ALIGN) * _DIRECT_ALIGN
    mask = (1 << 64) - 1
    skip = [((kernel.page_offset + lowest) & mask, min((kernel.page_offset + highest) & mask, mask))]
    if kernel.text is not None:
        vaddr, _, size = kernel.text
        skip.append((vaddr, vaddr + size))
    return [(first, stop) for first, stop in skip if first < stop]


def _bounded(ranges: list[tuple[int, int]], limit: int, counts: _Counts) -> list[tuple[int, int]]:
    """At most `limit` ranges: joined across growing gaps, then without the lowest."""
    gap = _MIN_PAGE
    while len(ranges) > limit and gap <= MAX_GAP:
        joined: list[tuple[int, int]] = []
        for first, stop in ranges:
            if joined and first - joined[-1][1] <= gap:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((first, stop))
        ranges = joined
        counts.joined = max(counts.joined, gap)
        gap *= 2
    cut = max(len(ranges) - limit, 0)
    counts.dropped += cut
    counts.dropped_bytes += sum(stop - first for first, stop in ranges[:cut])
    return ranges[cut:]


def _affordable(ranges: list[tuple[int, int]], most: int, counts: _Counts) -> list[tuple[int, int]]:
    """The highest ranges, of `most` bytes in all."""
    kept: list[tuple[int, int]] = []
    for first, stop in reversed(ranges):
        if stop - first <= most:
            most -= stop - first
            kept.append((first, stop))
        else:
            counts.dropped += 1
            counts.dropped_bytes += stop - first
    return kept[::-1]


def _notices(counts: _Counts) -> list[str]:
    told = []
    if counts.joined:
        told.append(
            f"vmalloc memory is in too many pieces: those up to {counts.joined >> 10} KiB apart share a segment, and"
            " what is not mapped between them reads as zeros"
        )
    if counts.dropped:
        told.append(f"{counts.dropped} ranges of vmalloc memory ({counts.dropped_bytes} bytes) are left out")
    if counts.truncated:
        told.append(
            f"some vmalloc memory is left out, for there are more than {MAX_TABLES} page tables or too many gaps"
        )
    if counts.unreadable:
        told.append(f"what {counts.unreadable} page tables map is left out, for they are not in the dump")
    return told


class _Memory(Protocol):
    """Physical memory."""

    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at a physical address."""


class MappedMemory:
    """Kernel memory read through page tables, with the hole policy of a core.

    Args:
        tables: page tables over memory with policy ERROR: a missing table is not an empty one.
        phys: what the pages are read from, with its own policy.
        strict: whether what is not mapped is an error, and not zeros.
    """

    _MAX_KNOWN = 4096

    def __init__(self, tables: PageTables, phys: _Memory, *, strict: bool = False) -> None:
        self._tables = tables
        self._phys = phys
        self._strict = strict
        self._known: dict[int, int] = {}

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`; what is not mapped is zeros, as memory that is no RAM is.

        Raises:
            PageError: a page of the range, or a table that leads to it, is lost or corrupt.
            TranslationError: `strict`, and part of the range is not mapped.
        """
        pieces = []
        while size > 0:
            run = _MIN_PAGE - vaddr % _MIN_PAGE
            paddr = self._known.get(vaddr + run)
            if paddr is None:
                paddr, run = self._translate(vaddr, run)
            else:
                paddr -= run
            run = min(run, size)
            pieces.append(bytes(run) if paddr < 0 else self._phys.read(paddr, run))
            vaddr += run
            size -= run
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _translate(self, vaddr: int, run: int) -> tuple[int, int]:
        """Physical address (-1: none) of `vaddr`, and the bytes to which that applies."""
        try:
            paddr, size = self._tables.translate(vaddr)
        except (TranslationError, ExcludedPageError, AbsentPageError):
            if self._strict:
                raise
            return -1, run
        if size == run:
            if len(self._known) >= self._MAX_KNOWN:
                self._known.clear()
            self._known[vaddr + run] = paddr + run
        return paddr, size


def pack_tables(tables: PageTables) -> dict[str, Any]:
    """Page tables as JSON types, for another process."""
    return {
        "root": tables.root,
        "levels": [list(level) for level in tables.levels],
        "byteorder": tables.byteorder,
        "base": tables.base,
        "first": tables.first,
        "stop": tables.stop,
    }


def unpack_tables(phys: PhysMemory, packed: dict[str, Any]) -> PageTables:
    """The page tables that `pack_tables` packed, over physical memory with policy ERROR."""
    levels = tuple(Level(*level) for level in packed["levels"])
    return PageTables(
        phys,
        packed["root"],
        levels,
        packed["byteorder"],
        base=packed["base"],
        first=packed["first"],
        stop=packed["stop"],
    )
