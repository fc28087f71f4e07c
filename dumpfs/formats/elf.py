"""ELF core files of a kernel: /proc/vmcore, `makedumpfile -E`, QEMU's dump-guest-memory, our own /vmcore.

What differs between producers, and what is done about it:

* QEMU puts the section headers first and the program headers at 192, with e_ehsize 8: only e_phoff is followed, and
  sections are ignored (its big-endian ones are not even swapped) but for the count of PN_XNUM.
* QEMU with paging lists a physical page once per mapping, hundreds of times; the kernel lists its text apart from the
  RAM it lies in. `formats.segments` lays them over one another.
* QEMU with begin and length leaves program headers without content: p_filesz 0, p_offset all ones.
* makedumpfile leaves out [p_filesz, p_memsz), and whole segments; when it is ended early it sets bit 0 of e_flags,
  leaves later program headers all zero (PT_NULL), and the file ends before its last segment does.
* /proc/kcore and our own /vmcore have PT_LOADs of memory that is contiguous only virtually: p_paddr is all ones, or
  chosen so that p_paddr + p_memsz is 2^64. Those say nothing of physical memory.

Sources: the ELF gABI; Linux fs/proc/vmcore.c and kernel/crash_core.c (order of program headers, notes); makedumpfile's
elf_info.c (e_flags, PN_XNUM); QEMU's dump/dump.c (offsets); and the real files of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from dumpfs.elf.structs import (
    DUMP_ELF_INCOMPLETE,
    EHDR,
    EI_CLASS,
    EI_DATA,
    EI_NIDENT,
    ELF_MAGIC,
    ELFCLASS32,
    ELFCLASS64,
    ELFDATA2LSB,
    ELFDATA2MSB,
    ET_CORE,
    ET_DYN,
    ET_EXEC,
    MACHINES,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    PT_NULL,
    SHDR,
    Phdr,
    elf_abi,
    parse_phdrs,
    phdr_layout,
)
from dumpfs.errors import CorruptDumpError, SourceError, TruncatedDumpError, UnsupportedFeatureError, VmcoreinfoError
from dumpfs.formats.base import DumpMeta, Utsname
from dumpfs.formats.segments import MAX_PADDR, NoteFacts, Segment, SegmentImage, SegmentMap
from dumpfs.notes import MAX_NOTES, NT_PRSTATUS, parse_notes
from dumpfs.sources.base import ByteSource, read_exactly
from dumpfs.structs import Abi, Buffer
from dumpfs.units import MAX_PAGE_SIZE, MIN_PAGE_SIZE
from dumpfs.vmcoreinfo import Vmcoreinfo

_MAX_PHDRS = 1 << 18
"""A terabyte cut into pieces of four megabytes; the largest seen by us has 70,131."""
_MAX_NOTE_BYTES = 64 << 20
_MAX_VIRTUAL_LOADS = 4096
_PHDR_SIZES = tuple(phdr_layout(abi).size(abi) for abi in (elf_abi(4, "little"), elf_abi(8, "little")))
_MAX_PHENTSIZE = 1024

_NT_AUXV = 6
"""Every process core has one, no kernel core does."""
_FLAG_MACHINES = {"x86_64", "i686", "aarch64", "arm", "s390x"}
"""Where bit 0 of e_flags can only be makedumpfile's mark; on others (ppc64, mips, riscv64) it may belong to the ABI."""
_EM_386, _EM_MIPS, _EM_PPC64 = 3, 8, 21


def probe(head: Buffer) -> bool:
    """Whether a file that begins with `head` is an ELF file, of whatever type."""
    return bytes(head[:4]) == ELF_MAGIC


@dataclass(slots=True)
class _Headers:
    """The headers of one file, and what was odd in them."""

    source: ByteSource
    abi: Abi
    ehdr: dict[str, int]
    phdrs: list[Phdr] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    """Reasons why the dump is incomplete, one clause each."""

    @property
    def word_mask(self) -> int:
        """All ones of the class."""
        return (1 << 8 * self.abi.long_size) - 1

    @property
    def machine(self) -> str:
        """uname -m; the class tells nothing of it (QEMU writes 64-bit files of i386 guests)."""
        name = MACHINES.get(self.ehdr["e_machine"], "")
        if self.ehdr["e_machine"] == _EM_PPC64 and self.abi.byteorder == "little":
            return "ppc64le"
        if self.ehdr["e_machine"] == _EM_MIPS and self.abi.long_size == 8:
            return "mips64"
        return name


