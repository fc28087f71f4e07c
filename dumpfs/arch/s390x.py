"""s390x: region, segment and page tables, the identity mapping, and what the lowcore tells.

Sources: z/Architecture Principles of Operation (table entries, lowcore), Linux arch/s390/include/asm/{pgtable.h,
lowcore.h,os_info.h}, arch/s390/kernel/vmcore_info.c (KERNELOFFPHYS, IDENTITYBASE since 6.10), makedumpfile arch/s390x.c
(the root table tells its own type).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dumpfs.arch.base import (
    U64,
    Arch,
    KernelLayout,
    LayoutFacts,
    PrstatusLayout,
    direct_map_samples,
    map_is_right,
    translates_to_itself,
)
from dumpfs.arch.walk import Level, PageTables
from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import LinearMap
from dumpfs.notes import parse_notes
from dumpfs.vmcoreinfo import Vmcoreinfo

_INVALID = 0x20
_LARGE = 0x400
"""FC in region-third and segment entries; the invalid bit in page-table entries."""
_TYPE_SHIFT, _TYPE_MASK = 2, 0xC
"""Table type in region and segment entries: 3 region first ... 1 region third, 0 segment."""
_ORIGIN = ~0xFFF & U64
_SEGMENT_ORIGIN = ~0x7FF & U64
_ASCE_TYPE = 0xC

_NT_S390_CTRS = 0x304
_CR_KERNEL = (13, 1)
"""Control registers that hold the kernel's address space: home space, and primary space in kernel mode."""

_LOWCORE_VMCOREINFO = 0xE0C
_LOWCORE_OS_INFO = 0xE18
_LOWCORE_CREGS = 0x1380
"""Absolute addresses; the register save area is filled by the store-status operation of a dump."""
_OS_INFO_MAGIC = 0x4F53494E464F535A
_OS_INFO_ENTRY = 32
"""Byte offset of the first entry, which is VMCOREINFO: address u64, size u64."""
_MAX_VMCOREINFO = 1 << 16


def page_tables(phys: PhysMemory, root: int, region_tables: int) -> PageTables:
    """The tables at physical address `root`.

    Linux always makes whole tables, so the length and offset fields of entries are not looked at.

    Args:
        phys: physical memory.
        root: bytes.
        region_tables: levels above the segment table, 0 to 3.
    """
    levels = []
    for kind in range(region_tables, 0, -1):
        shift = 20 + 11 * kind
        leaf = (_LARGE, _LARGE) if kind == 1 else (0, 1)
        wanted = kind << _TYPE_SHIFT
        levels.append(Level(shift, 11, _INVALID | _TYPE_MASK, wanted, *leaf, _ORIGIN, _ORIGIN))
    levels.append(Level(20, 11, _INVALID | _TYPE_MASK, 0, _LARGE, _LARGE, _ORIGIN, _SEGMENT_ORIGIN))
    levels.append(Level(12, 8, _LARGE, 0, 0, 0, _ORIGIN, _ORIGIN))
    return PageTables(phys, root, tuple(levels), "big")


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Find the page tables, the kernel image and the identity mapping."""
    layout = KernelLayout()
    info = facts.info
    image_shift = identity_base = 0
    origin = "the architecture"
    if info is not None:
        image_shift, identity_base = _shifts(info)
        if "IDENTITYBASE" in info:
            origin = "VMCOREINFO IDENTITYBASE"
        if info.kaslr_offset is not None:
            layout.set("kaslr_offset", info.kaslr_offset, "VMCOREINFO KERNELOFFSET")
    if facts.kaslr is not None:
        layout.set("kaslr_offset", facts.kaslr, "option kaslr")
    layout.set("phys_base", 0, "the architecture")
    _find_tables(facts, layout, image_shift, identity_base)
    if image_shift != identity_base and info is not None:
        _find_image(facts, layout, info, image_shift)
    linear = LinearMap("identity mapping", identity_base, facts.phys.size, 0)
    right = None if layout.tables is None else map_is_right(layout.tables, linear, direct_map_samples(facts.phys))
    layout.set("page_offset", identity_base, origin)
    if right is False:
        layout.problems.append(f"the page tables do not map memory at {identity_base:#x}")
    else:
        layout.linear.append(linear)
    return layout


def _shifts(info: Vmcoreinfo) -> tuple[int, int]:
    """(virtual minus physical address of the kernel image, address of the identity mapping).

    Both are 0 before 6.10, where virtual and physical addresses were the same.
    """
    values = {}
    for key in ("KERNELOFFSET", "KERNELOFFPHYS", "IDENTITYBASE"):
        try:
            values[key] = int(info.get(key) or "", 16)
        except ValueError:
            continue
    shift = values["KERNELOFFSET"] - values["KERNELOFFPHYS"] if "KERNELOFFPHYS" in values else 0
    return shift, values.get("IDENTITYBASE", 0)


def _find_image(facts: LayoutFacts, layout: KernelLayout, info: Vmcoreinfo, shift: int) -> None:
    """The kernel image's own mapping (6.10 and later)."""
    stext = info.symbol("_stext")
    if stext is None:
        return
    vaddr = min(stext & -0x100000, layout.kaslr_offset if layout.kaslr_offset is not None else stext)
    size = min(1 << 28, facts.phys.size - (vaddr - shift))
    text = LinearMap("text", vaddr, size, vaddr - shift)
    if size <= 0 or vaddr < shift:
        layout.problems.append(f"the kernel image would be at {vaddr - shift:#x}, where there is no memory")
    elif layout.tables is not None and map_is_right(layout.tables, text, (stext - shift,)) is False:
        layout.problems.append(f"the page tables do not map the kernel image at {vaddr - shift:#x}")
    else:
        layout.text = (vaddr, vaddr - shift, size)
        layout.origins["text"] = "VMCOREINFO KERNELOFFSET and KERNELOFFPHYS"
        layout.linear.append(text)


