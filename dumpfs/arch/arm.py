"""32-bit arm: the direct map of low memory (vmalloc and modules are not read).

Sources: Linux arch/arm/include/asm/memory.h (PAGE_OFFSET by VMSPLIT, the image a few hundred KiB above it),
makedumpfile arch/arm.c (physical start of RAM).
"""

from __future__ import annotations

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, prstatus_layout
from dumpfs.arch.flat import direct_map_only

_SPLITS = (0xC0000000, 0xB0000000, 0x80000000, 0x40000000)
_LOWMEM = 760 << 20
"""Bytes of low memory under the usual vmalloc reserve of 240 MiB; less with a lower split does no harm."""


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Low memory from the start of RAM on, at the split the kernel's text lies above."""
    if facts.phys_base is not None:
        start, origin = facts.phys_base, "option phys_base"
    elif facts.meta.phys_base:
        start, origin = facts.meta.phys_base, "the dump header"
    else:
        start = next(iter(facts.phys.ram.runs()), (0, 0))[0] << facts.phys.page_shift
        origin = "the start of RAM"
    stext = facts.info.symbol("_stext") if facts.info is not None else None
    split = _SPLITS[0] if stext is None else next((s for s in _SPLITS if s <= stext), _SPLITS[-1])
    return direct_map_only(facts, split, _LOWMEM, start, origin)


ARCHES = {
    "arm": Arch(
        name="arm",
        word_size=4,
        page_sizes=(0x1000,),
        prstatus=prstatus_layout(148, 4, " ".join(f"r{i}" for i in range(16)) + " cpsr orig_r0"),
        program_counter="r15",
        stack_pointer="r13",
        build_layout=build_layout,
    )
}
