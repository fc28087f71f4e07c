"""The dead kernel, understood far enough to read its memory by virtual address.

`find_kernel` asks its sources in order and writes down which one answered; nothing in a dump makes it fail, since a
dump that cannot be understood is still worth mounting. A `Kernel` is immutable; any thread may use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, arch_for
from dumpfs.errors import DumpfsError, VmcoreinfoError
from dumpfs.formats.base import DumpImage, Utsname
from dumpfs.linux.machine import find_byteorder, find_machine, find_page_size, settle_arch
from dumpfs.memory.cache import PageCache
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.memory.virtual import AddressSpace
from dumpfs.notes import NT_PRSTATUS, Note, parse_notes
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from dumpfs.linux.vmcoreinfo_scan import Candidate

# The search and the reader of vmlinux files are imported where they are used: a mount needs neither.

_UTS_FIELD = 65
"""Bytes of each of the six fields of `struct new_utsname`."""
_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")
_MAX_CANDIDATES = 64
_NAMELESS_FORMATS = ("lime", "raw")
"""Formats whose files do not say what machine they are of."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What a user may say about the kernel."""

    vmcoreinfo: bytes | None = None
    """Text of -o vmcoreinfo=FILE."""
    vmlinux: str | None = None
    """Path of -o vmlinux=FILE."""
    phys_base: int | None = None
    kaslr: int | None = None


