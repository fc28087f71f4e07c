"""riscv64: the direct map and the kernel image's mapping from VMCOREINFO (vmalloc and modules are not read).

Sources: Linux arch/riscv/kernel/vmcore_info.c (keys), arch/riscv/include/asm/page.h (address rules).
"""

from __future__ import annotations

from dumpfs.arch.base import U64, Arch, KernelLayout, LayoutFacts, prstatus_layout
from dumpfs.arch.flat import direct_map_only
from dumpfs.memory.virtual import LinearMap

_PAGE_OFFSET = 0xFF60000000000000
"""Default of Sv57 machines; every kernel with crash support prints its own."""
_MAX_IMAGE = 1 << 30


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Direct map by PAGE_OFFSET and phys_ram_base, image by va_kernel_pa_offset."""
    info = facts.info
    start = info.number("phys_ram_base") if info is not None else None
    base = info.number("PAGE_OFFSET") if info is not None else None
    if start is None:
        start = next(iter(facts.phys.ram.runs()), (0, 0))[0] << facts.phys.page_shift
    origin = "VMCOREINFO NUMBER(PAGE_OFFSET)" if base is not None else "the default"
    layout = direct_map_only(facts, (base if base is not None else _PAGE_OFFSET) & U64, 1 << 56, start, origin)
    link = info.number("KERNEL_LINK_ADDR") if info is not None else None
    shift = info.number("va_kernel_pa_offset") if info is not None else None
    if link is not None and shift is not None:
        vaddr = link & U64
        paddr = (vaddr - shift) & U64
        size = min(_MAX_IMAGE, facts.phys.size - paddr, (1 << 64) - vaddr)
        if size > 0:
            layout.text = (vaddr, paddr, size)
            layout.origins["text"] = "VMCOREINFO NUMBER(va_kernel_pa_offset)"
            layout.linear.insert(0, LinearMap("text", vaddr, size, paddr))
    return layout


ARCHES = {
    "riscv64": Arch(
        name="riscv64",
        word_size=8,
        page_sizes=(0x1000,),
        prstatus=prstatus_layout(
            376,
            8,
            "pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6",
        ),
        program_counter="pc",
        stack_pointer="sp",
        build_layout=build_layout,
    )
}
