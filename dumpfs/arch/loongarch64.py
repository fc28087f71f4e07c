"""loongarch64: the cached direct-mapping window, which holds all memory and the kernel image.

Source: Linux Documentation/arch/loongarch/introduction.rst (windows), arch/loongarch/kernel/elf.c (note layout).
"""

from __future__ import annotations

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, prstatus_layout
from dumpfs.arch.flat import direct_map_only

_CACHED_WINDOW = 0x9000000000000000
_WINDOW_SIZE = 1 << 48


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """The cached window."""
    return direct_map_only(facts, _CACHED_WINDOW, _WINDOW_SIZE)


ARCHES = {
    "loongarch64": Arch(
        name="loongarch64",
        word_size=8,
        page_sizes=(0x4000, 0x1000, 0x10000),
        prstatus=prstatus_layout(480, 8, " ".join(f"r{i}" for i in range(32)) + " orig_a0 era badv"),
        program_counter="era",
        stack_pointer="r3",
        build_layout=build_layout,
        signed_char=True,
    )
}
