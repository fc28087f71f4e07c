"""x86_64: 4- and 5-level page tables, KASLR, and where the kernel is when nothing else tells.

Sources: Linux Documentation/arch/x86/x86_64/mm.rst (layout), arch/x86/include/asm/pgtable_types.h (entry bits), QEMU
target/i386/arch_dump.c (QEMUCPUState), libkdumpfile (the search window for the direct map), crash kaslr_helper.c (cr3
as the way in when there is no VMCOREINFO).
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
from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import LinearMap
from dumpfs.vmcoreinfo import Vmcoreinfo

START_KERNEL_MAP = 0xFFFFFFFF80000000
"""__START_KERNEL_map: the kernel image is linked at this plus its physical address."""
MODULES_STOP = 0xFFFFFFFFFF000000
DEFAULT_IMAGE_SIZE = 1 << 30
"""KERNEL_IMAGE_SIZE with KASLR (512 MiB without)."""
DEFAULT_TEXT = 0xFFFFFFFF81000000
"""Link address of _text under the default CONFIG_PHYSICAL_START of 16 MiB."""
_PMD = 1 << 21
_PUD = 1 << 30
_ADDRESS = 0x000FFFFFFFFFF000
_PRESENT, _PSE = 1 << 0, 1 << 7
_PTI_USER = 1 << 12
"""With page-table isolation a process has two root tables side by side; this cr3 bit picks the user's."""
_CR3, _CR4, _CR4_LA57 = 416, 424, 1 << 12
"""Byte offsets of cr3 and cr4 in QEMU's note, and cr4's bit for 5-level paging."""

DIRECT_MAP = {
    4: (0xFFFF880000000000, 0xFFFFC80000000000, (0xFFFF888000000000, 0xFFFF880000000000, 0xFFFF810000000000)),
    5: (0xFF11000000000000, 0xFF91000000000000, (0xFF11000000000000, 0xFF10000000000000)),
}
"""By page-table levels: the window KASLR puts the direct map in, and its defaults (4.20 on, before, before 2.6.27)."""


def page_tables(phys: PhysMemory, root: int, depth: int, encryption_mask: int = 0, *, user: bool = False) -> PageTables:
    """The tables at physical address `root`.

    Args:
        phys: physical memory.
        root: bytes.
        depth: 4 or 5 levels.
        encryption_mask: AMD's sme_mask, taken out of every entry's address.
        user: translate the lower half (a process) instead of the kernel's.
    """
    address = _ADDRESS & ~encryption_mask
    levels = []
    for number in range(depth, 0, -1):
        shift = 12 + 9 * (number - 1)
        if number == 1:
            leaf = (0, 0)  # bit 7 is the PAT bit here, every entry maps a page
        elif number <= 3:
            leaf = (_PSE, _PSE)  # bit 12 of such an entry is PAT, which the walk aligns away
        else:
            leaf = (0, 1)  # no memory is mapped this high up
        levels.append(Level(shift, 9, _PRESENT, _PRESENT, *leaf, address, address))
    bits = 12 + 9 * depth
    half = 1 << (bits - 1)
    if user:
        return PageTables(phys, root, tuple(levels), "little", stop=half)
    top = 1 << 64
    return PageTables(phys, root, tuple(levels), "little", base=top - 2 * half, first=top - half, stop=top)


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Find phys_base, page tables, direct map and text mapping, each by the best source there is."""
    layout = KernelLayout()
    info = facts.info
    root = None
    if info is not None:
        root = next((s for n in _ROOTS if (s := info.symbol(n)) is not None), None)
        if info.kaslr_offset is not None:
            layout.set("kaslr_offset", info.kaslr_offset, "VMCOREINFO KERNELOFFSET")
    if root is not None:
        _find_by_root(facts, layout, root)
    if layout.tables is None:
        _find_by_cr3(facts, layout)
    if facts.kaslr is not None:
        layout.set("kaslr_offset", facts.kaslr, "option kaslr")
    if layout.phys_base is None:
        for value, origin in _phys_base_candidates(facts):
            layout.set("phys_base", value, origin + ", unconfirmed")
            break
    _find_text(facts, layout)
    _find_direct_map(facts, layout)
    return layout


_ROOTS = ("init_top_pgt", "init_level4_pgt", "swapper_pg_dir")
"""Names of the kernel's root table: since 4.13, before, and an alias of either."""


def _phys_base_candidates(facts: LayoutFacts) -> Iterator[tuple[int, str]]:
    """(value, origin), best first. QEMU's header field is wrong on relocated kernels, hence so far down."""
    if facts.phys_base is not None:
        yield facts.phys_base, "option phys_base"
    if facts.info is not None:
        number = facts.info.number("phys_base")
        if number is not None:
            yield number, "VMCOREINFO NUMBER(phys_base)"
    for vaddr, paddr, _ in sorted(facts.meta.virtual_loads):
        if START_KERNEL_MAP <= vaddr < START_KERNEL_MAP + DEFAULT_IMAGE_SIZE:
            yield paddr - (vaddr - START_KERNEL_MAP), "the kernel text PT_LOAD"
            break
    if facts.info is not None:
        by_cr3 = KernelLayout()
        _find_by_cr3(facts, by_cr3)
        if by_cr3.phys_base is not None:
            yield by_cr3.phys_base, by_cr3.origins["phys_base"]
    if facts.meta.phys_base is not None:
        yield facts.meta.phys_base, "the dump header"
    yield 0, "the default"


