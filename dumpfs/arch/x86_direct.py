"""Where x86_64 has its direct map: RAM, mapped one to one.

Sources: Linux Documentation/arch/x86/x86_64/mm.rst (layout), arch/x86/mm/kaslr.c (what moves it), libkdumpfile (the
search window, and the bases of old kernels).
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.arch.base import KernelLayout, LayoutFacts, direct_map_samples, map_is_right
from dumpfs.arch.evidence import kernel_version
from dumpfs.memory.virtual import LinearMap

START_KERNEL_MAP = 0xFFFFFFFF80000000
"""__START_KERNEL_map: the kernel image is linked at this plus its physical address."""
_PUD = 1 << 30

DIRECT_MAP = {
    4: (0xFFFF880000000000, 0xFFFFC80000000000, (0xFFFF888000000000, 0xFFFF880000000000, 0xFFFF810000000000)),
    5: (0xFF11000000000000, 0xFF91000000000000, (0xFF11000000000000, 0xFF10000000000000)),
}
"""By page-table levels: the window KASLR puts the direct map in, and its defaults (4.20 on, before, before 2.6.27)."""


def find_direct_map(facts: LayoutFacts, layout: KernelLayout) -> None:
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
                if base != _unmoved_base(facts, depth):
                    continue
                # A guess that nothing confirms must not hand out bytes; it still serves to place PT_LOADs.
                layout.set("page_offset", base, origin + ", unconfirmed")
                return
            origin += ", unconfirmed"
        layout.set("page_offset", base, origin)
        layout.linear.append(linear)
        return
    where = " in the page tables" if layout.tables is not None else ""
    layout.problems.append(f"the direct map was not found{where}")


def _unmoved_base(facts: LayoutFacts, depth: int) -> int | None:
    """Where a kernel of this release has its direct map unless it was moved; None where it may have been.

    KASLR moves it since 4.8, and only where it moves the image, too.
    """
    release = (facts.info.release if facts.info is not None else "") or facts.meta.uts.release
    version = kernel_version(release)
    if version is None:
        return None
    if version >= (4, 8, 0) and (facts.info is None or facts.info.kaslr_offset != 0):
        return None
    newest, older, oldest = (*DIRECT_MAP[depth][2], 0)[:3]
    if version >= (4, 20, 0):
        return newest
    return older if version >= (2, 6, 27) else oldest or None


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
