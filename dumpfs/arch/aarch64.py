"""aarch64: page tables of every granule and address width, the linear map, and the kernel image.

Sources: Arm ARM (VMSAv8-64 descriptors, LPA and LPA2 address bits), Linux arch/arm64/include/asm/{memory.h,pgtable-*.h}
and Documentation/arch/arm64/memory.rst (layout before and since 5.4), makedumpfile arch/arm64.c (which keys to use).
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.arch.base import (
    U64,
    Arch,
    KernelLayout,
    LayoutFacts,
    direct_map_samples,
    map_is_right,
    prstatus_layout,
    translates_to_itself,
)
from dumpfs.arch.walk import Level, PageTables
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import LinearMap
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

_TYPE = 0b11
_TABLE_OR_PAGE, _BLOCK = 0b11, 0b01
_MAX_IMAGE = 1 << 30
"""Bytes of the image mapping assumed when the page tables do not tell; real ones are under 100 MiB."""


def page_tables(
    phys: PhysMemory, root: int, page_size: int, va_bits: int, byteorder: ByteOrder = "little"
) -> PageTables:
    """The kernel's (TTBR1) tables at physical address `root`.

    Args:
        phys: physical memory.
        root: bytes.
        page_size: granule, 4, 16 or 64 KiB.
        va_bits: virtual address bits the root table covers, 36 to 52.
        byteorder: the kernel's.
    """
    page_shift = page_size.bit_length() - 1
    index_bits = page_shift - 3
    count = -((page_shift - va_bits) // index_bits)
    low = (1 << page_shift) - 1
    if page_size == 0x10000:
        # LPA: bits 15:12 hold address bits 51:48; zero where the kernel has no 52-bit addresses.
        address, high = (1 << 48) - 1 & ~low, (0xF000, 36)
    elif va_bits > 48:
        # LPA2: bits 9:8 hold address bits 51:50, and 49:48 are in place.
        address, high = (1 << 50) - 1 & ~low, (0x300, 42)
    else:
        address, high = (1 << 48) - 1 & ~low, (0, 0)
    levels = []
    for number in range(count, 0, -1):
        shift = page_shift + index_bits * (number - 1)
        bits = min(index_bits, va_bits - shift)
        if number == 1:
            levels.append(Level(shift, bits, _TYPE, _TABLE_OR_PAGE, 0, 0, address, address, *high))
        else:
            levels.append(Level(shift, bits, 1, 1, _TYPE, _BLOCK, address, address, *high))
    top = 1 << 64
    return PageTables(phys, root, tuple(levels), byteorder, base=top - (1 << va_bits), stop=top)


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Find the image and linear maps and the page tables from VMCOREINFO, checking the maps by the tables."""
    layout = KernelLayout()
    info = facts.info
    if info is None:
        layout.problems.append("aarch64 needs VMCOREINFO to find the kernel's memory")
        return layout
    if info.kaslr_offset is not None:
        layout.set("kaslr_offset", info.kaslr_offset, "VMCOREINFO KERNELOFFSET")
    if facts.kaslr is not None:
        layout.set("kaslr_offset", facts.kaslr, "option kaslr")
    voffset = _image_offset(facts, layout, info)
    if voffset is not None:
        _find_tables(facts, layout, info, voffset)
        _find_image(facts, layout, info, voffset)
    _find_direct_map(facts, layout, info)
    return layout


def _image_offset(facts: LayoutFacts, layout: KernelLayout, info: Vmcoreinfo) -> int | None:
    """kimage_voffset: virtual minus physical address of the kernel image."""
    voffset = info.number("kimage_voffset")
    if voffset is not None:
        layout.origins["text"] = "VMCOREINFO NUMBER(kimage_voffset)"
        return voffset & U64
    stext = info.symbol("_stext")
    for vaddr, paddr, memsz in facts.meta.virtual_loads:
        if stext is not None and vaddr <= stext < vaddr + memsz:
            layout.origins["text"] = "the kernel text PT_LOAD"
            return (vaddr - paddr) & U64
    layout.problems.append("no kimage_voffset in VMCOREINFO")
    return None


def _find_tables(facts: LayoutFacts, layout: KernelLayout, info: Vmcoreinfo, voffset: int) -> None:
    root = info.symbol("swapper_pg_dir")
    if root is None:
        layout.problems.append("no swapper_pg_dir in VMCOREINFO")
        return
    paddr = (root - voffset) & U64
    for bits in _table_bits(facts.page_size, info):
        tables = page_tables(facts.phys, paddr, facts.page_size, bits, facts.byteorder)
        right = translates_to_itself(tables, root, paddr)
        if right is not False:
            layout.tables = tables
            if right is None:
                layout.problems.append("page tables are missing from the dump")
            return
    layout.problems.append(f"no page tables at {paddr:#x}, where swapper_pg_dir should be")


