"""Layout of kernels whose image lies in the direct map: one linear rule, no page-table walk.

Enough for the kernel log and other static data of i686, arm, ppc64 and loongarch64; riscv64 adds a rule for its image.
"""

from __future__ import annotations

from dumpfs.arch.base import KernelLayout, LayoutFacts
from dumpfs.memory.virtual import LinearMap


def direct_map_only(
    facts: LayoutFacts, page_offset: int, limit: int, paddr: int = 0, origin: str = "the architecture"
) -> KernelLayout:
    """A layout of one linear map.

    Args:
        facts: what is known.
        page_offset: virtual address the map starts at.
        limit: bytes it has at most (lowmem on 32-bit machines).
        paddr: physical address it starts with.
        origin: where `page_offset` was found.
    """
    layout = KernelLayout()
    if facts.info is not None and facts.info.kaslr_offset is not None:
        layout.set("kaslr_offset", facts.info.kaslr_offset, "VMCOREINFO KERNELOFFSET")
    if facts.kaslr is not None:
        layout.set("kaslr_offset", facts.kaslr, "option kaslr")
    layout.set("phys_base", paddr, origin)
    layout.set("page_offset", page_offset - paddr, origin)
    size = min(limit, facts.phys.size - paddr)
    if size > 0:
        layout.linear.append(LinearMap("direct map", page_offset, size, paddr))
    layout.problems.append("page tables of this architecture are not read: only the direct map can be")
    return layout