def _find_by_root(facts: LayoutFacts, layout: KernelLayout, root: int) -> None:
    """Tables by the root's symbol: the first phys_base under which the tables map themselves."""
    assert facts.info is not None
    la57 = facts.info.number("pgtable_l5_enabled")
    depths = (4, 5) if la57 is None else (5,) if la57 else (4,)
    mask = (facts.info.number("sme_mask") or 0) & U64
    unconfirmed: tuple[int, str, PageTables] | None = None
    refuted = []
    for phys_base, origin in _phys_base_candidates(facts):
        paddr = (root - START_KERNEL_MAP + phys_base) & U64
        for depth in depths:
            tables = page_tables(facts.phys, paddr, depth, mask)
            right = translates_to_itself(tables, root, paddr)
            if right or (right is None and facts.phys_base is not None):
                layout.tables = tables
                layout.set("phys_base", phys_base, origin)
                if facts.phys_base not in (None, phys_base):
                    layout.problems.append(
                        f"phys_base={facts.phys_base:#x} leads to no page tables; {phys_base:#x} from {origin} does"
                    )
                return
            if right is None and unconfirmed is None:
                unconfirmed = (phys_base, origin, tables)
        refuted.append(origin)
    if unconfirmed is not None:
        phys_base, origin, tables = unconfirmed
        layout.tables = tables
        layout.set("phys_base", phys_base, origin)
        layout.problems.append(f"phys_base from {origin} could not be checked: page tables are missing from the dump")
    else:
        layout.problems.append(f"no page tables where {', '.join(refuted)} would have them")


def _find_by_cr3(facts: LayoutFacts, layout: KernelLayout) -> None:
    """Tables by a processor's cr3, and phys_base by the lowest mapping of the kernel image in them."""
    for root, depth in _cr3_roots(facts):
        mask = (facts.info.number("sme_mask") or 0) & U64 if facts.info is not None else 0
        tables = page_tables(facts.phys, root, depth, mask)
        found = tables.first_mapped(START_KERNEL_MAP, START_KERNEL_MAP + DEFAULT_IMAGE_SIZE)
        if found is None:
            continue
        vaddr, paddr = found
        layout.tables = tables
        origin = "page tables found by a search" if facts.root is not None else "page tables of a processor's cr3"
        layout.set("phys_base", paddr - (vaddr - START_KERNEL_MAP), origin)
        if layout.kaslr_offset is None:
            layout.set("kaslr_offset", vaddr - DEFAULT_TEXT, "page tables, if linked at 16 MiB")
        return


def _cr3_roots(facts: LayoutFacts) -> Iterator[tuple[int, int]]:
    """(root, levels) of every processor, kernel tables; most filled kernel half first for each.

    Of the two tables of a process under page-table isolation only the kernel's maps more than entry code, and bit 12
    of cr3 tells nothing on machines without it: the fuller kernel half is the one.
    """
    if facts.root is not None:
        yield facts.root
        return
    for note in facts.notes:
        if note.name != b"QEMU" or len(note.desc) < _CR4 + 8:
            continue
        cr3 = int.from_bytes(note.desc[_CR3 : _CR3 + 8], "little")
        cr4 = int.from_bytes(note.desc[_CR4 : _CR4 + 8], "little")
        depth = 5 if cr4 & _CR4_LA57 else 4
        root = cr3 & _ADDRESS
        choices = sorted({root, root & ~_PTI_USER}, key=lambda r: -kernel_entries(facts.phys, r))
        for choice in choices:
            if kernel_entries(facts.phys, choice):
                yield choice, depth


def kernel_entries(phys: PhysMemory, root: int) -> int:
    """Entries present in the kernel half of a root table."""
    try:
        half = phys.read(root + 0x800, 0x800)
    except DumpfsError:
        return 0
    return sum(1 for i in range(0, len(half), 8) if half[i] & _PRESENT)


def _search_root(phys: PhysMemory) -> tuple[int, int] | None:
    from dumpfs.arch.x86_roots import find_root

    return find_root(phys)


def find_kaslr(facts: LayoutFacts, linked: Vmcoreinfo) -> int | None:
    """KASLR offset by what the page tables map first of the kernel image, which is `_text`."""
    start = linked.symbol("_text") or linked.symbol("_stext")
    layout = KernelLayout()
    _find_by_cr3(facts, layout)
    if layout.tables is None or layout.phys_base is None or start is None:
        return None
    found = layout.tables.first_mapped(START_KERNEL_MAP, START_KERNEL_MAP + DEFAULT_IMAGE_SIZE)
    return None if found is None else found[0] - (start & -_PMD)


