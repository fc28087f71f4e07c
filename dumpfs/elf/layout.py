"""Plan of an ELF core of a dump: its headers, and where the bytes behind them come from.

    0            ELF header, program headers, [section header 0 when they are too many for e_phnum]
    page         the notes (PT_NOTE, the first program header: crash and makedumpfile look there)
    page         RAM, range after range; one PT_LOAD each
    page         content of virtual ranges, read through the page tables; one PT_LOAD each

Order and form of the PT_LOADs are what gdb, crash, drgn, libkdumpfile, volatility3, makedumpfile and vmcore-dmesg were
all found to read right:

* the kernel text first, as in /proc/vmcore, sharing the file range of the RAM that holds it;
* RAM in ascending order;
* virtual ranges, whose p_paddr makes them end at exactly 2^64, so that nobody takes them for RAM;
* the last byte of RAM once more, sharing its file range, where there are virtual ranges: makedumpfile learns the direct
  map from the last PT_LOAD below the kernel image, and older ones from the first.

volatility3 keeps the PT_LOADs with p_filesz == p_memsz > 0 in file order and finds an address by bisection over
p_paddr. So they must ascend; the first one, to which a bisection comes last, and one that ends where RAM ends do no
harm. It scans from the first one's p_paddr to the last one's end: from the text on, as in /proc/vmcore itself.

What was tried, on dumps of x86_64 with four and five levels of page tables and of arm64; "-l -c" and "-E" compare what
makedumpfile 1.7.2 makes of it with what it makes of the original /proc/vmcore, but for empty program headers:

    virtual ranges                                  volatility3  -l, -c  -E                    others
    before RAM                                      no task      same    same                  right
    before RAM, p_memsz = p_filesz + 1              right        same    a byte more for each  right
    the same, but p_paddr + p_filesz = 2^64         right        same    same                  crash: zeros at paddr 0
    the same, and the text's p_memsz one more       right        differ  differ                not tried
    before RAM, p_memsz = p_filesz + 4096           right        same    same                  zeros in guard pages
    before RAM, p_paddr all ones as in /proc/kcore  no task      differ  differ                not tried
    after RAM                                       right        fails   fails                 not tried
    after RAM, p_paddr all ones                     right        differ  differ                not tried
    after RAM, its last byte once more: as it is    right        same    one byte at the end   right

File offsets are congruent to addresses modulo the page, so that a mapping of the file stays aligned.

A plan is computed without reading any page, is immutable, and is the same in every process.

Sources: the ELF gABI; Linux fs/proc/vmcore.c and kernel/crash_core.c (order of headers, rounding to pages).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from dumpfs.elf.core_notes import CoreNotes
from dumpfs.elf.segments import RamRanges
from dumpfs.elf.structs import (
    EHDR,
    ET_CORE,
    EV_CURRENT,
    MACHINES,
    PF_R,
    PF_W,
    PF_X,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SHDR,
    Phdr,
    build_ident,
    build_phdrs,
    elf_abi,
    phdr_layout,
)
from dumpfs.structs import Abi, ByteOrder
from dumpfs.units import zeros

FILE_ALIGN = 4096
"""Alignment of file ranges at least: the page of the machine that reads, so that mmap works."""

_LIMIT32 = 1 << 32
_RWX = PF_R | PF_W | PF_X
_ALIASES = {
    "i386": "i686",
    "i586": "i686",
    "arm64": "aarch64",
    "ppc64le": "ppc64",
    "s390": "s390x",
    "mips64": "mips",
}

ReadVirtual = Callable[[int, int], bytes]
"""`read(vaddr, size)` of kernel virtual memory, raising DumpfsError."""


class ReadPhysical(Protocol):
    """Physical memory as a core shows it; `memory.physical.PhysMemory` is one."""

    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at a physical address, raising DumpfsError."""


class Content(Enum):
    """Where the bytes of an extent come from."""

    LITERAL = "literal"
    PHYSICAL = "physical"
    VIRTUAL = "virtual"


class Extent(NamedTuple):
    """A piece of the core file; what lies between two is zeros."""

    offset: int
    """In the core file, bytes."""
    size: int
    content: Content
    start: int
    """Physical or virtual address of its first byte; 0 for literal bytes."""


class Mapping(NamedTuple):
    """Kernel virtual addresses `[vaddr, vaddr + size)` that show physical memory from `paddr` on."""

    vaddr: int
    paddr: int
    size: int


@dataclass(frozen=True, slots=True)
class CoreTarget:
    """What kind of core to make."""

    machine: str
    """uname -m, or '' when unknown (EM_NONE)."""
    byteorder: ByteOrder
    """The kernel's."""
    word_size: int
    """4 for ELFCLASS32; raised to 8 where addresses or sizes do not fit."""
    page_size: int
    """The kernel's, in bytes."""
    kernel_word_size: int
    """The kernel's bytes of a long: QEMU writes 32-bit x86 kernels in 64-bit files."""


