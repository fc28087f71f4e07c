"""Finding VMCOREINFO in memory, for dumps that do not carry it (QEMU without its vmcoreinfo device).

Every kernel with crash support keeps the text, twice: a page that starts with it, and a note. Where the kernel image
is known, its pointers lead to them at once; else all stored memory is searched, at the speed of decoding it.

A dump may be taken while a capture kernel runs. That one has VMCOREINFO too, and the processors are its own; the
kernel that crashed is told by the ELF header which was handed to the capture kernel, whose address it keeps.

Sources: Linux kernel/vmcore_info.c (vmcoreinfo_data is a page, vmcoreinfo_note page-aligned with the text 24 bytes in;
the text starts with OSRELEASE), fs/proc/vmcore.c (elfcorehdr_addr; offsets in that ELF header are physical addresses).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dumpfs.elf.structs import EHDR, EI_VERSION, ET_CORE, PT_NOTE, build_ident, elf_abi, parse_phdrs, phdr_layout
from dumpfs.errors import DumpfsError
from dumpfs.formats.base import DumpImage
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.scan import plan_windows, written_runs
from dumpfs.notes import parse_notes
from dumpfs.structs import ByteOrder
from dumpfs.units import Pfn
from dumpfs.vmcoreinfo import Vmcoreinfo

_START = b"OSRELEASE="
_NOTE_NAME = b"VMCOREINFO\0\0"
_NOTE_TEXT = 24
"""Bytes from the start of the note to its text: header, name, padding."""
MAX_SCAN = 32 << 30
"""Bytes searched where nothing shows the way: a minute or more of decoding."""
_MAX_TEXT = 1 << 16
"""VMCOREINFO_BYTES is one page."""
_MIN_KEYS = 8
_MIN_PAGE = 0x1000
_MAX_IMAGE = 256 << 20
"""Bytes of kernel image looked at for pointers."""
_MAX_POINTERS = 1 << 17
_MAX_PHDRS = 4096
"""Program headers of a capture kernel's ELF header: one per processor and per range of RAM."""
_ABI = elf_abi(8, "little")
"""Of the architectures that are searched this way and use such a header."""


