"""ELF records and constants, for both classes and byte orders.

Sources: the ELF gABI (record layouts, PN_XNUM) and elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from dumpfs.structs import Abi, Buffer, ByteOrder, Layout

ELF_MAGIC = b"\x7fELF"
EI_CLASS, EI_DATA, EI_VERSION, EI_NIDENT = 4, 5, 6, 16
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
EV_CURRENT = 1

ET_EXEC, ET_DYN, ET_CORE = 2, 3, 4
PT_NULL, PT_LOAD, PT_NOTE = 0, 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
PN_XNUM = 0xFFFF
"""e_phnum when the real number of program headers is in sh_info of section header 0."""
SHN_UNDEF = 0

DUMP_ELF_INCOMPLETE = 0x1
"""makedumpfile's mark in e_flags of an ELF dump that was ended early."""

MACHINES = {
    3: "i686",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
"""e_machine to `uname -m` as dumpfs names architectures; ppc64le is ppc64 with little-endian data."""

_IDENT = ("e_ident", "char[16]")

EHDR = Layout(
    "Ehdr",
    [
        _IDENT,
        ("e_type", "u16"),
        ("e_machine", "u16"),
        ("e_version", "u32"),
        ("e_entry", "ulong"),
        ("e_phoff", "ulong"),
        ("e_shoff", "ulong"),
        ("e_flags", "u32"),
        ("e_ehsize", "u16"),
        ("e_phentsize", "u16"),
        ("e_phnum", "u16"),
        ("e_shentsize", "u16"),
        ("e_shnum", "u16"),
        ("e_shstrndx", "u16"),
    ],
)

PHDR64 = Layout(
    "Elf64_Phdr",
    [
        ("p_type", "u32"),
        ("p_flags", "u32"),
        ("p_offset", "u64"),
        ("p_vaddr", "u64"),
        ("p_paddr", "u64"),
        ("p_filesz", "u64"),
        ("p_memsz", "u64"),
        ("p_align", "u64"),
    ],
)

PHDR32 = Layout(
    "Elf32_Phdr",
    [
        ("p_type", "u32"),
        ("p_offset", "u32"),
        ("p_vaddr", "u32"),
        ("p_paddr", "u32"),
        ("p_filesz", "u32"),
        ("p_memsz", "u32"),
        ("p_flags", "u32"),
        ("p_align", "u32"),
    ],
)

SHDR = Layout(
    "Shdr",
    [
        ("sh_name", "u32"),
        ("sh_type", "u32"),
        ("sh_flags", "ulong"),
        ("sh_addr", "ulong"),
        ("sh_offset", "ulong"),
        ("sh_size", "ulong"),
        ("sh_link", "u32"),
        ("sh_info", "u32"),
        ("sh_addralign", "ulong"),
        ("sh_entsize", "ulong"),
    ],
)


class Phdr(NamedTuple):
    """One program header, whatever its class."""

    p_type: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_flags: int = 0
    p_align: int = 0


def elf_abi(word_size: int, byteorder: ByteOrder) -> Abi:
    """The `Abi` of ELF records: natural alignment."""
    return Abi(byteorder, word_size, 8)


def phdr_layout(abi: Abi) -> Layout:
    """The program header of the class that `abi` has."""
    return PHDR64 if abi.long_size == 8 else PHDR32


def parse_phdrs(abi: Abi, table: Buffer, count: int) -> Iterator[Phdr]:
    """`count` program headers from the start of `table`, which holds all of them.

    A vmcore may have a hundred thousand (PN_XNUM), hence one pass over rows instead of a look-up by name for each.
    """
    layout = phdr_layout(abi)
    rows = layout.iter_rows(abi, memoryview(table)[: count * layout.size(abi)])
    if abi.long_size == 8:
        for kind, flags, offset, vaddr, paddr, filesz, memsz, align in rows:
            yield Phdr(kind, offset, vaddr, paddr, filesz, memsz, flags, align)
    else:
        yield from map(Phdr._make, rows)


def build_phdr(abi: Abi, phdr: Phdr) -> bytes:
    """The bytes of one program header."""
    return phdr_layout(abi).build(abi, phdr._asdict())


def build_phdrs(abi: Abi, phdrs: Iterable[Phdr]) -> bytes:
    """The bytes of a table of program headers; they may be thousands, so no `Layout.build` for each."""
    fields = phdr_layout(abi).fields  # naturally aligned without padding in both classes
    packer = struct.Struct(abi.prefix + "".join({"u32": "I", "u64": "Q"}[kind] for _, kind in fields))
    values = attrgetter(*(name for name, _ in fields))
    return b"".join(packer.pack(*values(phdr)) for phdr in phdrs)


def build_ident(abi: Abi) -> bytes:
    """e_ident."""
    return bytes(
        (
            *ELF_MAGIC,
            ELFCLASS64 if abi.long_size == 8 else ELFCLASS32,
            ELFDATA2LSB if abi.byteorder == "little" else ELFDATA2MSB,
            EV_CURRENT,
        )
    ).ljust(EI_NIDENT, b"\0")