class CorePlan:
    """A core file that has not been written: `read` gives any part of it.

    Args:
        headers: its first bytes: headers and notes.
        extents: what follows, in ascending order of offset, disjoint.
        notices: what was odd, one sentence each.
    """

    def __init__(self, headers: bytes, extents: Sequence[Extent], notices: tuple[str, ...] = ()) -> None:
        self.headers = headers
        self.extents = (Extent(0, len(headers), Content.LITERAL, 0), *extents)
        self.notices = notices
        self.size = max(e.offset + e.size for e in self.extents)
        """Bytes of the file."""
        self._offsets = [e.offset for e in self.extents]
        # For the fast path: the end of each extent, and what to add to a file offset to get the physical address.
        self._ends = [e.offset + e.size if e.content is Content.PHYSICAL else 0 for e in self.extents]
        self._deltas = [e.start - e.offset for e in self.extents]

    def read(self, phys: ReadPhysical, offset: int, size: int, read_virtual: ReadVirtual | None = None) -> bytes:
        """Bytes `[offset, offset + size)`, short only at the end of the file.

        Args:
            phys: memory, with the policy for pages without content.
            offset: in the file.
            size: bytes wanted.
            read_virtual: needed when the plan has virtual extents.

        Raises:
            DumpfsError: a byte of the range cannot be had.
        """
        stop = offset + size
        if stop > self.size:
            stop = self.size
            size = stop - offset
        if size <= 0:
            return b""
        i = bisect_right(self._offsets, offset) - 1
        if stop <= self._ends[i]:
            return phys.read(offset + self._deltas[i], size)
        pieces = []
        while offset < stop:
            extent = self.extents[i]
            end = min(stop, extent.offset + extent.size)
            if offset < end:
                pieces.append(self._read_extent(extent, phys, offset - extent.offset, end - offset, read_virtual))
                offset = end
            i += 1
            gap_end = min(stop, self._offsets[i]) if i < len(self._offsets) else stop
            if offset < gap_end:
                pieces.append(zeros(gap_end - offset))
                offset = gap_end
        return b"".join(pieces)

    def _read_extent(
        self, extent: Extent, phys: ReadPhysical, inside: int, size: int, read_virtual: ReadVirtual | None
    ) -> bytes:
        if extent.content is Content.PHYSICAL:
            return phys.read(extent.start + inside, size)
        if extent.content is Content.LITERAL:
            return self.headers[inside : inside + size]
        if read_virtual is None:
            raise TypeError("a core with virtual extents needs read_virtual")
        return read_virtual(extent.start + inside, size)


def machine_number(machine: str) -> int:
    """e_machine of an architecture by its uname -m, 0 (EM_NONE) when there is none."""
    if machine.startswith("arm") and machine != "arm64":
        machine = "arm"  # armv7l, armv6l, armhf
    name = _ALIASES.get(machine, machine)
    return next((number for number, known in MACHINES.items() if known == name), 0)


def plan_core(
    target: CoreTarget,
    ram: RamRanges,
    notes: CoreNotes,
    page_offset: int | None = None,
    aliases: Sequence[Mapping] = (),
    virtual: Sequence[tuple[int, int]] = (),
    notices: Sequence[str] = (),
) -> CorePlan:
    """Lay out a core.

    Args:
        target: its class and byte order.
        ram: ranges of RAM.
        notes: the PT_NOTE's content.
        page_offset: kernel virtual address of physical 0 in the direct map (of the first RAM byte minus its physical
            address); None when unknown: p_vaddr is p_paddr then, as QEMU writes it.
        aliases: further mappings of RAM, such as the kernel text; what of them is not RAM is left out.
        virtual: (vaddr, size) of other mapped ranges, to be read through the page tables; whole pages.
        notices: what the caller has to say, to be kept with the plan.

    Notices speak of the core without naming it.
    """
    align = max(FILE_ALIGN, target.page_size)
    word_size = _word_size(target, ram, align, virtual, len(notes.data))
    abi = elf_abi(word_size, target.byteorder)
    told = [*notices, *notes.notices]
    if ram.filler:
        told.append(
            f"RAM is in too many pieces for program headers; {ram.filler} bytes that are not RAM lie inside"
            " its segments and read as zeros"
        )
    shares = [share for alias in aliases for share in _shares(alias, ram.ranges)]
    if len(shares) < len(aliases):
        told.append("the kernel text's physical address is not RAM; it has no segment of its own")
    count = 1 + len(shares) + len(virtual) + len(ram.ranges) + (len(shares) > 1 or len(virtual) > 0)
    table_size = _table_size(abi, count)
    notes_offset = _up(table_size, FILE_ALIGN)
    cursor = _up(notes_offset + len(notes.data), align)
    extents: list[Extent] = []
    ram_loads: list[Phdr] = []
    for start, stop in ram.ranges:
        first = start - start % align
        extents.append(Extent(cursor, _up(stop, align) - first, Content.PHYSICAL, first))
        ram_loads.append(
            _load(abi, cursor + start - first, _direct(target, page_offset, start, stop), start, stop - start)
        )
        cursor += _up(stop, align) - first
    # Only the first may be out of order, so further pieces of the kernel image go among the virtual ranges.
    text_loads = [
        _load(abi, ram_loads[i].p_offset + inside, m.vaddr, -m.size if number else m.paddr, m.size)
        for number, (m, i, inside) in enumerate(shares)
    ]
    virtual_loads = text_loads[1:]
    for vaddr, size in virtual:
        extents.append(Extent(cursor, size, Content.VIRTUAL, vaddr))
        virtual_loads.append(_load(abi, cursor, vaddr, -size, size))
        cursor += _up(size, align)
    phdrs = [
        Phdr(PT_NOTE, notes_offset, 0, 0, len(notes.data), len(notes.data)),
        *text_loads[:1],
        *ram_loads,
        *virtual_loads,
        *(_last_byte(load) for load in ram_loads[-1:] if virtual_loads),
    ]
    headers = _build_headers(abi, machine_number(target.machine), phdrs).ljust(notes_offset, b"\0") + notes.data
    return CorePlan(headers.ljust(_up(len(headers), align), b"\0"), extents, tuple(told))


