"""x86_64: 4- and 5-level page tables, KASLR, and where the kernel is when nothing else tells.

Sources: Linux Documentation/arch/x86/x86_64/mm.rst (layout), arch/x86/include/asm/pgtable_types.h (entry bits), QEMU
target/i386/arch_dump.c (QEMUCPUState), libkdumpfile (the search window for the direct map), crash kaslr_helper.c (cr3
as the way in when there is no VMCOREINFO).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dumpfs.arch.base import (
    U64,
    Arch,
    KernelLayout,
    LayoutFacts,
    map_is_right,
    prstatus_layout,
    translates_to_itself,
)
from dumpfs.arch.evidence import find_by_utsname, has_utsname
from dumpfs.arch.walk import Level, PageTables
from dumpfs.arch.x86_direct import START_KERNEL_MAP, find_direct_map
from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import LinearMap
from dumpfs.vmcoreinfo import Vmcoreinfo

MODULES_STOP = 0xFFFFFFFFFF000000
DEFAULT_IMAGE_SIZE = 1 << 30
"""KERNEL_IMAGE_SIZE with KASLR (512 MiB without)."""
DEFAULT_TEXT = 0xFFFFFFFF81000000
"""Link address of _text under the default CONFIG_PHYSICAL_START of 16 MiB."""
_PMD = 1 << 21
_ADDRESS = 0x000FFFFFFFFFF000
_PRESENT, _PSE = 1 << 0, 1 << 7
_PTI_USER = 1 << 12
"""With page-table isolation a process has two root tables side by side; this cr3 bit picks the user's."""
_CR3, _CR4, _CR4_LA57 = 416, 424, 1 << 12
"""Byte offsets of cr3 and cr4 in QEMU's note, and cr4's bit for 5-level paging."""

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
    if layout.phys_base is None and not layout.is_refuted:
        for value, origin in _phys_base_candidates(facts):
            layout.set("phys_base", value, origin + ", unconfirmed")
            break
    _find_text(facts, layout)
    find_direct_map(facts, layout)
    return layout


_TOLD_BY_USER, _TOLD_BY_KERNEL = "option phys_base", "VMCOREINFO NUMBER(phys_base)"
_MERE_GUESSES = ("the dump header", "the default")
"""QEMU fills the header's field with its own guess."""

_ROOTS = ("init_top_pgt", "init_level4_pgt", "swapper_pg_dir")
"""Names of the kernel's root table: since 4.13, before, and an alias of either."""


def _phys_base_candidates(facts: LayoutFacts) -> Iterator[tuple[int, str]]:
    """(value, origin), best first. QEMU's header field is wrong on relocated kernels, hence so far down."""
    if facts.phys_base is not None:
        yield facts.phys_base, _TOLD_BY_USER
    if facts.info is not None:
        number = facts.info.number("phys_base")
        if number is not None:
            yield number, _TOLD_BY_KERNEL
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


class _Guess(NamedTuple):
    """A phys_base and what memory says of it."""

    phys_base: int
    origin: str
    tables: PageTables
    right: bool | None
    """Whether its tables map themselves; None when one is missing."""
    named: bool | None
    """Whether the kernel's name is where it puts `init_uts_ns`; None when that is missing."""


def _find_by_root(facts: LayoutFacts, layout: KernelLayout, root: int) -> None:
    """Tables by the root's symbol: the first phys_base under which the tables map themselves.

    Where none does, one by which the kernel's name is where it should be; else what VMCOREINFO says, if it may be so.
    A guess that memory refutes places nothing.
    """
    assert facts.info is not None
    guesses: list[_Guess] = []
    for phys_base, origin in _phys_base_candidates(facts):
        for guess in _guesses(facts, root, phys_base, origin):
            if guess.right or (guess.right is None and facts.phys_base is not None):
                _take(layout, guess)
                if facts.phys_base not in (None, phys_base):
                    layout.problems.append(
                        f"phys_base={facts.phys_base:#x} leads to no page tables; {phys_base:#x} from {origin} does"
                    )
                return
            guesses.append(guess)
    chosen = _choose(guesses)
    if chosen is None:
        found = find_by_utsname(facts.phys, facts.info, START_KERNEL_MAP, _PMD)
        if found is not None:
            _suspect_holes(facts, layout, found)
            searched = _choose(list(_guesses(facts, root, found, "a search for the kernel's name")))
            # Its name is there; where the tables say that it ran elsewhere, the addresses are another boot's.
            chosen = searched if searched is not None and searched.right is not False else None
    if chosen is None or chosen.right is False:
        refuted = dict.fromkeys(guess.origin for guess in guesses if guess.right is False or guess.named is False)
        layout.problems.append(f"no page tables where {', '.join(refuted)} would have them")
    if chosen is None:
        layout.is_refuted = True
        return
    _take(layout, chosen)
    if chosen.right is None:
        origin = chosen.origin
        layout.problems.append(f"phys_base from {origin} could not be checked: page tables are missing from the dump")


def _suspect_holes(facts: LayoutFacts, layout: KernelLayout, found: int) -> None:
    """Say so when a flat image has the kernel elsewhere than it says it was loaded: holes may have been left out."""
    told = facts.info.number("phys_base") if facts.info is not None else None
    if facts.meta.format == "raw" and told is not None and found < told:
        layout.problems.append(
            f"the kernel's name lies {told - found:#x} bytes below where it says it is: the image seems to have its"
            " holes removed; -o map=OFFSET:ADDRESS:SIZE tells where its pieces belong"
        )


def _guesses(facts: LayoutFacts, root: int, phys_base: int, origin: str) -> Iterator[_Guess]:
    assert facts.info is not None
    la57 = facts.info.number("pgtable_l5_enabled")
    mask = (facts.info.number("sme_mask") or 0) & U64
    paddr = (root - START_KERNEL_MAP + phys_base) & U64
    named: bool | None = None
    for depth in (4, 5) if la57 is None else (5,) if la57 else (4,):
        tables = page_tables(facts.phys, paddr, depth, mask)
        right = translates_to_itself(tables, root, paddr)
        if right:
            named = True
        elif named is None:
            named = has_utsname(facts.phys, facts.info, phys_base - START_KERNEL_MAP)
        yield _Guess(phys_base, origin, tables, right, named)


def _choose(guesses: list[_Guess]) -> _Guess | None:
    """The best of the guesses that their tables do not confirm."""
    told = [guess for guess in guesses if guess.named is None and guess.origin not in _MERE_GUESSES]
    best_first = (
        [guess for guess in guesses if guess.right],
        [guess for guess in guesses if guess.named and guess.right is None],
        [guess for guess in guesses if guess.named],
        [guess for guess in told if guess.right is None],
        [guess for guess in told if guess.origin in (_TOLD_BY_USER, _TOLD_BY_KERNEL)],
        [guess for guess in guesses if guess.named is None and guess.right is None],
    )
    return next((guess for group in best_first for guess in group), None)


def _take(layout: KernelLayout, guess: _Guess) -> None:
    if guess.right is not False:
        layout.tables = guess.tables
    is_sure = guess.right or guess.named
    layout.set("phys_base", guess.phys_base, guess.origin + ("" if is_sure or guess.right is None else ", unconfirmed"))


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
