"""An ELF file of nothing but symbols and call frame information, at the addresses where the kernel ran.

    ELF header | PT_NOTE | build-id | .debug_frame | .debug_info, .debug_abbrev | symbols | strings | section headers

Sections of code and data have addresses and sizes but no bytes (SHT_NOBITS): those come from the core.

The debug information is one empty unit. Its purpose is to be there: GDB, finding none, would look for the separate
debug file of this build-id and place it by the sections of this file, which are too few to do that right.

Sources: the ELF gABI, DWARF 4 sections 7.5.1 and 7.5.3, GDB's elfread.c (elf_symfile_read_dwarf2).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpfs.elf.layout import machine_number
from dumpfs.elf.structs import (
    EHDR,
    ET_EXEC,
    EV_CURRENT,
    PF_R,
    PT_NOTE,
    SHDR,
    Phdr,
    build_ident,
    build_phdr,
    elf_abi,
    phdr_layout,
)
from dumpfs.notes import build_note
from dumpfs.structs import Abi, ByteOrder

if TYPE_CHECKING:
    import numpy.typing as npt

    Records = npt.NDArray[np.void]

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 1, 2, 3, 7, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_ABS, SHN_LORESERVE = 0xFFF1, 0xFF00
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
NT_GNU_BUILD_ID = 3

MAX_SECTIONS = 32_000
"""More need SHN_XINDEX; a kernel has some hundred modules of a few sections each."""

_DEBUG_ABBREV = bytes((1, 0x11, 0, 0, 0, 0))
"""Abbreviation 1: a compile unit without children and attributes."""
_DWARF_VERSION = 4
_BOUNDARY = re.compile(rb"_.*_(?:start|end|begin)|_?_?[se]?(?:init)?text")
"""Labels that a linker script sets between functions."""
_CODE, _WEAK = "tTwWiI", "wWvV"
_GLOBAL = "".join(filter(str.isupper, map(chr, range(256))))
"""Letters of symbols, as nm has them."""
_RECORDS = {
    8: (("name", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2"), ("value", "u8"), ("size", "u8")),
    4: (("name", "u4"), ("value", "u4"), ("size", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2")),
}
"""Elf64_Sym and Elf32_Sym, by word size."""


class Region(NamedTuple):
    """Addresses that a section stands for."""

    name: str
    start: int
    stop: int
    code: bool


class SymbolTable(NamedTuple):
    """Symbols with names in a table of strings, as `linux.kallsyms.Kallsyms` keeps them."""

    addresses: Sequence[int]
    types: str
    """One letter each, as nm has them."""
    strings: bytes
    """Names, each ended by a NUL."""
    names: Sequence[int]
    """Where each begins in `strings`."""


@dataclass(frozen=True, slots=True)
class SymbolFile:
    """What a symbol file is made of."""

    machine: str
    """uname -m."""
    word_size: int
    byteorder: ByteOrder
    build_id: bytes
    """b'' for none."""
    regions: Sequence[Region]
    """Ascending and disjoint."""
    tables: Sequence[SymbolTable]
    frames: bytes
    """Content of .debug_frame, or b''."""

    def build(self) -> bytes:
        """The bytes of the file."""
        return _Writer(self).build()


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    type: int
    flags: int = 0
    address: int = 0
    size: int = 0
    content: bytes | None = None
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0


class _Writer:
    def __init__(self, file: SymbolFile) -> None:
        self.file = file
        self.abi: Abi = elf_abi(file.word_size, file.byteorder)
        self.sections: list[_Section] = [_Section("", 0)]

    def build(self) -> bytes:
        file, word = self.file, self.file.word_size
        for region in file.regions[: MAX_SECTIONS - 16]:
            kind = SHF_EXECINSTR if region.code else SHF_WRITE
            size = region.stop - region.start
            self.sections.append(_Section(region.name, SHT_NOBITS, SHF_ALLOC | kind, region.start, size))
        symbols, strings, local = self._symbols()
        if file.build_id:
            note = build_note(b"GNU", NT_GNU_BUILD_ID, file.build_id, file.byteorder)
            self._add(".note.gnu.build-id", SHT_NOTE, note, align=4)
        if file.frames:
            self._add(".debug_frame", SHT_PROGBITS, file.frames, align=word)
            self._add(".debug_info", SHT_PROGBITS, self._debug_info())
            self._add(".debug_abbrev", SHT_PROGBITS, _DEBUG_ABBREV)
        link = len(self.sections) + 1
        entry = 24 if word == 8 else 16
        self.sections.append(
            _Section(".symtab", SHT_SYMTAB, 0, 0, 0, symbols, link=link, info=local, align=word, entry_size=entry)
        )
        self._add(".strtab", SHT_STRTAB, strings)
        return self._lay_out()

    def _add(self, name: str, kind: int, content: bytes, align: int = 1) -> None:
        self.sections.append(_Section(name, kind, content=content, align=align))

    def _debug_info(self) -> bytes:
        body = struct.pack(self.abi.prefix + "HIBB", _DWARF_VERSION, 0, self.file.word_size, 1)
        return struct.pack(self.abi.prefix + "I", len(body)) + body

    def _symbols(self) -> tuple[bytes, bytes, int]:
        """Content of .symtab and .strtab, and the number of local symbols, which come first."""
        regions = self.file.regions[: MAX_SECTIONS - 16]
        record = np.dtype([(name, self.abi.prefix + kind) for name, kind in _RECORDS[self.file.word_size]])
        local = [np.zeros(1, record)]
        others = []
        strings = [b"\0"]
        base = 1
        for table in self.file.tables:
            rows = _records(table, regions, record, base)
            is_local = rows["info"] >> 4 == STB_LOCAL
            local.append(rows[is_local])
            others.append(rows[~is_local])
            strings.append(table.strings)
            base += len(table.strings)
        table_bytes = b"".join([rows.tobytes() for rows in (*local, *others)])
        return table_bytes, b"".join(strings), sum(map(len, local))

    def _lay_out(self) -> bytes:
        abi, file = self.abi, self.file
        names = b"\0" + b"".join(s.name.encode() + b"\0" for s in self.sections[1:]) + b".shstrtab\0"
        self._add(".shstrtab", SHT_STRTAB, names)
        phdr_size = phdr_layout(abi).size(abi)
        note = next((s for s in self.sections if s.type == SHT_NOTE), None)
        out = bytearray(EHDR.size(abi) + (phdr_size if note is not None else 0))
        headers = []
        name = 0
        note_offset = 0
        for section in self.sections:
            out += bytes(-len(out) % section.align)
            offset = len(out)
            if section.content is not None:
                out += section.content
            if section is note:
                note_offset = offset
            headers.append(
                SHDR.build(
                    abi,
                    {
                        "sh_name": name,
                        "sh_type": section.type,
                        "sh_flags": section.flags,
                        "sh_addr": section.address,
                        "sh_offset": offset if section.type else 0,
                        "sh_size": section.size if section.content is None else len(section.content),
                        "sh_link": section.link,
                        "sh_info": section.info,
                        "sh_addralign": section.align if section.type else 0,
                        "sh_entsize": section.entry_size,
                    },
                )
            )
            name += len(section.name.encode()) + 1
        out += bytes(-len(out) % file.word_size)
        ehdr: dict[str, int | bytes] = {
            "e_ident": build_ident(abi),
            "e_type": ET_EXEC,
            "e_machine": machine_number(file.machine),
            "e_version": EV_CURRENT,
            "e_phoff": EHDR.size(abi) if note is not None else 0,
            "e_shoff": len(out),
            "e_ehsize": EHDR.size(abi),
            "e_phentsize": phdr_size,
            "e_phnum": int(note is not None),
            "e_shentsize": SHDR.size(abi),
            "e_shnum": len(headers),
            "e_shstrndx": len(headers) - 1,
        }
        out[: EHDR.size(abi)] = EHDR.build(abi, ehdr)
        if note is not None and note.content is not None:
            size = len(note.content)
            phdr = Phdr(PT_NOTE, note_offset, 0, 0, size, size, PF_R, 4)
            out[EHDR.size(abi) : EHDR.size(abi) + phdr_size] = build_phdr(abi, phdr)
        out += b"".join(headers)
        return bytes(out)


def _records(table: SymbolTable, regions: Sequence[Region], record: np.dtype[np.void], base: int) -> Records:
    """The symbols of a table, whose strings begin at `base`."""
    addresses = np.array(table.addresses, np.uint64)
    letters = np.frombuffer(table.types.encode("latin-1", "replace"), np.uint8)
    rows = np.zeros(len(addresses), record)
    rows["name"] = np.array(table.names, np.int64) + base
    rows["value"] = addresses
    starts = np.array([0, *(region.start for region in regions)], np.uint64)
    lasts = np.array([0, *(region.stop - 1 for region in regions)], np.uint64)
    is_code = np.array([False, *(region.code for region in regions)])
    # A region's number is its section's; 0 stands for no region.
    section = np.searchsorted(starts[1:], addresses, side="right")
    inside = (section > 0) & (addresses <= lasts[section]) & ~_lookup("Aa")[letters]
    rows["section"] = np.where(inside, section, SHN_ABS)
    sized = inside & _sized(table, addresses)
    ends = np.minimum(_last_addresses(addresses), lasts[section])
    rows["size"] = np.where(sized, ends - addresses + np.uint64(1), np.uint64(0))
    kind = np.where(is_code[section] & _lookup(_CODE)[letters], STT_FUNC, STT_OBJECT)
    bind = np.where(_lookup(_WEAK)[letters], STB_WEAK, np.where(_lookup(_GLOBAL)[letters], STB_GLOBAL, STB_LOCAL))
    rows["info"] = bind << 4 | np.where(sized, kind, STT_NOTYPE)
    return rows


def _lookup(letters: str) -> npt.NDArray[np.bool_]:
    """By code of a letter, whether it is among these."""
    return np.array([chr(code) in letters for code in range(256)])


def _last_addresses(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Of each address, the last before the next higher one; of the highest, the last of all."""
    ordered = np.sort(addresses)
    lasts = np.append(ordered - np.uint64(1), np.uint64((1 << 64) - 1))
    return lasts[np.searchsorted(ordered, addresses, side="right")]


def _sized(table: SymbolTable, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each symbol is the one that has a size at its address, which is the one that debuggers name.

    Labels that bound sections come last, then local and weak symbols; else the first one counts.
    """
    order = np.argsort(addresses, kind="stable")
    same = addresses[order[1:]] == addresses[order[:-1]]
    sized = np.ones(len(addresses), np.bool_)
    sized[order[1:][same]] = sized[order[:-1][same]] = False
    best: dict[int, tuple[int, int]] = {}
    for number in np.flatnonzero(~sized).tolist():
        address, letter = table.addresses[number], table.types[number]
        rank = 0 if letter.isupper() and letter != "W" else 1
        known = best.get(address)
        if known is None:
            best[address] = rank, number
            continue
        if _is_boundary(table, known[1]):
            known = best[address] = known[0] + 2, known[1]
        if _is_boundary(table, number):
            rank += 2
        if rank < known[0]:
            best[address] = rank, number
    sized[[number for _, number in best.values()]] = True
    return sized


def _is_boundary(table: SymbolTable, number: int) -> bool:
    start = table.names[number]
    return _BOUNDARY.fullmatch(table.strings, start, table.strings.index(b"\0", start)) is not None