def _up(value: int, align: int) -> int:
    return value + -value % align


def _word_size(
    target: CoreTarget, ram: RamRanges, align: int, virtual: Sequence[tuple[int, int]], notes_size: int
) -> int:
    """4 only if every address and file offset fits 32 bits."""
    if target.word_size == 8:
        return 8
    count = len(ram.ranges) + len(virtual) + 16
    size = sum(stop - start + 2 * align for start, stop in ram.ranges) + sum(size + align for _, size in virtual)
    size += notes_size + 64 * count + 3 * align
    highest = max((stop for _, stop in ram.ranges), default=0)
    return 4 if size < _LIMIT32 and highest <= _LIMIT32 else 8


def _shares(alias: Mapping, ranges: Sequence[tuple[int, int]]) -> list[tuple[Mapping, int, int]]:
    """The parts of a mapping that are RAM: the part, which range, and the offset inside it.

    The ranges a kernel's image spans are few, so no more than four are looked at.
    """
    found: list[tuple[Mapping, int, int]] = []
    i = max(bisect_right(ranges, (alias.paddr, 1 << 64)) - 1, 0)
    while i < len(ranges) and len(found) < 4 and ranges[i][0] < alias.paddr + alias.size:
        start = max(ranges[i][0], alias.paddr)
        stop = min(ranges[i][1], alias.paddr + alias.size)
        if start < stop:
            part = Mapping(alias.vaddr + start - alias.paddr, start, stop - start)
            found.append((part, i, start - ranges[i][0]))
        i += 1
    return found


def _direct(target: CoreTarget, page_offset: int | None, start: int, stop: int) -> int:
    """p_vaddr of a RAM range.

    A 32-bit kernel maps only low memory directly; the rest has all ones for an address, as kexec-tools writes it.
    """
    if page_offset is None:
        return start
    if target.kernel_word_size == 4 and page_offset + stop > _LIMIT32:
        return -1
    return page_offset + start


def _load(abi: Abi, offset: int, vaddr: int, paddr: int, size: int) -> Phdr:
    mask = (1 << 8 * abi.long_size) - 1
    return Phdr(PT_LOAD, offset, vaddr & mask, paddr & mask, size, size, _RWX)


def _last_byte(load: Phdr) -> Phdr:
    """The last byte of a range of RAM, as a PT_LOAD of its own."""
    inside = load.p_memsz - 1
    return load._replace(
        p_offset=load.p_offset + inside,
        p_vaddr=load.p_vaddr if load.p_vaddr == _LIMIT32 - 1 else load.p_vaddr + inside,
        p_paddr=load.p_paddr + inside,
        p_filesz=1,
        p_memsz=1,
    )


def _table_size(abi: Abi, count: int) -> int:
    """Bytes of ELF header, `count` program headers and, if e_phnum cannot say `count`, a section header."""
    extra = SHDR.size(abi) if count >= PN_XNUM else 0
    return EHDR.size(abi) + count * phdr_layout(abi).size(abi) + extra


def _build_headers(abi: Abi, machine: int, phdrs: Sequence[Phdr]) -> bytes:
    many = len(phdrs) >= PN_XNUM
    header_size, entry_size = EHDR.size(abi), phdr_layout(abi).size(abi)
    header = EHDR.build(
        abi,
        {
            "e_ident": build_ident(abi),
            "e_type": ET_CORE,
            "e_machine": machine,
            "e_version": EV_CURRENT,
            "e_phoff": header_size,
            "e_ehsize": header_size,
            "e_phentsize": entry_size,
            "e_phnum": PN_XNUM if many else len(phdrs),
            "e_shoff": header_size + entry_size * len(phdrs) if many else 0,
            "e_shentsize": SHDR.size(abi) if many else 0,
            "e_shnum": 1 if many else 0,
        },
    )
    parts = [header, build_phdrs(abi, phdrs)]
    if many:
        parts.append(SHDR.build(abi, {"sh_info": len(phdrs), "sh_size": 1}))
    return b"".join(parts)