def open_elf(sources: Sequence[ByteSource]) -> SegmentImage:
    """The image of the one ELF core in `sources`, which it takes over.

    Raises:
        UnsupportedFeatureError: an ELF file, but no kernel's core.
        CorruptDumpError: impossible headers.
        TruncatedDumpError: the file ends before its first program header.
    """
    (source,) = sources
    headers = _parse_ehdr(source)
    _read_phdrs(headers)
    facts = _read_notes(headers)
    _refuse_strangers(headers, facts)
    segments = _segments(headers)
    info = Vmcoreinfo(facts.vmcoreinfo or b"")
    pieces = SegmentMap(segments, source.size, _page_size(info))
    _judge_completeness(headers, pieces)
    return SegmentImage(source, _meta(headers, facts, info, pieces), pieces, headers.notices, facts)


# -- headers -----------------------------------------------------------------------------------------------------------


def _parse_ehdr(source: ByteSource) -> _Headers:
    ident = read_exactly(source, 0, EI_NIDENT, "the ELF identification")
    if not probe(ident):
        raise CorruptDumpError(source.name, "not an ELF file", offset=0)
    word = {ELFCLASS32: 4, ELFCLASS64: 8}.get(ident[EI_CLASS])
    order = ident[EI_DATA]
    if word is None or order not in (ELFDATA2LSB, ELFDATA2MSB):
        raise CorruptDumpError(
            source.name,
            f"ELF class {ident[EI_CLASS]}, data encoding {order}: expected 1 or 2 for both",
            offset=EI_CLASS,
        )
    abi = elf_abi(word, "little" if order == ELFDATA2LSB else "big")
    raw = read_exactly(source, 0, EHDR.size(abi), "the ELF header")
    headers = _Headers(source, abi, EHDR.parse_ints(abi, raw))
    kind = headers.ehdr["e_type"]
    if kind in (ET_EXEC, ET_DYN):
        raise UnsupportedFeatureError(
            source.name,
            "is a vmlinux (or another program), not a dump",
            hint=f"name the dump, and give this file with -o vmlinux={source.name}",
        )
    if kind != ET_CORE:
        raise UnsupportedFeatureError(source.name, f"is an ELF file of type {kind}, not a core")
    return headers


def _count_phdrs(headers: _Headers) -> int:
    """Number of program headers that the header claims."""
    count = headers.ehdr["e_phnum"]
    offset = headers.ehdr["e_shoff"]
    size = SHDR.size(headers.abi)
    if count != PN_XNUM or not offset:
        return count
    if offset + size > headers.source.size:
        headers.notices.append(f"section header 0, which counts the program headers, lies at {offset:#x}, past the end")
        return count
    section = SHDR.parse_ints(headers.abi, read_exactly(headers.source, offset, size, "section header 0"))
    return section["sh_info"] or count


def _read_phdrs(headers: _Headers) -> None:
    source, ehdr = headers.source, headers.ehdr
    size = phdr_layout(headers.abi).size(headers.abi)
    stride = ehdr["e_phentsize"]
    # Of the other class's size more likely only the field is wrong: some writers fill in the 64-bit one for all.
    if not size <= stride <= _MAX_PHENTSIZE or (stride != size and stride in _PHDR_SIZES):
        if ehdr["e_phnum"]:
            headers.notices.append(f"e_phentsize is {stride}; {size} is assumed")
        stride = size
    count, offset = _count_phdrs(headers), ehdr["e_phoff"]
    if not count:
        return
    if offset < EHDR.size(headers.abi):
        raise CorruptDumpError(source.name, f"{count} program headers at offset {offset:#x}, inside the ELF header")
    there = max(source.size - offset - size, -stride) // stride + 1  # of the last one, only the header itself
    if there <= 0:
        raise TruncatedDumpError(
            source.name,
            f"the file ends at {source.size:#x}, before its program headers",
            offset=offset,
            hint="the file may have been cut short while it was copied",
        )
    if min(count, there) > _MAX_PHDRS:
        raise UnsupportedFeatureError(source.name, f"{count} program headers; at most {_MAX_PHDRS} are read")
    if there < count:
        headers.lacks.append(f"the file ends inside its program headers ({there} of {count} are there)")
        count = there
    table = read_exactly(source, offset, (count - 1) * stride + size, "the program headers")
    if stride != size:
        table = b"".join(table[i : i + size] for i in range(0, len(table), stride))
    headers.phdrs = list(parse_phdrs(headers.abi, table, count))


# -- notes -------------------------------------------------------------------------------------------------------------


