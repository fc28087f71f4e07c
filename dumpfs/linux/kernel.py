"""The dead kernel, understood far enough to read its memory by virtual address.

`find_kernel` asks its sources in order and writes down which one answered; nothing in a dump makes it fail, since a
dump that cannot be understood is still worth mounting. A `Kernel` is immutable; any thread may use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from dumpfs.arch.base import Arch, KernelLayout, LayoutFacts, arch_for
from dumpfs.errors import DumpfsError, VmcoreinfoError
from dumpfs.formats.base import DumpImage, Utsname
from dumpfs.linux.machine import find_byteorder, find_machine, find_page_size, settle_arch
from dumpfs.linux.vmcoreinfo_judge import NO_LOG, best_offered, read_notes
from dumpfs.memory.cache import PageCache
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.memory.virtual import AddressSpace
from dumpfs.notes import NT_PRSTATUS, Note
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

# The search and the reader of vmlinux files are imported where they are used: a mount needs neither.

_UTS_FIELD = 65
"""Bytes of each of the six fields of `struct new_utsname`."""
_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")
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
    doubt: str = ""
    """Why VMCOREINFO is not to be believed without a second look (see `vmcoreinfo_judge.Told`), or ''."""

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

        The search runs once and only when VMCOREINFO is missing or doubted; it may decode the whole dump.
        """
        if self.vmcoreinfo is not None and not self.doubt:
            return self
        from dumpfs.linux.kernel_search import search

        return search(self)


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
        UsageError: one of them is of another kernel.
    """
    options = KernelOptions(vmcoreinfo, vmlinux, phys_base, kaslr)
    draft = KernelDraft(image, options, cache if cache is not None else PageCache())
    draft.notes = read_notes(image, draft.problems)
    told = best_offered(image, draft.notes, draft.problems)
    if vmcoreinfo is not None:
        if not Vmcoreinfo(vmcoreinfo).release:
            raise VmcoreinfoError("OSRELEASE", "not in the given VMCOREINFO file")
        draft.set_info(vmcoreinfo, "option vmcoreinfo")
    elif told is not None:
        draft.set_info(told.text, told.origin)
        draft.doubt = told.doubt
    kernel = draft.build()
    if vmcoreinfo is not None or vmlinux is not None:
        from dumpfs.linux.same_kernel import refuse_other_kernel

        refuse_other_kernel(kernel, told)
    return kernel.deep if deep else kernel


@dataclass
class KernelDraft:
    """A kernel being found out about."""

    image: DumpImage
    options: KernelOptions
    cache: PageCache
    notes: tuple[Note, ...] = ()
    info: Vmcoreinfo | None = None
    root: tuple[int, int] | None = None
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    doubt: str = ""

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
        kernel = Kernel(
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
            doubt=self.doubt,
        )
        return self._judged(kernel, layout)

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

    def _judged(self, kernel: Kernel, layout: KernelLayout) -> Kernel:
        """`kernel` with what is doubted about it, and what is better said than found out by a reader of wrong bytes."""
        info, doubt, problems = kernel.vmcoreinfo, self.doubt, self.problems
        if info is None:
            problems.append("the dump carries no VMCOREINFO")
        else:
            found = read_uts(kernel.space, info)
            if doubt == NO_LOG and found is not None and found.release == info.release:
                doubt = ""  # the kernel in memory is the one it describes
            if not doubt:
                doubt = _contradiction(kernel, info, found, is_refuted=layout.is_refuted)
            if found is None and kernel.space is not None and "SYMBOL(init_uts_ns)" in info:
                problems.append("no utsname where VMCOREINFO has init_uts_ns: it is not in the dump, or not there")
        if doubt:
            problems.insert(0, f"VMCOREINFO of {self.origins['vmcoreinfo']} {doubt}")
        return replace(kernel, doubt=doubt, problems=tuple(dict.fromkeys(problems)))


def _contradiction(kernel: Kernel, info: Vmcoreinfo, found: Utsname | None, *, is_refuted: bool) -> str:
    """What memory says against VMCOREINFO, or ''."""
    if found is not None:
        if info.release in ("", found.release):
            return ""
        return f"is of {info.release}, and the kernel in memory is {found.release}"
    if is_refuted:
        return "tells of a kernel that is not where it says"
    symbol = info.symbol("init_uts_ns")
    if symbol is None or kernel.space is None:
        return ""
    try:
        kernel.space.read(symbol, _UTS_FIELD * len(_UTS_FIELDS))
    except DumpfsError:
        return ""  # it may be there, and left out of the dump
    return "tells of a kernel that is not where it says"


def is_of_memory(kernel: Kernel) -> bool | None:
    """Whether the kernel that VMCOREINFO describes is where it says: its utsname has the same release.

    None when there is none to be read there.
    """
    found = read_uts(kernel.space, kernel.vmcoreinfo)
    return None if found is None or kernel.vmcoreinfo is None else found.release == kernel.vmcoreinfo.release


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
