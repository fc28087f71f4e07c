"""64-bit Power, either byte order: the linear region that holds all memory and the kernel image.

Sources: Linux arch/powerpc/include/asm/page.h (PAGE_OFFSET, KERNELBASE), Power ISA (instruction forms), QEMU
target/ppc/arch_dump.c, which marks dumps of little-endian pseries guests big-endian.
"""

from __future__ import annotations

from collections.abc import Mapping

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, prstatus_layout
from dumpfs.arch.flat import direct_map_only
from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.structs import ByteOrder

_PAGE_OFFSET = 0xC000000000000000
_REGION = 1 << 46
_VECTORS, _VECTORS_SIZE = 0x100, 0x2F00
"""Physical address and bytes of the exception vectors: code in every Linux kernel that starts at 0."""
_OPCODE_31 = frozenset(range(0x7C, 0x80))
"""First byte of the register-moving and arithmetic instructions that the vectors are full of."""


def build_layout(facts: LayoutFacts) -> KernelLayout:
    """The linear region."""
    return direct_map_only(facts, _PAGE_OFFSET, _REGION)


def detect_byteorder(phys: PhysMemory) -> ByteOrder | None:
    """The kernel's byte order by the instructions of its exception vectors, or None when they are not there."""
    try:
        code = phys.read(_VECTORS, _VECTORS_SIZE)
    except DumpfsError:
        return None
    big = sum(1 for byte in code[0::4] if byte in _OPCODE_31)
    little = sum(1 for byte in code[3::4] if byte in _OPCODE_31)
    if max(big, little) < 16 or big == little:
        return None
    return "big" if big > little else "little"


_PRSTATUS = prstatus_layout(
    504,
    8,
    " ".join(f"gpr{i}" for i in range(32)) + " nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result",
)

_ORDERS: Mapping[str, ByteOrder] = {"ppc64": "big", "ppc64le": "little"}

ARCHES = {
    name: Arch(
        name=name,
        word_size=8,
        page_sizes=(0x10000, 0x1000),
        prstatus=_PRSTATUS,
        program_counter="nip",
        stack_pointer="gpr1",
        build_layout=build_layout,
        byteorder=byteorder,
        detect_byteorder=detect_byteorder,
    )
    for name, byteorder in _ORDERS.items()
}