def _read_notes(headers: _Headers) -> NoteFacts:
    """What all PT_NOTEs together say; those that do not fit are left out with a notice."""
    source, order = headers.source, headers.abi.byteorder
    images: list[bytes] = []
    room, claimed, there = _MAX_NOTE_BYTES, 0, 0
    seen: set[tuple[int, int]] = set()
    for phdr in headers.phdrs:
        if phdr.p_type != PT_NOTE or (phdr.p_offset, phdr.p_filesz) in seen:
            continue  # the same bytes say nothing new, however often they are named
        seen.add((phdr.p_offset, phdr.p_filesz))
        size = max(min(phdr.p_filesz, source.size - phdr.p_offset), 0)
        claimed += phdr.p_filesz
        there += size
        size = min(size, room)
        if size:
            try:
                images.append(read_exactly(source, phdr.p_offset, size, "the notes"))
                room -= size
            except SourceError as exc:  # memory can be read without them
                headers.notices.append(f"notes at offset {phdr.p_offset:#x} cannot be read: {exc.message}")
    if there < claimed:
        headers.lacks.append(f"the file ends before its notes do ({there} of {claimed} bytes are there)")
    if there > _MAX_NOTE_BYTES:
        headers.notices.append(f"there are {there} bytes of notes; only the first {_MAX_NOTE_BYTES} are read")
    image = images[0] if len(images) == 1 else b"".join(_whole_notes(images, headers))
    owners: set[tuple[bytes, int]] = set()
    vmcoreinfo, eraseinfo, cpus = None, b"", 0
    count = 0
    for note in parse_notes(image, order):
        count += 1
        owners.add((note.name[:32], note.type))
        if (note.name, note.type) == (b"CORE", NT_PRSTATUS):
            cpus += 1
        elif note.name == b"VMCOREINFO" and vmcoreinfo is None:
            vmcoreinfo = note.desc
        elif note.name == b"ERASEINFO":
            eraseinfo += note.desc.rstrip(b"\0") if len(eraseinfo) < _MAX_NOTE_BYTES >> 6 else b""
    if count == MAX_NOTES:
        headers.notices.append(f"there are more than {MAX_NOTES} notes; what follows is not looked at")
    return NoteFacts(image, vmcoreinfo, eraseinfo, cpus, frozenset(owners))


def _whole_notes(images: list[bytes], headers: _Headers) -> Iterator[bytes]:
    """The images as far as there are notes in them: zeros after the last of one would be taken for the header of the
    next. There is an end to how many are looked at in all."""
    left = MAX_NOTES
    for image in images:
        stop = 0
        for note in islice(parse_notes(image, headers.abi.byteorder), left):
            stop = note.desc_offset + len(note.desc)
            left -= 1
        yield image[:stop] + bytes(-stop & 3)
        if not left:
            return


def _refuse_strangers(headers: _Headers, facts: NoteFacts) -> None:
    """Cores that are not of a kernel, or say nothing of physical memory."""
    name = headers.source.name
    if (b"CORE", _NT_AUXV) in facts.owners and facts.vmcoreinfo is None:
        raise UnsupportedFeatureError(
            name, "is the core of a process, not of a kernel", hint="gdb opens it: gdb PROGRAM CORE"
        )
    if not headers.phdrs and headers.ehdr["e_shnum"] > 1 and not headers.lacks:
        raise UnsupportedFeatureError(
            name,
            "holds its memory in sections, as Xen's domain cores do, which dumpfs does not read",
            hint="crash opens it",
        )
    loads = [p for p in headers.phdrs if p.p_type == PT_LOAD and p.p_memsz]
    # Two may well begin at 0: RAM, and a kernel at its beginning (s390x).
    if len({p.p_vaddr for p in loads}) > 2 and facts.vmcoreinfo is None and not any(p.p_paddr for p in loads):
        raise UnsupportedFeatureError(
            name,
            f"all of its {len(loads)} PT_LOADs are at physical address 0: their places in memory are not known",
            hint="is it the core of a process? gdb opens those",
        )


# -- memory ------------------------------------------------------------------------------------------------------------


def _is_physical(headers: _Headers, phdr: Phdr, memsz: int) -> bool:
    """Whether a PT_LOAD describes physical memory; says so in a notice when it is not plainly virtual either."""
    mask = headers.word_mask
    stop = phdr.p_paddr + memsz
    if stop <= min(MAX_PADDR, mask + 1) and phdr.p_paddr != mask:
        return True
    if phdr.p_paddr != mask and stop != mask + 1:
        headers.notices.append(
            f"a PT_LOAD of {memsz:#x} bytes at physical address {phdr.p_paddr:#x} cannot be memory; it is ignored"
        )
    return False