def _find_tables(facts: LayoutFacts, layout: KernelLayout, image_shift: int, identity_base: int) -> None:
    """The first root under which a known address maps to itself."""
    known = facts.info.symbol("swapper_pg_dir") if facts.info is not None else None
    first = next(iter(facts.phys.ram.runs()), (0, 0))[0] << facts.phys.page_shift
    for root, regions in _roots(facts, image_shift):
        tables = page_tables(facts.phys, root, regions)
        check = (known, known - image_shift) if known is not None else (identity_base + first, first)
        if translates_to_itself(tables, *check):
            layout.tables = tables
            return
    layout.problems.append("no page tables found; only the identity mapping can be read")


def _roots(facts: LayoutFacts, image_shift: int) -> Iterator[tuple[int, int]]:
    """(root, region tables) by symbol, control registers in notes, and those in the absolute lowcore."""
    symbol = facts.info.symbol("swapper_pg_dir") if facts.info is not None else None
    if symbol is not None and symbol >= image_shift:
        root = symbol - image_shift
        try:
            entry = int.from_bytes(facts.phys.read(root, 8), "big")
        except DumpfsError:
            entry = 0
        yield root, (entry & _TYPE_MASK) >> _TYPE_SHIFT
    for note in facts.notes:
        if note.name == b"LINUX" and note.type == _NT_S390_CTRS and len(note.desc) >= 128:
            registers = struct.unpack_from(">16Q", note.desc)
            yield from (_asce(registers[n]) for n in _CR_KERNEL)
    try:
        registers = struct.unpack(">16Q", facts.phys.read(_LOWCORE_CREGS, 128))
    except DumpfsError:
        return
    yield from (_asce(registers[n]) for n in _CR_KERNEL)


def _asce(value: int) -> tuple[int, int]:
    """(root, region tables) of an address-space-control element."""
    return value & _ORIGIN, (value & _ASCE_TYPE) >> _TYPE_SHIFT


def find_vmcoreinfo(phys: PhysMemory) -> tuple[bytes, str] | None:
    """VMCOREINFO's text by way of the absolute lowcore, and by which pointer; None when it leads nowhere."""
    try:
        note = int.from_bytes(phys.read(_LOWCORE_VMCOREINFO, 8), "big")
        text = _note_text(phys, note) if note else None
        if text:
            return text, "the note that lowcore 0xe0c points to"
        text = _os_info_text(phys, int.from_bytes(phys.read(_LOWCORE_OS_INFO, 8), "big"))
    except DumpfsError:
        return None
    return (text, "os_info (lowcore 0xe18)") if text else None


def _note_text(phys: PhysMemory, paddr: int) -> bytes | None:
    namesz, descsz, _ = struct.unpack(">3I", phys.read(paddr, 12))
    if namesz != len(b"VMCOREINFO") + 1 or not 0 < descsz <= _MAX_VMCOREINFO:
        return None
    note = next(parse_notes(phys.read(paddr, 24 + descsz), "big"), None)
    return note.desc if note is not None and note.name == b"VMCOREINFO" else None


def _os_info_text(phys: PhysMemory, paddr: int) -> bytes | None:
    header = phys.read(paddr, _OS_INFO_ENTRY + 16)
    if int.from_bytes(header[:8], "big") != _OS_INFO_MAGIC:
        return None
    address, size = struct.unpack_from(">2Q", header, _OS_INFO_ENTRY)
    if not 0 < size <= _MAX_VMCOREINFO:
        return None
    text = phys.read(address, size)
    return text if text.startswith(b"OSRELEASE=") else _note_text(phys, address)


def _prstatus() -> PrstatusLayout:
    registers = [("psw_mask", 112, 8), ("psw_addr", 120, 8)]
    registers += [(f"r{i}", 128 + 8 * i, 8) for i in range(16)]
    registers += [(f"a{i}", 256 + 4 * i, 4) for i in range(16)]
    registers.append(("orig_gpr2", 320, 8))
    return PrstatusLayout(336, 32, tuple(registers))


ARCHES = {
    "s390x": Arch(
        name="s390x",
        word_size=8,
        page_sizes=(0x1000,),
        prstatus=_prstatus(),
        program_counter="psw_addr",
        stack_pointer="r15",
        build_layout=build_layout,
        byteorder="big",
        find_vmcoreinfo=find_vmcoreinfo,
    )
}
