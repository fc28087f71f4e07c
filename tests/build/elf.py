"""ELF core files of both classes and byte orders, in the styles of the kernel, makedumpfile and QEMU.

Source: the ELF gABI.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from tests.build.model import Built, Kind, Memory, Page

PT_LOAD, PT_NOTE = 1, 4
EM_X86_64, EM_386, EM_S390, EM_ARM, EM_AARCH64, EM_PPC64 = 62, 3, 22, 40, 183, 21

EHDR_FIELDS = {
    8: "e_type:16:H e_machine:18:H e_version:20:I e_entry:24:Q e_phoff:32:Q e_shoff:40:Q e_flags:48:I e_ehsize:52:H "
    "e_phentsize:54:H e_phnum:56:H e_shentsize:58:H e_shnum:60:H e_shstrndx:62:H",
    4: "e_type:16:H e_machine:18:H e_version:20:I e_entry:24:I e_phoff:28:I e_shoff:32:I e_flags:36:I e_ehsize:40:H "
    "e_phentsize:42:H e_phnum:44:H e_shentsize:46:H e_shnum:48:H e_shstrndx:50:H",
}
PHDR_FIELDS = {
    8: "p_type:0:I p_flags:4:I p_offset:8:Q p_vaddr:16:Q p_paddr:24:Q p_filesz:32:Q p_memsz:40:Q p_align:48:Q",
    4: "p_type:0:I p_offset:4:I p_vaddr:8:I p_paddr:12:I p_filesz:16:I p_memsz:20:I p_flags:24:I p_align:28:I",
}
PHDR_SIZE = {8: 56, 4: 32}
EHDR_SIZE = {8: 64, 4: 52}
SHDR_SIZE = {8: 64, 4: 40}


def fields(text: str) -> dict[str, tuple[int, str]]:
    """Field name to (offset, struct code)."""
    return {n: (int(o), c) for n, o, c in (entry.split(":") for entry in text.split())}


@dataclass(frozen=True)
class Segment:
    """One PT_LOAD."""

    paddr: int
    data: bytes
    """What is in the file (p_filesz)."""
    memsz: int | None = None
    """p_memsz; None: as long as `data`."""
    vaddr: int = 0
    same_as: int | None = None
    """Share the file range of an earlier segment, by index, from `same_offset` on."""
    same_offset: int = 0

    def __repr__(self) -> str:
        shared = "" if self.same_as is None else f" in {self.same_as} at {self.same_offset:#x}"
        return f"<{self.paddr:#x}+{self.size:#x}, {len(self.data):#x} in the file{shared}, at {self.vaddr:#x}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(repr(self))

    @property
    def size(self) -> int:
        """p_memsz."""
        return len(self.data) if self.memsz is None else self.memsz


@dataclass(frozen=True)
class ElfSpec:
    """Everything about a file but its segments."""

    word: int = 8
    byteorder: str = "little"
    machine: int = EM_X86_64
    style: str = "kernel"
    """kernel: headers, then page-aligned notes and data; makedumpfile: unaligned; qemu: section headers first."""
    notes: bytes = b""
    e_flags: int = 0
    xnum: bool = False
    """Give the number of program headers in section header 0."""
    align: int = 1
    """Alignment of the segments' data in the file; 4096 for the kernel's own."""

    @property
    def prefix(self) -> str:
        """The struct byte-order character."""
        return "<" if self.byteorder == "little" else ">"


def _pack(spec: ElfSpec, table: str, size: int, values: dict[str, int]) -> bytearray:
    out = bytearray(size)
    for name, (offset, code) in fields(table).items():
        struct.pack_into(spec.prefix + code, out, offset, values.get(name, 0))
    return out


def _section0(spec: ElfSpec, phnum: int) -> bytes:
    """Section header 0; sh_info is the number of program headers when e_phnum cannot hold it."""
    out = bytearray(SHDR_SIZE[spec.word])
    struct.pack_into(spec.prefix + "I", out, 44 if spec.word == 8 else 28, phnum if spec.xnum else 0)
    return bytes(out)


def build_elf(segments: list[Segment], spec: ElfSpec | None = None) -> Built:
    """The core file."""
    spec = spec or ElfSpec()
    word = spec.word
    phnum = len(segments) + 1
    sections = {"qemu": 2, "kernel": 0, "makedumpfile": 0}[spec.style] or int(spec.xnum)
    phoff = EHDR_SIZE[word] + sections * SHDR_SIZE[word]
    notes_offset = phoff + phnum * PHDR_SIZE[word]
    places = {"ehdr": 0, "phdrs": phoff}
    if sections:
        places["shdr"] = EHDR_SIZE[word]
    if spec.style == "kernel":
        notes_offset += -notes_offset % 4096
    position = notes_offset + len(spec.notes)
    table = [{"p_type": PT_NOTE, "p_offset": notes_offset, "p_filesz": len(spec.notes), "p_memsz": len(spec.notes)}]
    pieces: list[tuple[int, bytes]] = [(notes_offset, spec.notes)]
    offsets: list[int] = []
    for segment in segments:
        if segment.same_as is not None:
            offset = offsets[segment.same_as] + segment.same_offset
        else:
            position += -position % spec.align
            offset = position
            pieces.append((offset, segment.data))
            position += len(segment.data)
        offsets.append(offset)
        table.append(
            {
                "p_type": PT_LOAD,
                "p_flags": 7,
                "p_offset": offset,
                "p_vaddr": segment.vaddr,
                "p_paddr": segment.paddr,
                "p_filesz": len(segment.data),
                "p_memsz": segment.size,
            }
        )
    out = bytearray(max(o + len(d) for o, d in pieces))
    ehdr = _pack(spec, EHDR_FIELDS[word], EHDR_SIZE[word], _ehdr(spec, phoff, phnum, sections))
    ehdr[:7] = bytes((0x7F, 0x45, 0x4C, 0x46, 2 if word == 8 else 1, 1 if spec.byteorder == "little" else 2, 1))
    headers = b"".join(_pack(spec, PHDR_FIELDS[word], PHDR_SIZE[word], h) for h in table)
    for offset, data in [(0, bytes(ehdr)), (phoff, headers), *pieces]:
        out[offset : offset + len(data)] = data
    if sections:
        out[places["shdr"] : places["shdr"] + SHDR_SIZE[word]] = _section0(spec, phnum)
    places |= {
        "notes": notes_offset,
        "notes_end": notes_offset + len(spec.notes),
        "data": notes_offset + len(spec.notes),
    }
    blobs = {i: (offsets[i], len(s.data)) for i, s in enumerate(segments)}
    return Built(bytes(out), places, {}, blobs)


def _ehdr(spec: ElfSpec, phoff: int, phnum: int, sections: int) -> dict[str, int]:
    return {
        "e_type": 4,
        "e_machine": spec.machine,
        "e_version": 1,
        "e_phoff": phoff,
        "e_shoff": EHDR_SIZE[spec.word] if sections else 0,
        "e_flags": spec.e_flags,
        "e_ehsize": 8 if spec.style == "qemu" else EHDR_SIZE[spec.word],
        "e_phentsize": PHDR_SIZE[spec.word],
        "e_phnum": 0xFFFF if spec.xnum else phnum,
        "e_shentsize": SHDR_SIZE[spec.word] if sections else 0,
        "e_shnum": sections,
    }


def memory_of(segments: list[Segment], block_size: int = 4096) -> Memory:
    """What reading the segments must give, page by page.

    A page is partial when memory begins or ends inside it and a byte of it is in the file; excluded when it is
    memory but nothing of it is in the file. Segments that overlap must agree.
    """
    pages: dict[int, Page] = {}
    for segment in segments:
        if not segment.size:
            continue
        first = segment.paddr // block_size
        last = (segment.paddr + segment.size - 1) // block_size
        for pfn in range(first, last + 1):
            base = pfn * block_size
            low = max(segment.paddr, base)
            ram_stop = min(segment.paddr + segment.size, base + block_size)
            file_stop = min(segment.paddr + len(segment.data), base + block_size)
            content = segment.data[low - segment.paddr : max(file_stop - segment.paddr, 0)]
            whole = low == base and ram_stop == base + block_size
            padded = (bytes(low - base) + content).ljust(block_size, b"\0")
            extent = None if whole else (low - base, ram_stop - base)
            if not content:
                page = Page(bytes(block_size), Kind.EXCLUDED, extent=extent)
            else:
                page = Page(padded, Kind.STORED if whole else Kind.PARTIAL, extent=extent)
            old = pages.get(pfn)
            pages[pfn] = page if old is None else _merged(old, page, block_size)
    stop = max((s.paddr + s.size for s in segments if s.size), default=0)
    return Memory(block_size, -(-stop // block_size), pages)


def _merged(old: Page, new: Page, block_size: int) -> Page:
    """Two segments' views of one page."""
    if old.kind is Kind.STORED or new.kind is Kind.STORED:
        return old if old.kind is Kind.STORED else new
    if Kind.EXCLUDED in (old.kind, new.kind):
        return old if new.kind is Kind.EXCLUDED else new
    assert old.extent is not None  # both are partial
    assert new.extent is not None
    data = bytes(a | b for a, b in zip(old.data, new.data, strict=True))
    extent = (min(old.extent[0], new.extent[0]), max(old.extent[1], new.extent[1]))
    if extent == (0, block_size):
        return Page(data)
    return replace(old, data=data, extent=extent)