def _segments(headers: _Headers) -> list[Segment]:
    """The physical memory that the PT_LOADs describe."""
    found = []
    odd = len(headers.notices)
    for phdr in headers.phdrs:
        memsz = max(phdr.p_memsz, phdr.p_filesz)
        if phdr.p_type != PT_LOAD or not memsz or not _is_physical(headers, phdr, memsz):
            continue
        found.append(Segment(phdr.p_paddr, memsz, phdr.p_offset, phdr.p_filesz))
    if len(headers.notices) > odd + 3:  # one sentence each for a few, and a count
        more = len(headers.notices) - odd - 3
        headers.notices[odd + 3 :] = [f"{more} more PT_LOADs are ignored for the same reason"]
    return found


def _virtual_loads(headers: _Headers) -> tuple[tuple[int, int, int], ...]:
    """(p_vaddr, p_paddr, p_memsz) of the kernel's own mappings of physical memory, in file order.

    QEMU without paging has p_vaddr 0 or p_paddr there, and with paging user mappings too; neither is the kernel's.
    """
    mask = headers.word_mask
    lowest = 1 << 63 if headers.abi.long_size == 8 else 1 << 30
    loads = (
        (p.p_vaddr, p.p_paddr, p.p_memsz)
        for p in headers.phdrs
        if p.p_type == PT_LOAD
        and p.p_memsz
        and p.p_vaddr >= lowest
        and p.p_vaddr != p.p_paddr
        and p.p_paddr + p.p_memsz <= min(MAX_PADDR, mask + 1)
        and p.p_paddr != mask
    )
    return tuple(islice(loads, _MAX_VIRTUAL_LOADS))


def _judge_completeness(headers: _Headers, pieces: SegmentMap) -> None:
    source = headers.source
    unwritten = sum(p.p_type == PT_NULL for p in headers.phdrs)
    flagged = bool(headers.ehdr["e_flags"] & DUMP_ELF_INCOMPLETE) and headers.machine in _FLAG_MACHINES
    if flagged:
        headers.lacks.insert(0, "makedumpfile ended it early and marked it so")
    reach = max((p.p_offset + p.p_filesz for p in headers.phdrs if p.p_type == PT_LOAD and p.p_filesz), default=0)
    if reach > source.size:
        headers.lacks.append(f"the file ends at {source.size:#x}, but its program headers reach to {reach:#x}")
    trouble = source.incomplete_reason
    if trouble:
        headers.lacks.append(trouble)
    if headers.lacks and unwritten:  # of a flattened one they come last of all
        headers.lacks.append(f"{unwritten} of its {len(headers.phdrs)} program headers were never written")
    if not pieces.stored.count():
        headers.notices.append("the dump holds no page at all")


def _meta(headers: _Headers, facts: NoteFacts, info: Vmcoreinfo, pieces: SegmentMap) -> DumpMeta:
    ehdr = headers.ehdr
    variant = []
    if headers.source.is_flattened:
        variant.append("flattened")
    if (b"QEMU", 0) in facts.owners or ehdr["e_ehsize"] == 8:
        variant.append("QEMU")
    if any(owner == b"Xen" for owner, _ in facts.owners):
        headers.notices.append("written under Xen: addresses are the machine's, not the domain's")
    counts = {
        "loads": sum(p.p_type == PT_LOAD for p in headers.phdrs),
        "notes": sum(p.p_type == PT_NOTE for p in headers.phdrs),
    }
    return DumpMeta(
        format="elf",
        block_size=pieces.block_size,
        max_pfn=pieces.ram.stop,
        byteorder=headers.abi.byteorder,
        word_size=headers.abi.long_size,
        machine=headers.machine,
        variant=", ".join(variant),
        compression="none",
        complete=not headers.lacks,
        incomplete_reason="; ".join(headers.lacks),
        timestamp=_crash_time(info),
        nr_cpus=facts.nr_cpus or None,
        uts=Utsname(release=info.release, machine=headers.machine),
        header={**ehdr, "program_headers": {"count": len(headers.phdrs), **counts}},
        virtual_loads=_virtual_loads(headers),
    )


def _page_size(info: Vmcoreinfo) -> int:
    """Bytes of a kernel page as VMCOREINFO says, or the smallest there is."""
    try:
        size = info.page_size or 0
    except VmcoreinfoError:
        size = 0
    return size if MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE else MIN_PAGE_SIZE


def _crash_time(info: Vmcoreinfo) -> float | None:
    try:
        seconds = info.crash_time or 0
    except VmcoreinfoError:
        seconds = 0
    return float(seconds) if 0 < seconds < 1 << 40 else None
