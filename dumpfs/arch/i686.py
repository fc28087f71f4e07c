"""i686: the direct map of low memory (vmalloc and modules are not read).

Sources: Linux arch/x86/Kconfig (VMSPLIT), arch/x86/include/asm/page_32_types.h (lowmem ends 128 MiB below the top).
"""

from __future__ import annotations

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, prstatus_layout
from dumpfs.arch.flat import direct_map_only

_SPLITS = (0xC0000000, 0xB0000000, 0x80000000, 0x78000000, 0x40000000)
"""CONFIG_PAGE_OFFSET of the VMSPLIT choices."""
_VMALLOC_RESERVE = 128 << 20


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """Low memory at the split that the kernel's text lies above."""
    stext = facts.info.symbol("_stext") if facts.info is not None else None
    if stext is None:
        return direct_map_only(facts, _SPLITS[0], (1 << 32) - _SPLITS[0] - _VMALLOC_RESERVE)
    split = next((s for s in _SPLITS if s <= stext), _SPLITS[-1])
    limit = (1 << 32) - split - _VMALLOC_RESERVE
    return direct_map_only(facts, split, limit, origin="VMCOREINFO SYMBOL(_stext)")


ARCHES = {
    "i686": Arch(
        name="i686",
        word_size=4,
        page_sizes=(0x1000,),
        prstatus=prstatus_layout(144, 4, "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss"),
        program_counter="eip",
        stack_pointer="esp",
        build_layout=build_layout,
        signed_char=True,
    )
}