def _table_bits(page_size: int, info: Vmcoreinfo) -> list[int]:
    """Address widths swapper_pg_dir may have been laid out for, the likeliest first.

    VA_BITS is what the kernel was configured for, 64 - T1SZ what the processor does. A 64 KiB kernel for 52 bits
    indexes its root as for 52 bits even on a 48-bit processor; with smaller pages the top level is left out there.
    """
    configured = info.number("VA_BITS")
    t1sz = info.number("TCR_EL1_T1SZ")
    actual = 64 - t1sz if t1sz is not None else None
    choices = (configured, actual) if page_size == 0x10000 else (actual, configured)
    order = list(dict.fromkeys(b for b in choices if b is not None and 36 <= b <= 52))
    return order or [48, 39, 52]


def _find_image(facts: LayoutFacts, layout: KernelLayout, info: Vmcoreinfo, voffset: int) -> None:
    stext = info.symbol("_stext")
    if stext is None:
        return
    vaddr = stext & -0x10000  # _text comes at most 64 KiB (SEGMENT_ALIGN) before it
    size = _MAX_IMAGE
    for load_vaddr, paddr, memsz in facts.meta.virtual_loads:
        if load_vaddr <= stext < load_vaddr + memsz and (load_vaddr - paddr) & U64 == voffset:
            vaddr, size = load_vaddr, memsz
            break
    else:
        if layout.tables is not None:
            mapped = _mapped_image(layout.tables, vaddr, voffset)
            if mapped is not None:
                vaddr, size = mapped
    paddr = (vaddr - voffset) & U64
    size = min(size, facts.phys.size - paddr)
    if size <= 0:
        layout.problems.append(f"the kernel image would be at {paddr:#x}, where there is no memory")
        return
    text = LinearMap("text", vaddr, size, paddr)
    check = (stext - voffset) & U64
    if layout.tables is not None and map_is_right(layout.tables, text, (check,)) is False:
        layout.problems.append(f"the page tables do not map the kernel image at {paddr:#x}")
        return
    layout.text = (vaddr, paddr, size)
    layout.linear.append(text)


def _mapped_image(tables: PageTables, vaddr: int, voffset: int) -> tuple[int, int] | None:
    """(vaddr, bytes) of what the tables map around the image's start as `voffset` has it, gaps included."""
    start = end = 0
    for area in tables.areas(vaddr - 0x200000, vaddr + _MAX_IMAGE, max_tables=2048):
        here = area.vaddr
        for paddr, size in area.runs:
            if (here - paddr) & U64 == voffset:
                start = start or here
                end = here + size
            here += size
    return (start, end - start) if start else None


def _find_direct_map(facts: LayoutFacts, layout: KernelLayout, info: Vmcoreinfo) -> None:
    """The linear map: since 5.4 it starts at the lowest kernel address, before in the middle."""
    samples = direct_map_samples(facts.phys)
    for base, paddr, origin in _direct_map_candidates(facts, info):
        size = facts.phys.size - paddr
        if size <= 0:
            continue
        linear = LinearMap("direct map", base, size, paddr)
        right = None if layout.tables is None else map_is_right(layout.tables, linear, samples)
        if right is False:
            continue
        layout.set("page_offset", (base - paddr) & U64, origin if right else origin + ", unconfirmed")
        layout.set("phys_base", paddr, origin)
        layout.linear.append(linear)
        return
    layout.problems.append("the linear map was not found")


def _direct_map_candidates(facts: LayoutFacts, info: Vmcoreinfo) -> Iterator[tuple[int, int, str]]:
    """(vaddr, paddr, origin) of where the linear map may start."""
    bits = info.number("VA_BITS") or 48
    if not 36 <= bits <= 52:
        return
    lowest = (1 << 64) - (1 << bits)
    middle = (1 << 64) - (1 << (bits - 1))
    phys_offset = info.number("PHYS_OFFSET")
    stext = info.symbol("_stext")
    old = stext is not None and stext < middle  # the image lives in the half that is not the linear map's
    for base in (middle, lowest) if old else (lowest, middle):
        if phys_offset is not None:
            shift = phys_offset if phys_offset < 1 << 63 else phys_offset - (1 << 64)
            if shift >= 0:
                yield base, shift, "VMCOREINFO NUMBER(PHYS_OFFSET)"
            else:  # memstart_addr goes below zero when a 52-bit kernel runs on a 48-bit processor
                yield base - shift, 0, "VMCOREINFO NUMBER(PHYS_OFFSET)"
    for vaddr, paddr, memsz in facts.meta.virtual_loads:
        if vaddr >= lowest and memsz and paddr < facts.phys.size and not (stext and vaddr <= stext < vaddr + memsz):
            yield vaddr, paddr, "PT_LOADs"
            break


ARCHES = {
    "aarch64": Arch(
        name="aarch64",
        word_size=8,
        page_sizes=(0x1000, 0x10000, 0x4000),
        prstatus=prstatus_layout(392, 8, " ".join(f"x{i}" for i in range(31)) + " sp pc pstate"),
        program_counter="pc",
        stack_pointer="sp",
        build_layout=build_layout,
    )
}
