"""canon.py QEMU-ELF VMCORE OUT: copy a QEMU dump, with the program headers as /proc/vmcore has them.

makedumpfile takes the program headers from offset 64 whatever e_phoff says, while QEMU (since 7.1) has its section
headers there; and it takes the place of the direct map from p_vaddr - p_paddr, while QEMU, which was asked for
physical memory, leaves p_vaddr 0. Both are mended here; notes, memory and all offsets of them stay as they are.

The direct map's place is random at each boot (KASLR), so it comes from VMCORE, the crash dump of the same boot.
"""

import mmap
import shutil
import struct
import sys

# ELF64, little-endian: Elf64_Ehdr after e_ident, and Elf64_Phdr.
EHDR = struct.Struct("<HHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
EI_NIDENT = 16
EHDR_SIZE = EI_NIDENT + EHDR.size
PT_LOAD = 1
START_KERNEL_MAP = 0xFFFFFFFF80000000  # kernel text mapping from here on, not direct map


def read_headers(image: bytes | mmap.mmap) -> tuple[list[int], list[list[int]]]:
    """Fields of the ELF header after e_ident, and of each program header."""
    ehdr = list(EHDR.unpack_from(image, EI_NIDENT))
    phoff, phnum = ehdr[4], ehdr[9]
    return ehdr, [list(PHDR.unpack_from(image, phoff + i * PHDR.size)) for i in range(phnum)]


def direct_map_base(phdrs: list[list[int]]) -> int:
    """Kernel virtual address of physical address 0, on which all PT_LOADs must agree."""
    bases = {p[3] - p[4] for p in phdrs if p[0] == PT_LOAD and p[3] < START_KERNEL_MAP}
    if len(bases) != 1:
        sys.exit(f"bench/guest: vmcore: no single direct map: {[hex(base) for base in bases]}")
    return bases.pop()


def main(source: str, vmcore: str, target: str) -> None:
    """Write `target`."""
    with open(vmcore, "rb") as crashed, mmap.mmap(crashed.fileno(), 0, access=mmap.ACCESS_READ) as image:
        base = direct_map_base(read_headers(image)[1])
    shutil.copyfile(source, target)
    with open(target, "r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        ehdr, phdrs = read_headers(image)
        end = EHDR_SIZE + PHDR.size * len(phdrs)
        if end > min(p[2] for p in phdrs):
            sys.exit(f"bench/guest: {source}: {len(phdrs)} program headers do not fit before the notes")
        for phdr in phdrs:
            if phdr[0] == PT_LOAD:
                phdr[3] = base + phdr[4]
        # e_phoff; e_shoff; e_ehsize, which QEMU 7.2 writes wrong; e_shentsize, e_shnum and e_shstrndx.
        ehdr[4], ehdr[5], ehdr[7], ehdr[10:] = EHDR_SIZE, 0, EHDR_SIZE, [0, 0, 0]
        EHDR.pack_into(image, EI_NIDENT, *ehdr)
        for number, phdr in enumerate(phdrs):
            PHDR.pack_into(image, EHDR_SIZE + number * PHDR.size, *phdr)


main(*sys.argv[1:])
