"""ELF cores: program headers that tell stored from left-out memory, and pages at computed offsets.

    ELF header and program headers (marked incomplete), room for some more, notes, stored pages in pfn order

A PT_LOAD begins at every stored run of pages; what is left out behind it is its p_memsz beyond p_filesz, as
makedumpfile writes it, so that a reader can tell it from memory that never was. When that would take more program
headers than readers bear, short left-out stretches become holes of the file inside a PT_LOAD: they read as zeros and
are never written. makedumpfile writes stretches of under 256 left-out pages with their content; we never do.

A page whose content the source has lost is in no PT_LOAD: no reader shall take it for zeros.

Sources: the ELF gABI; makedumpfile's elf_info.c (e_flags of an incomplete core) and its output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dumpfs.elf.layout import machine_number
from dumpfs.elf.structs import (
    DUMP_ELF_INCOMPLETE,
    EHDR,
    ET_CORE,
    EV_CURRENT,
    PF_R,
    PF_W,
    PF_X,
    PT_LOAD,
    PT_NOTE,
    Phdr,
    build_ident,
    build_phdrs,
    elf_abi,
    phdr_layout,
)
from dumpfs.errors import UnsupportedFeatureError, WriteError
from dumpfs.notes import build_note
from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Bits, Flags, runs_of, window
from dumpfs.writer.bytesink import ByteSink
from dumpfs.writer.encode import KIND_LOST, Encoded
from dumpfs.writer.plan import WritePlan

MAX_LOADS = 16000
"""gdb and crash read so many at once; with 70,000 makedumpfile takes 16 seconds."""
_SPARE = 64
"""Program headers kept free, for pages that turn out to be lost only when they are read."""
_STEP = 1 << 20
"""Pfns looked at at once."""
_RWX = PF_R | PF_W | PF_X
_LIMIT32 = 1 << 32

Runs = npt.NDArray[np.int64]


def all_runs(bits: Bits, stop: Pfn) -> Runs:
    """Maximal runs of a bitmap as rows of (first, stop)."""
    edges: list[npt.NDArray[np.int64]] = []
    previous = False
    for base in range(0, stop, _STEP):
        flags = window(bits, base, min(base + _STEP, stop)).view(np.int8)
        edges.append(np.flatnonzero(np.diff(flags, prepend=np.int8(previous))) + base)
        previous = bool(flags[-1])
    if previous:
        edges.append(np.array([stop]))
    joined = np.concatenate(edges) if edges else np.zeros(0, dtype=np.int64)
    return joined.reshape(-1, 2).astype(np.int64)


def close_gaps(runs: Runs, limit: int) -> Runs:
    """Runs joined across the shortest gaps until there are at most `limit`."""
    if len(runs) <= limit:
        return runs
    gaps = runs[1:, 0] - runs[:-1, 1]
    threshold = np.partition(gaps, len(gaps) - limit)[len(gaps) - limit]
    cut = np.flatnonzero(gaps > threshold)
    firsts = runs[np.concatenate(([0], cut + 1)), 0]
    stops = runs[np.concatenate((cut, [len(runs) - 1])), 1]
    return np.stack((firsts, stops), axis=1)


class ElfSink:
    """One ELF core; see `sink_kdump.KdumpSink` for who calls what.

    Batches are written one after the other: what is in the file is a prefix, so that nobody takes a hole that was not
    yet filled for zeros.

    Args:
        plan: the dump; its codec flag is 0 and it shares no zero pages (they are left out of `dump` instead).
        out: where the bytes go.

    Raises:
        UnsupportedFeatureError: 32-bit ELF cannot hold it.
    """

    ordered = True

    def __init__(self, plan: WritePlan, out: ByteSink) -> None:
        self.plan, self.out = plan, out
        self.written = 0
        facts = plan.facts
        self._abi = elf_abi(facts.word_size, facts.byteorder)
        self._notes = facts.notes
        if facts.eraseinfo:
            self._notes += bytes(-len(self._notes) & 3) + build_note(b"ERASEINFO", 0, facts.eraseinfo, facts.byteorder)
        self._runs = close_gaps(self._whole_text(all_runs(plan.dump, facts.max_mapnr)), MAX_LOADS)
        sizes = self._runs[:, 1] - self._runs[:, 0]
        self._ranks = np.cumsum(sizes) - sizes
        self._pages = int(sizes.sum())
        self._lost: list[Pfn] = []
        self._placed: deque[list[Pfn]] = deque()
        """The lost pages of each batch that is placed and not committed."""
        self.data_offset = 0
        loads = self._loads(())
        header = EHDR.size(self._abi)
        entry = phdr_layout(self._abi).size(self._abi)
        self._notes_offset = header + entry * (1 + len(loads) + _SPARE)
        end = self._notes_offset + len(self._notes)
        self.data_offset = end + -end % facts.page_size
        if facts.word_size == 4 and self.data_offset + self._pages * facts.page_size >= _LIMIT32:
            raise UnsupportedFeatureError("-E", "a 32-bit ELF core cannot hold 4 GiB", hint="write a kdump instead")

    @property
    def first(self) -> Pfn:
        """First pfn of the file."""
        return 0

    @property
    def stop(self) -> Pfn:
        """One past the last pfn of the file."""
        return self.plan.facts.max_mapnr

    @property
    def end(self) -> int:
        """Bytes of the finished file."""
        return max(self.data_offset + self._pages * self.plan.facts.page_size, self._notes_offset + len(self._notes))

    @property
    def missing(self) -> int:
        """Pages that have not been written."""
        return self.plan.count - self.written

    def begin(self) -> None:
        """Write the headers, marked incomplete, and the notes.

        Raises:
            OSError: as `ByteSink.write_at`.
        """
        self.out.write_at(0, [self._headers(complete=False)])
        self.out.write_at(self._notes_offset, [self._notes])

    def _whole_text(self, runs: Runs) -> Runs:
        """Runs joined within the kernel image: a reader wants one segment of it, whose left-out pages are zeros."""
        facts = self.plan.facts
        if facts.text is None or not len(runs):
            return runs
        _, paddr, size = facts.text
        low = (paddr - facts.first_paddr) // facts.page_size
        high = low + -(-size // facts.page_size)
        inside = np.flatnonzero((runs[:, 0] < high) & (runs[:, 1] > low))
        if len(inside) < 2:
            return runs
        first, last = int(inside[0]), int(inside[-1])
        joined = np.array([[runs[first, 0], runs[last, 1]]])
        return np.concatenate((runs[:first], joined, runs[last + 1 :]))

    def _offset(self, pfn: Pfn) -> int:
        """Where a stored page lies in the file."""
        i = int(np.searchsorted(self._runs[:, 0], pfn, side="right")) - 1
        rank = int(self._ranks[i]) + pfn - int(self._runs[i, 0])
        return self.data_offset + rank * self.plan.facts.page_size

    def place(self, first: Pfn, stop: Pfn, encoded: Encoded) -> list[tuple[int, int, int]]:
        """Where the next batch's bytes go; neighbours in the file are one piece.

        Lost pages have no bytes among them: their place in the file stays empty.
        """
        wanted = window(self.plan.dump, first, stop)
        lost = encoded.kinds == KIND_LOST
        if lost.any():
            places = np.flatnonzero(wanted)[lost]
            wanted = wanted.copy()
            wanted[places] = False
            self._placed.append((places + first).tolist())
        else:
            self._placed.append([])
        return self._pieces(wanted, first)

    def end_of(self, first: Pfn, stop: Pfn) -> int:
        """One past the last byte in the file of the pages in `[first, stop)`, 0 when there are none."""
        pieces = self._pieces(window(self.plan.dump, first, stop), first)
        return max((offset + size for offset, _, size in pieces), default=0)

    def _pieces(self, wanted: Flags, first: Pfn) -> list[tuple[int, int, int]]:
        page_size = self.plan.facts.page_size
        pieces: list[tuple[int, int, int]] = []
        start = 0
        for low, high in runs_of(wanted, first):
            offset, size = self._offset(low), (high - low) * page_size
            if pieces and pieces[-1][0] + pieces[-1][2] == offset:
                pieces[-1] = (pieces[-1][0], pieces[-1][1], pieces[-1][2] + size)
            else:
                pieces.append((offset, start, size))
            start += size
        return pieces

    def commit(self, encoded: Encoded, pieces: list[tuple[int, int, int]]) -> None:
        """Count the next batch, whose bytes are in the file; say at once which of its pages are lost.

        Raises:
            OSError: as `ByteSink.write_at`.
            WriteError: there is no room to say so of more pages.
        """
        self.written += len(encoded.kinds)
        lost = self._placed.popleft()
        if lost:
            self._lost += lost
            self.out.write_at(0, [self._headers(complete=False)])

    def flush(self) -> None:
        """Nothing waits: the headers have said it all."""

    def finish(self, *, complete: bool) -> None:
        """Give the file its length and, for a complete dump, clear the mark.

        Raises:
            WriteError: more pages turned out to be lost than there is room to tell.
        """
        if complete:
            self._fill_to_end()
            self.out.sync()
            self.out.write_at(0, [self._headers(complete=True)])
        self.out.finish()

    def _fill_to_end(self) -> None:
        """A file whose last stored page is lost would be shorter than its headers say."""
        end = self.data_offset + self._pages * self.plan.facts.page_size
        if self._lost and self._pages:
            self.out.write_at(end - 1, [b"\0"])

    # -- headers

    def _headers(self, *, complete: bool) -> bytes:
        facts, abi = self.plan.facts, self._abi
        loads = self._loads(self._lost)
        header_size, entry = EHDR.size(abi), phdr_layout(abi).size(abi)
        if header_size + entry * (1 + len(loads)) > self._notes_offset:
            raise WriteError(
                f"{len(self._lost)} pages of the source could not be read, too many for an ELF core to tell",
                hint="write a kdump (-c, -l, -p or -z): it has room to say so of each page",
            )
        phdrs = [Phdr(PT_NOTE, self._notes_offset, 0, 0, len(self._notes), len(self._notes)), *loads]
        ehdr = EHDR.build(
            abi,
            {
                "e_ident": build_ident(abi),
                "e_type": ET_CORE,
                "e_machine": machine_number(facts.machine),
                "e_version": EV_CURRENT,
                "e_phoff": header_size,
                "e_flags": 0 if complete else DUMP_ELF_INCOMPLETE,
                "e_ehsize": header_size,
                "e_phentsize": entry,
                "e_phnum": len(phdrs),
            },
        )
        return (ehdr + build_phdrs(abi, phdrs)).ljust(self._notes_offset, b"\0")

    def _loads(self, lost: list[Pfn] | tuple[Pfn, ...]) -> list[Phdr]:
        """The PT_LOADs: the kernel text's, then memory in ascending order."""
        memory = list(self._memory_loads(sorted(lost)))
        return [*self._text_loads(memory), *memory]

    def _memory_loads(self, lost: list[Pfn]) -> Iterator[Phdr]:
        facts = self.plan.facts
        page_size, base = facts.page_size, facts.first_paddr
        index = 0
        for first, stop in self._ram_runs(lost):
            end = base + stop * page_size - self._cut(stop)
            # Stored runs in this range of RAM, each with the left-out memory behind it.
            while index < len(self._runs) and self._runs[index, 1] <= first:
                index += 1
            position = first
            i = index
            while i < len(self._runs) and self._runs[i, 0] < stop:
                low, high = max(int(self._runs[i, 0]), first), min(int(self._runs[i, 1]), stop)
                if low > position:
                    yield self._load(base + position * page_size, 0, 0, (low - position) * page_size)
                following = int(self._runs[i + 1, 0]) if i + 1 < len(self._runs) else stop
                position = min(max(following, high), stop)
                memory_end = end if position == stop else base + position * page_size
                paddr = base + low * page_size
                size = min((high - low) * page_size, memory_end - paddr)
                yield self._load(paddr, self._offset(low), size, memory_end - paddr)
                i += 1
            if position < stop:
                yield self._load(base + position * page_size, 0, 0, end - base - position * page_size)

    def _ram_runs(self, lost: list[Pfn]) -> Iterator[tuple[Pfn, Pfn]]:
        """Ranges of RAM, cut at lost pages, and at most `MAX_LOADS` of them."""
        runs = close_gaps(all_runs(self.plan.ram, self.plan.facts.max_mapnr), MAX_LOADS).tolist()
        for first, stop in runs:
            for pfn in lost:
                if first <= pfn < stop:
                    if first < pfn:
                        yield first, pfn
                    first = pfn + 1
            if first < stop:
                yield first, stop

    def _cut(self, stop: Pfn) -> int:
        """Bytes of the last page before `stop` that are not RAM."""
        ends = self.plan.image.partial.get(stop - 1)
        return self.plan.facts.page_size - ends[1] if ends is not None else 0

    def _load(self, paddr: int, offset: int, filesz: int, memsz: int) -> Phdr:
        facts = self.plan.facts
        vaddr = paddr
        if facts.page_offset is not None:
            vaddr = facts.page_offset + paddr
            if facts.word_size == 4 and vaddr + memsz > _LIMIT32:
                vaddr = -1  # high memory, as kexec-tools writes it
        mask = (1 << 8 * facts.word_size) - 1
        return Phdr(PT_LOAD, offset, vaddr & mask, paddr & mask, filesz, memsz, _RWX)

    def _text_loads(self, memory: list[Phdr]) -> Iterator[Phdr]:
        """The kernel image's own mapping, sharing the file ranges of the memory it lies in."""
        if self.plan.facts.text is None:
            return
        vaddr, paddr, size = self.plan.facts.text
        for load in memory:
            low, high = max(load.p_paddr, paddr), min(load.p_paddr + load.p_memsz, paddr + size)
            if low >= high:
                continue
            filesz = max(min(load.p_paddr + load.p_filesz, high) - low, 0)
            offset = load.p_offset + low - load.p_paddr if filesz else 0
            yield Phdr(PT_LOAD, offset, vaddr + low - paddr, low, filesz, high - low, _RWX)
