"""Page tables as radix trees: one walker for every architecture that has them so.

A `Level` says how one level's entries are read; x86_64, aarch64 and s390x differ in nothing else. Tables come from
the dump, so nothing they say is trusted: a walk goes down one level at a time and never deeper than there are levels,
and a listing visits no table more than a few times and no more tables than its limit. Any thread may walk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dumpfs.errors import PageError, TranslationError
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import Area, WalkReport
from dumpfs.structs import ByteOrder

ENTRY_SIZE = 8
MAX_TABLES = 1 << 15
"""Tables one listing visits: 64 GiB mapped by 4 KiB pages, and direct maps use larger ones."""
MAX_VISITS = 4
"""Times one table is listed. x86_64's espfix area and KASAN's zero shadow hang one table into hundreds of slots, and a
hostile dump hangs a table into itself; the first few places are enough to read what is there."""
MAX_RUNS = 1 << 14
"""Physical runs in one listed area; a longer one is listed in pieces, so that memory stays bounded."""


class Level(NamedTuple):
    """How the entries of one level are read. An entry of zero is never present."""

    shift: int
    """Lowest address bit that indexes the table; one entry covers 1 << shift bytes."""
    bits: int
    """Address bits that index the table."""
    present_mask: int
    present_value: int
    """The entry is present if entry & present_mask == present_value."""
    leaf_mask: int
    leaf_value: int
    """It maps memory (and not a table) if entry & leaf_mask == leaf_value."""
    address_mask: int
    """Bits of the entry that are bits of the address of memory or of the next table."""
    table_mask: int
    """Like `address_mask`, when the entry leads to a table."""
    high_mask: int = 0
    high_shift: int = 0
    """Entry bits that stand for higher address bits: (entry & high_mask) << high_shift."""


class PageTables:
    """The tree that starts at one root table.

    Args:
        phys: physical memory, policy ERROR.
        root: physical address of the root table, bytes.
        levels: from the root down.
        byteorder: the kernel's.
        base: virtual address of the root table's entry 0, as its index bits have it (sign extension is added by
            giving a base of 2^64 - 2^bits).
        first: lowest virtual address these tables may be asked for.
        stop: one past the highest.
    """

    def __init__(
        self,
        phys: PhysMemory,
        root: int,
        levels: tuple[Level, ...],
        byteorder: ByteOrder,
        *,
        base: int = 0,
        first: int | None = None,
        stop: int | None = None,
    ) -> None:
        self.phys = phys
        self.root = root
        self.levels = levels
        self.base = base
        self.first = base if first is None else first
        self.stop = base + (1 << (levels[0].shift + levels[0].bits)) if stop is None else stop
        self.byteorder = byteorder
        self._steps = tuple((level, (1 << level.bits) - 1, len(levels) - i) for i, level in enumerate(levels))
        self._tables = tuple(struct.Struct(f"{_prefix(byteorder)}{1 << level.bits}Q") for level in levels)

    def translate(self, vaddr: int) -> tuple[int, int]:
        """Physical address of `vaddr`, and the bytes from there to the end of its page (of whatever size).

        Raises:
            TranslationError: nothing is mapped there.
            PageError: a table is not in the dump.
        """
        if not self.first <= vaddr < self.stop:
            raise TranslationError(vaddr, "outside of the kernel's page tables")
        table = self.root
        read, byteorder = self.phys.read, self.byteorder
        for level, mask, number in self._steps:
            index = (vaddr >> level.shift) & mask
            entry = int.from_bytes(read(table + index * ENTRY_SIZE, ENTRY_SIZE), byteorder)
            if not entry or entry & level.present_mask != level.present_value:
                raise TranslationError(vaddr, f"not mapped (level {number} entry {entry:#x})", level=number)
            high = (entry & level.high_mask) << level.high_shift
            if entry & level.leaf_mask == level.leaf_value:
                size = 1 << level.shift
                inside = vaddr & (size - 1)
                return (entry & level.address_mask & -size | high) + inside, size - inside
            table = entry & level.table_mask | high
        raise TranslationError(vaddr, "the last level does not map memory", level=1)

    def areas(
        self,
        first: int | None = None,
        stop: int | None = None,
        report: WalkReport | None = None,
        max_tables: int = MAX_TABLES,
    ) -> Iterator[Area]:
        """Everything mapped in `[first, stop)`, ascending; virtually contiguous pieces joined.

        Tables that are not in the dump are stepped over; `report` counts them and says if a limit ended the listing.
        """
        first = self.first if first is None else max(first, self.first)
        stop = self.stop if stop is None else min(stop, self.stop)
        report = WalkReport() if report is None else report
        start = end = -1
        runs: list[tuple[int, int]] = []
        for vaddr, size, paddr in self._mapped(0, self.root, self.base, first, stop, report, max_tables):
            if vaddr != end or len(runs) >= MAX_RUNS:
                if runs:
                    yield Area(start, end - start, tuple(runs))
                runs = []
                start = vaddr
            if runs and runs[-1][0] + runs[-1][1] == paddr:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((paddr, size))
            end = vaddr + size
        if runs:
            yield Area(start, end - start, tuple(runs))

    def first_mapped(self, first: int, stop: int, max_tables: int = 2048) -> tuple[int, int] | None:
        """(vaddr, paddr) of the lowest mapped page in `[first, stop)`, or None; looks at `max_tables` tables."""
        area = next(self.areas(first, stop, max_tables=max_tables), None)
        return None if area is None else (area.vaddr, area.runs[0][0])

    def _read_table(self, depth: int, table: int, report: WalkReport, max_tables: int) -> tuple[int, ...] | None:
        if report.tables >= max_tables:
            report.truncated = True
            return None
        visits = report.visits.get((depth, table), 0)
        if visits >= MAX_VISITS:
            report.repeated += 1
            return None
        report.visits[depth, table] = visits + 1
        report.tables += 1
        entries = self._tables[depth]
        try:
            return entries.unpack(self.phys.read(table, entries.size))
        except PageError:
            report.unreadable += 1
            return None

    def _mapped(
        self, depth: int, table: int, base: int, first: int, stop: int, report: WalkReport, max_tables: int
    ) -> Iterator[tuple[int, int, int]]:
        """(vaddr, bytes, paddr) of the physically contiguous pieces below one table, cut to `[first, stop)`."""
        entries = self._read_table(depth, table, report, max_tables)
        if entries is None:
            return
        level = self.levels[depth]
        span = 1 << level.shift
        low = max((first - base) >> level.shift, 0)
        high = min(-((base - stop) >> level.shift), 1 << level.bits)
        last = depth + 1 == len(self.levels)
        start = end = run_paddr = -1
        for index in range(low, high):
            entry = entries[index]
            if not entry or entry & level.present_mask != level.present_value:
                continue
            vaddr = base + (index << level.shift)
            paddr = (entry & level.high_mask) << level.high_shift
            if entry & level.leaf_mask == level.leaf_value:
                paddr |= entry & level.address_mask & -span
                if vaddr == end and paddr - run_paddr == vaddr - start:
                    end += span
                    continue
                if start >= 0:
                    yield _cut(start, end, run_paddr, first, stop)
                start, end, run_paddr = vaddr, vaddr + span, paddr
            elif not last:
                if start >= 0:
                    yield _cut(start, end, run_paddr, first, stop)
                    start = end = -1
                paddr |= entry & level.table_mask
                yield from self._mapped(depth + 1, paddr, vaddr, first, stop, report, max_tables)
                if report.truncated:
                    return
        if start >= 0:
            yield _cut(start, end, run_paddr, first, stop)


def _prefix(byteorder: ByteOrder) -> str:
    return "<" if byteorder == "little" else ">"


def _cut(start: int, end: int, paddr: int, first: int, stop: int) -> tuple[int, int, int]:
    below = max(first - start, 0)
    return start + below, min(end, stop) - start - below, paddr + below