def _find_text(facts: LayoutFacts, layout: KernelLayout) -> None:
    """The kernel image's mapping: start and size from the PT_LOAD, the page tables, or VMCOREINFO."""
    if layout.phys_base is None:
        return
    info = facts.info
    limit = (info.number("KERNEL_IMAGE_SIZE") if info is not None else None) or DEFAULT_IMAGE_SIZE
    limit = min(max(limit, _PMD), DEFAULT_IMAGE_SIZE)
    start = size = 0
    for vaddr, paddr, memsz in sorted(facts.meta.virtual_loads):  # makedumpfile -E may have cut it into several
        inside = vaddr >= START_KERNEL_MAP and vaddr + memsz <= START_KERNEL_MAP + limit
        if inside and paddr - (vaddr - START_KERNEL_MAP) == layout.phys_base:
            start = start or vaddr
            size = max(size, vaddr + memsz - start)
            layout.origins["text"] = "the kernel text PT_LOAD"
    stext = info.symbol("_stext") if info is not None else None
    if layout.tables is not None and (not size or (stext is not None and not start <= stext < start + size)):
        start, size = _mapped_text(layout.tables, layout.phys_base, limit)
        layout.origins["text"] = "page tables"
    if not size and stext is not None and START_KERNEL_MAP <= stext < START_KERNEL_MAP + limit:
        start = stext & -_PMD
        size = START_KERNEL_MAP + limit - start
        layout.origins["text"] = "VMCOREINFO SYMBOL(_stext)"
    paddr = start - START_KERNEL_MAP + layout.phys_base
    size = min(size, START_KERNEL_MAP + limit - start, facts.phys.size - paddr)
    if size <= 0 or paddr < 0:
        layout.origins.pop("text", None)
        return
    text = LinearMap("text", start, size, paddr)
    if layout.tables is not None and map_is_right(layout.tables, text, _text_samples(text, stext)) is False:
        layout.problems.append(f"the page tables do not map the kernel image at {start:#x} as phys_base says")
        layout.origins.pop("text", None)
        return
    layout.text = (start, paddr, size)
    layout.linear.append(text)


def _text_samples(text: LinearMap, stext: int | None) -> tuple[int, ...]:
    """Physical addresses to check; neither freed init memory nor the image's end need be mapped."""
    vaddr = text.vaddr if stext is None else stext
    return (text.paddr, text.paddr + vaddr - text.vaddr)


def _mapped_text(tables: PageTables, phys_base: int, limit: int) -> tuple[int, int]:
    """(vaddr, bytes) from the first to the last page of the image window that lies where phys_base has it."""
    start = end = 0
    for area in tables.areas(START_KERNEL_MAP, START_KERNEL_MAP + limit, max_tables=2048):
        vaddr = area.vaddr
        for paddr, size in area.runs:
            if paddr - (vaddr - START_KERNEL_MAP) == phys_base:
                start = start or vaddr
                end = vaddr + size
            vaddr += size
    return start, end - start


def _find_direct_map(facts: LayoutFacts, layout: KernelLayout) -> None:
    """The direct map's base: PT_LOADs, the page tables, or the default; only one that the tables do not refute."""
    depth = len(layout.tables.levels) if layout.tables is not None else 4
    if layout.tables is None and facts.info is not None and facts.info.number("pgtable_l5_enabled"):
        depth = 5
    samples = direct_map_samples(facts.phys)
    for base, origin in _direct_map_candidates(facts, layout, depth):
        linear = LinearMap("direct map", base, facts.phys.size, 0)
        right = None if layout.tables is None else map_is_right(layout.tables, linear, samples)
        if right is False:
            continue
        if right is None:
            if origin.endswith("default"):
                # A guess that nothing confirms must not hand out bytes; it still serves to place PT_LOADs.
                layout.set("page_offset", base, origin + ", unconfirmed")
                return
            origin += ", unconfirmed"
        layout.set("page_offset", base, origin)
        layout.linear.append(linear)
        return
    layout.problems.append("the direct map was not found in the page tables")


def _direct_map_candidates(facts: LayoutFacts, layout: KernelLayout, depth: int) -> Iterator[tuple[int, str]]:
    low, high, defaults = DIRECT_MAP[depth]
    votes: dict[int, int] = {}
    for vaddr, paddr, memsz in facts.meta.virtual_loads:
        base = vaddr - paddr
        if defaults[-1] <= vaddr < START_KERNEL_MAP and base % _PUD == 0 and paddr < facts.phys.size:
            votes[base] = votes.get(base, 0) + memsz
    if votes:
        yield max(votes, key=lambda b: votes[b]), "PT_LOADs"
    if layout.tables is not None:
        found = layout.tables.first_mapped(low, high)
        if found is not None and (found[0] - found[1]) % _PUD == 0:
            yield found[0] - found[1], "page tables"
    for base in defaults:
        yield base, "the default"


ARCHES = {
    "x86_64": Arch(
        name="x86_64",
        word_size=8,
        page_sizes=(0x1000,),
        prstatus=prstatus_layout(
            336,
            8,
            "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base"
            " ds es fs gs",
        ),
        program_counter="rip",
        stack_pointer="rsp",
        build_layout=build_layout,
        signed_char=True,
        find_kaslr=find_kaslr,
        find_root=_search_root,
    )
}