class Candidate(NamedTuple):
    """A text in memory that may be this kernel's VMCOREINFO."""

    text: bytes
    paddr: int
    is_note: bool
    handed_over: bool = False
    """Whether it is by what a crashed kernel handed to its capture kernel."""

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Sorts the likelier one higher: CRASHTIME is added when the kernel dies, and last."""
        return b"\nCRASHTIME=" in self.text, self.is_note, len(self.text)


class Pointers(NamedTuple):
    """Pages that words of a kernel image may lead to, physical addresses."""

    mapped: list[int]
    """By an address in the direct map."""
    physical: list[int]
    """By a physical address."""


def scan_memory(
    image: DumpImage, limit: int = MAX_SCAN, runs: Iterable[tuple[Pfn, Pfn]] | None = None
) -> Iterator[Candidate]:
    """Every candidate in the first `limit` bytes of stored memory, or of `runs` of it, each text once, ascending."""
    block_size = image.meta.block_size
    seen: set[bytes] = set()
    for first, count in plan_windows(written_runs(image) if runs is None else runs, block_size):
        if limit <= 0:
            return
        limit -= count * block_size
        data, _ = image.read_run(first, count)
        at = data.find(_START)
        while at >= 0:
            if at % _MIN_PAGE == 0 or data[max(at - len(_NOTE_NAME), 0) : at] == _NOTE_NAME:
                tail = data[at : at + _MAX_TEXT]
                if at + len(tail) == len(data):
                    tail += image.read_run(first + count, max(_MAX_TEXT // block_size, 1))[0]
                text = _clean(tail)
                if text and text not in seen:
                    seen.add(text)
                    paddr = image.meta.first_paddr + first * block_size + at
                    yield Candidate(text, paddr, at % _MIN_PAGE == _NOTE_TEXT)
            at = data.find(_START, at + 1)


def find_pointers(
    phys: PhysMemory, image_paddr: int, image_size: int, page_offset: int, byteorder: ByteOrder
) -> Pointers:
    """Words of the kernel image that may be page addresses, ascending.

    Args:
        phys: physical memory.
        image_paddr: physical start of the kernel image, data and bss included.
        image_size: bytes.
        page_offset: virtual address of physical 0 in the direct map.
        byteorder: the kernel's; pointers are 8 bytes.
    """
    mapped: set[int] = set()
    physical: set[int] = set()
    size = phys.size
    low, high = page_offset, page_offset + size
    for piece in _readable(phys, image_paddr, min(image_size, _MAX_IMAGE)):
        words = array("Q", piece[: len(piece) & -8])
        if struct.pack("=Q", 1) != (1).to_bytes(8, byteorder):
            words.byteswap()
        pages = {w for w in words if not w & (_MIN_PAGE - 1)}
        mapped.update(w - low for w in pages if low <= w < high)
        physical.update(w for w in pages if 0 < w < size)
        if len(mapped) + len(physical) > _MAX_POINTERS:
            break
    return Pointers(sorted(mapped), sorted(physical))


def follow_pointers(phys: PhysMemory, pointers: Pointers) -> Iterator[Candidate]:
    """Candidates that pointers in the kernel image lead to: what a crashed kernel handed over, then its own
    (`vmcoreinfo_data`, `vmcoreinfo_note`)."""
    seen: set[bytes] = set()
    for candidate in _handed_over(phys, pointers.physical):
        seen.add(candidate.text)
        yield candidate
    for paddr in pointers.mapped:
        for inside in (0, _NOTE_TEXT):
            try:
                if phys.read(paddr + inside, len(_START)) != _START:
                    continue
            except DumpfsError:
                break
            text = _clean(b"".join(_readable(phys, paddr + inside, _MAX_TEXT)))
            if text and text not in seen:
                seen.add(text)
                yield Candidate(text, paddr + inside, bool(inside))


def _handed_over(phys: PhysMemory, pages: Iterable[int]) -> Iterator[Candidate]:
    """VMCOREINFO by the ELF headers of a crashed kernel among `pages`."""
    for paddr in pages:
        try:
            head = phys.read(paddr, EHDR.size(_ABI))
            if head[:EI_VERSION] != build_ident(_ABI)[:EI_VERSION]:
                continue
            fields = {name: value for name, value in EHDR.parse(_ABI, head).items() if isinstance(value, int)}
            count, entry = fields["e_phnum"], phdr_layout(_ABI).size(_ABI)
            sane = fields["e_type"] == ET_CORE and fields["e_phentsize"] == entry
            if not sane or count > _MAX_PHDRS or fields["e_phoff"] >= _MIN_PAGE:
                continue
            table = phys.read(paddr + fields["e_phoff"], count * entry)
            for phdr in parse_phdrs(_ABI, table, count):
                if phdr.p_type == PT_NOTE and _NOTE_TEXT < phdr.p_filesz <= _MAX_TEXT:
                    for note in parse_notes(phys.read(phdr.p_offset, phdr.p_filesz), _ABI.byteorder):
                        text = _clean(note.desc) if note.name == b"VMCOREINFO" else b""
                        if text:
                            yield Candidate(text, phdr.p_offset + note.desc_offset, True, handed_over=True)
        except DumpfsError:
            continue  # not in the dump, or none


def _readable(phys: PhysMemory, paddr: int, size: int) -> Iterator[bytes]:
    """Memory in pieces, zeros in place of pages that cannot be read."""
    stop = paddr + size
    while paddr < stop:
        step = min(_MAX_TEXT, stop - paddr)
        try:
            yield phys.read(paddr, step)
        except DumpfsError:
            for page in range(paddr, paddr + step, _MIN_PAGE):
                step_page = min(_MIN_PAGE, paddr + step - page)
                try:
                    yield phys.read(page, step_page)
                except DumpfsError:
                    yield bytes(step_page)
        paddr += step


def _clean(data: bytes) -> bytes:
    """The text at the start of `data` up to its NUL, or b'' when it is none."""
    text = data.split(b"\0", 1)[0]
    end = next((i for i, byte in enumerate(text) if byte > 0x7E or (byte < 0x20 and byte != 0x0A)), len(text))
    text = text[: text.rfind(b"\n", 0, end) + 1] if end < len(text) else text
    info = Vmcoreinfo(text)
    return text if len(info) >= _MIN_KEYS and info.release and info.page_size else b""