@dataclass(frozen=True)
class Kernel:
    """What is known of the dumped kernel. Unknown values are None."""

    image: DumpImage
    options: KernelOptions
    machine: str
    """`uname -m`, or ''."""
    arch: Arch | None
    byteorder: ByteOrder
    """The kernel's; the dump's may differ."""
    word_size: int
    """Bytes of `long` and pointers."""
    page_size: int
    """The kernel's page, in bytes."""
    vmcoreinfo: Vmcoreinfo | None
    phys_base: int | None
    """Physical displacement of the kernel image (x86_64), or where RAM starts."""
    kaslr_offset: int | None
    """Virtual displacement of the kernel image from its link address."""
    page_offset: int | None
    """Direct-map address of physical 0: RAM at `paddr` is mapped at page_offset + paddr."""
    text: tuple[int, int, int] | None
    """(vaddr, paddr, bytes) of the kernel image's own mapping, where it is not the direct map."""
    space: AddressSpace | None
    """Kernel virtual memory, or None when nothing of it can be translated."""
    phys: PhysMemory
    """Physical memory in kernel pages, policy ERROR."""
    notes: tuple[Note, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    """Which source each fact came from."""
    problems: tuple[str, ...] = ()
    """What could not be found out or looks wrong, one sentence each."""

    @cached_property
    def uts(self) -> Utsname:
        """The kernel's `init_uts_ns.name`; the header's utsname where memory does not tell."""
        return read_uts(self.space, self.vmcoreinfo) or self.image.meta.uts

    @property
    def crash_time(self) -> float | None:
        """Seconds since the epoch: when the kernel died, or when the dump was written; None when unknown."""
        try:
            told = self.vmcoreinfo.crash_time if self.vmcoreinfo is not None else None
        except VmcoreinfoError:
            told = None
        return float(told) if told else self.image.meta.timestamp

    @property
    def release(self) -> str:
        """`uname -r`, or ''."""
        told = self.vmcoreinfo.release if self.vmcoreinfo is not None else ""
        return told or self.uts.release

    @property
    def build_id(self) -> str:
        """Build-id in lower-case hex, or ''."""
        return self.vmcoreinfo.build_id if self.vmcoreinfo is not None else ""

    @property
    def cpus(self) -> int | None:
        """Processors that left registers, or what the header says; None when neither tells."""
        count = sum(1 for note in self.notes if note.type == NT_PRSTATUS and note.name == b"CORE")
        return count or self.image.meta.nr_cpus

    @property
    def may_be_searched(self) -> bool:
        """Whether a search of memory may tell more: of a machine that is known, or of any in formats that name none."""
        return self.arch is not None or self.image.meta.format in _NAMELESS_FORMATS

    @cached_property
    def deep(self) -> Kernel:
        """This kernel, or a better understood one after searching memory for VMCOREINFO.

        The search runs once and only when VMCOREINFO is missing; it may decode the whole dump.
        """
        if self.vmcoreinfo is not None:
            return self
        return _search(self)


def find_kernel(
    image: DumpImage,
    *,
    vmcoreinfo: bytes | None = None,
    vmlinux: str | None = None,
    phys_base: int | None = None,
    kaslr: int | None = None,
    cache: PageCache | None = None,
    deep: bool = False,
) -> Kernel:
    """What can be known of the kernel in `image`, without searching memory unless `deep`.

    Args:
        image: the dump.
        vmcoreinfo: text of a VMCOREINFO file the user gave, or None; made by `makedumpfile -g` or a crashed kernel.
        vmlinux: path of the kernel's vmlinux; read when the dump lacks VMCOREINFO or its log keys.
        phys_base: physical displacement the user says, bytes.
        kaslr: KASLR offset the user says, bytes.
        cache: decoded pages, shared with other users of the image.
        deep: search memory for VMCOREINFO when it is nowhere else; see `Kernel.deep`.

    Raises:
        SourceError, FormatError: the user's own vmlinux cannot be read.
        VmcoreinfoError: the user's own VMCOREINFO file is none.
    """
    options = KernelOptions(vmcoreinfo, vmlinux, phys_base, kaslr)
    draft = _Draft(image, options, cache if cache is not None else PageCache())
    try:
        draft.notes = tuple(parse_notes(image.notes(), image.meta.byteorder))
    except DumpfsError as exc:
        draft.problems.append(f"notes: {exc}")
    if vmcoreinfo is not None:
        if not Vmcoreinfo(vmcoreinfo).release:
            raise VmcoreinfoError("OSRELEASE", "not in the given VMCOREINFO file")
        draft.set_info(vmcoreinfo, "option vmcoreinfo")
    else:
        try:
            text = image.vmcoreinfo_text()
            if text is not None and text.strip(b"\0"):
                draft.set_info(text, "the dump's header or notes")
        except DumpfsError as exc:
            draft.problems.append(f"VMCOREINFO: {exc}")
    kernel = draft.build()
    return kernel.deep if deep else kernel


@dataclass
class _Draft:
    """A kernel being found out about."""

    image: DumpImage
    options: KernelOptions
    cache: PageCache
    notes: tuple[Note, ...] = ()
    info: Vmcoreinfo | None = None
    root: tuple[int, int] | None = None
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def set_info(self, text: bytes, origin: str) -> None:
        self.info = Vmcoreinfo(text)
        self.origins["vmcoreinfo"] = origin

    def build(self) -> Kernel:
        """The kernel, by what is known by now."""
        meta = self.image.meta
        machine, self.origins["machine"] = find_machine(meta, self.notes, self.info)
        arch = arch_for(machine)
        phys = self._memory(arch.page_sizes[0] if arch is not None else 0x1000)
        byteorder = find_byteorder(meta, arch, phys, self.info)
        arch = settle_arch(arch, byteorder)
        self._ask_machine(arch, phys)
        page_size = self._find_page_size(arch)
        phys = self._memory(page_size)
        options = self.options
        facts = LayoutFacts(
            phys, meta, self.notes, self.info, byteorder, page_size, options.phys_base, options.kaslr, self.root
        )
        if arch is not None:
            facts = self._complete_info(arch, facts)
        layout = self._lay_out(arch, facts)
        word_size = arch.word_size if arch is not None else meta.word_size
        space = None
        if layout.linear or layout.tables is not None:
            space = AddressSpace(phys, byteorder, word_size, layout.linear, layout.tables)
        self._check(space)
        return Kernel(
            image=self.image,
            options=self.options,
            machine=arch.name if arch is not None else machine,
            arch=arch,
            byteorder=byteorder,
            word_size=word_size,
            page_size=page_size,
            vmcoreinfo=self.info,
            phys_base=layout.phys_base,
            kaslr_offset=layout.kaslr_offset,
            page_offset=layout.page_offset,
            text=layout.text,
            space=space,
            phys=phys,
            notes=self.notes,
            origins={name: origin for name, origin in {**self.origins, **layout.origins}.items() if origin},
            problems=tuple(dict.fromkeys(self.problems)),
        )

    def _memory(self, page_size: int) -> PhysMemory:
        return PhysMemory(self.image, page_size, HolePolicy.ERROR, self.cache)

    def _ask_machine(self, arch: Arch | None, phys: PhysMemory) -> None:
        """VMCOREINFO by a pointer at a fixed physical address, where an architecture has one."""
        if self.info is None and arch is not None and arch.find_vmcoreinfo is not None:
            found = arch.find_vmcoreinfo(phys)
            if found is not None:
                self.set_info(*found)

    def _find_page_size(self, arch: Arch | None) -> int:
        try:
            size, self.origins["page_size"] = find_page_size(self.image.meta, arch, self.info)
        except VmcoreinfoError as exc:
            self.problems.append(str(exc))
            size, self.origins["page_size"] = find_page_size(self.image.meta, arch, None)
        return size

    def _complete_info(self, arch: Arch, facts: LayoutFacts) -> LayoutFacts:
        """Fill in from the user's vmlinux, and move link addresses to where the kernel ran."""
        if self.options.vmcoreinfo is None and self.options.vmlinux is None:
            return facts
        from dumpfs.linux.vmlinux import has_log, read_vmlinux, relocate

        info = self.info
        try:
            if self.options.vmlinux is not None and (info is None or not has_log(info)):
                linked = read_vmlinux(self.options.vmlinux)
                if info is None:
                    self.set_info(linked, "option vmlinux")
                else:
                    linked = relocate(linked, self.options.kaslr or info.kaslr_offset or 0)
                    self.set_info(linked + b"\n" + info.raw, f"{self.origins['vmcoreinfo']}, and option vmlinux")
                    return replace(facts, info=self.info)
            info = self.info
            linked_addresses = self.origins.get("vmcoreinfo", "").startswith("option")
            if info is None or info.kaslr_offset is not None or not linked_addresses:
                return replace(facts, info=info)
            offset = self.options.kaslr
            if offset is None and arch.find_kaslr is not None:
                offset = arch.find_kaslr(replace(facts, info=None), info)
            if offset is None and arch.find_kaslr is not None:
                self.problems.append("KASLR offset unknown: taken as 0; the option kaslr= sets it")
            self.set_info(relocate(info.raw, offset or 0), self.origins["vmcoreinfo"])
        except VmcoreinfoError as exc:
            self.problems.append(str(exc))
        return replace(facts, info=self.info)

    def _lay_out(self, arch: Arch | None, facts: LayoutFacts) -> KernelLayout:
        if arch is None:
            known = self.image.meta.machine or "unknown"
            self.problems.append(f"machine {known!r}: kernel memory of this architecture cannot be translated")
            return KernelLayout()
        try:
            layout = arch.build_layout(facts)
        except DumpfsError as exc:
            self.problems.append(str(exc))
            return KernelLayout()
        self.problems += layout.problems
        return layout

    def _check(self, space: AddressSpace | None) -> None:
        """What is better said than found out by a reader of wrong bytes."""
        if self.info is None:
            self.problems.append("the dump carries no VMCOREINFO")
        elif space is not None and "SYMBOL(init_uts_ns)" in self.info and read_uts(space, self.info) is None:
            self.problems.append("no utsname where VMCOREINFO has init_uts_ns: it is not in the dump, or not there")


def read_uts(space: AddressSpace | None, info: Vmcoreinfo | None) -> Utsname | None:
    """`init_uts_ns.name`, or None when it cannot be read or does not look like one."""
    if space is None or info is None:
        return None
    try:
        symbol = info.symbol("init_uts_ns")
        if symbol is None:
            return None
        told = info.offset("uts_namespace.name")
        # Before 5.10 VMCOREINFO does not tell the offset: 4 (behind a kref) up to 5.9.
        offsets = (told,) if told is not None else (4, 0, 8)
        for offset in offsets:
            uts = _parse_uts(space.read(symbol + offset, _UTS_FIELD * len(_UTS_FIELDS)))
            if uts is not None:
                return uts
    except DumpfsError:
        return None
    return None


def _parse_uts(data: bytes) -> Utsname | None:
    fields = [data[i * _UTS_FIELD : (i + 1) * _UTS_FIELD].split(b"\0", 1)[0] for i in range(len(_UTS_FIELDS))]
    if fields[0] != b"Linux":
        return None
    return Utsname(**dict(zip(_UTS_FIELDS, (f.decode("utf-8", "replace") for f in fields), strict=True)))


def _search(kernel: Kernel) -> Kernel:
    """`kernel` with the VMCOREINFO that memory holds; itself, with a problem more, when it holds none.

    The right text is the one that fits the memory it is in: the kernel it describes has the release it names, and
    lies where a processor's page tables have the kernel; an old copy and a page cached from a file fail one or the
    other. When a capture kernel runs, both kernels' fit, and the one that was handed over to it is wanted.
    """
    from dumpfs.linux.vmcoreinfo_scan import MAX_SCAN

    best: tuple[tuple[bool, bool, bool, int], Kernel] | None = None
    for number, candidate in enumerate(_candidates(kernel)):
        found = _try(kernel, candidate)
        fits = found.vmcoreinfo is not None and read_uts(found.space, found.vmcoreinfo) is not None
        fits = fits and found.uts.release == found.release
        is_running = kernel.phys_base is not None and kernel.phys_base == found.phys_base
        if fits and (candidate.handed_over or is_running):
            return found
        rank = (fits, *candidate.rank)
        if best is None or rank > best[0]:
            best = (rank, found)
        if number + 1 >= _MAX_CANDIDATES:
            break
    if best is not None:
        return best[1]
    kernel = _by_tables(kernel)
    problems = tuple(p for p in kernel.problems if "VMCOREINFO" not in p)
    where = "anywhere in its memory"
    if kernel.image.stored.count() * kernel.image.meta.block_size > MAX_SCAN:
        where = f"in the first {MAX_SCAN >> 30} GiB of its memory"
    return replace(kernel, problems=(*problems, f"no VMCOREINFO in the dump, nor {where}"))


def _by_tables(kernel: Kernel) -> Kernel:
    """`kernel` with page tables found by a search; itself where it has some, or none are found."""
    if kernel.arch is None or kernel.arch.find_root is None or (kernel.space and kernel.space.tables):
        return kernel
    root = kernel.arch.find_root(kernel.phys)
    if root is None:
        return kernel
    draft = _Draft(kernel.image, kernel.options, kernel.phys.cache, kernel.notes, root=root)
    return draft.build()


def _try(kernel: Kernel, candidate: Candidate) -> Kernel:
    draft = _Draft(kernel.image, kernel.options, kernel.phys.cache, kernel.notes)
    how = "what was handed to the capture kernel" if candidate.handed_over else "a search of memory"
    draft.set_info(candidate.text, f"{how}, found at physical {candidate.paddr:#x}")
    return draft.build()


def _candidates(kernel: Kernel) -> Iterator[Candidate]:
    """Texts in memory, the quick way first."""
    from dumpfs.linux.vmcoreinfo_scan import find_pointers, follow_pointers, scan_memory

    if kernel.text is not None and kernel.page_offset is not None and kernel.word_size == 8:
        _, paddr, size = kernel.text
        pointers = find_pointers(kernel.phys, paddr, size, kernel.page_offset, kernel.byteorder)
        yield from follow_pointers(kernel.phys, pointers)
    yield from scan_memory(kernel.image)
