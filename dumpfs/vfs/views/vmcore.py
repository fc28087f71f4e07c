"""/vmcore: the dump as an ELF core, as /proc/vmcore would have been, with all that the kernel had mapped.

The layout is in `dumpfs.elf.layout`. Planning it takes the dump's RAM map and the kernel's page tables, which come from
the dump and may be anything, so a mount has it done beside its work. Every worker then reads by the same plan.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from dumpfs.elf.core_notes import ThreadNotes, build_core_notes
from dumpfs.elf.layout import Content, CorePlan, CoreTarget, Extent, Mapping, ReadPhysical, plan_core
from dumpfs.elf.segments import MAX_SEGMENTS, ram_ranges
from dumpfs.errors import DumpfsError, explain
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import MemoryExtents
from dumpfs.vfs.views.base import DumpFile

if TYPE_CHECKING:
    from dumpfs.arch.walk import PageTables
    from dumpfs.linux.areas import MappedMemory
    from dumpfs.linux.kernel import Kernel

_CONTENTS = tuple(Content)
_SEARCHED_BYTES = 2 << 30
"""Stored memory that may be searched for VMCOREINFO before the file can be had: decoding it takes some ten seconds."""
_SEARCHED_PLAIN_BYTES = 8 << 30
"""Likewise of formats that do not compress."""
_MIN_VIRTUAL_SEGMENTS = 1024
"""Segments of virtual memory at least, however many ranges of RAM there are."""


class DumpCore(NamedTuple):
    """The plan of a dump's core, and what reading by it takes."""

    plan: CorePlan
    tables: PageTables | None
    """Page tables behind its virtual extents."""


def plan_dump_core(
    dump: Dump, name: str = "vmcore", find_threads: Callable[[Dump], ThreadNotes] | None = None
) -> DumpCore:
    """The plan of a dump's core, with the addresses of its kernel as far as they are known.

    Args:
        dump: the dump.
        name: of the file, for notices.
        find_threads: tells of the threads that the core is to have beside the processors.

    Raises:
        DumpfsError: as `find_threads`.
    """
    image, meta = dump.image, dump.image.meta
    notices: list[str] = []
    most = _SEARCHED_BYTES if meta.format == "kdump" else _SEARCHED_PLAIN_BYTES
    deep = dump.vmcoreinfo_text is not None or dump.searched_bytes <= most
    if not deep:
        notices.append(
            "it has no VMCOREINFO; the dump is too large to be searched for it (reading the file vmcoreinfo does that,"
            " and -o vmcoreinfo=FILE takes the result)"
        )
    kernel = dump.deep_kernel if deep else dump.kernel
    vmcoreinfo = dump.deep_vmcoreinfo_text if deep else None
    page_offset = kernel.page_offset if kernel is not None else None
    text = (Mapping(*kernel.text),) if kernel is not None and kernel.text is not None else ()
    known = kernel if kernel is not None else meta
    if page_offset is None:
        notices.append("the direct map's address is unknown; virtual addresses in it are physical ones")
    ram = ram_ranges(image)
    tables, areas = _find_areas(kernel, len(ram.ranges), notices)
    notes = build_core_notes(
        image.notes(),
        meta.byteorder,
        known.byteorder,
        known.word_size,
        vmcoreinfo,
        image.eraseinfo(),
        find_threads(dump) if find_threads is not None else None,
    )
    target = CoreTarget(
        known.machine, known.byteorder, max(known.word_size, meta.word_size), dump.phys.page_size, known.word_size
    )
    plan = plan_core(target, ram, notes, page_offset, text, areas, notices)
    plan.notices = tuple(f"/{name}: {notice}" for notice in plan.notices)
    return DumpCore(plan, tables)


def _find_areas(
    kernel: Kernel | None, ram_count: int, notices: list[str]
) -> tuple[PageTables | None, tuple[tuple[int, int], ...]]:
    """Page tables and the ranges they map, (address, bytes); nothing where they are not to be had."""
    from dumpfs.arch.walk import PageTables
    from dumpfs.linux.areas import find_areas

    if kernel is None or kernel.space is None or not isinstance(kernel.space.tables, PageTables):
        return None, ()
    try:
        areas = find_areas(kernel, max(MAX_SEGMENTS - ram_count, _MIN_VIRTUAL_SEGMENTS))
    except DumpfsError as error:
        notices.append(f"vmalloc memory is left out: {explain(error)}")
        return None, ()
    notices += areas.notices
    return kernel.space.tables, areas.ranges


@dataclass(slots=True)
class CoreFile(DumpFile):
    """An ELF core made of a dump."""

    NAME: ClassVar[str] = ""
    """Of the file."""

    plan: CorePlan | None = field(default=None, kw_only=True)
    tables: PageTables | None = field(default=None, kw_only=True)
    """Page tables behind the plan's virtual extents."""
    mapped: MappedMemory | None = field(default=None, kw_only=True)
    """Reads the plan's virtual extents."""

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        return self.plan is not None

    def make(self) -> DumpCore:
        """Plan the core; may take long."""
        return plan_dump_core(self.dump, self.NAME)

    def memory(self) -> ReadPhysical:
        """Physical memory as this file shows it."""
        return self.dump.phys

    def planned(self) -> CorePlan:
        """The layout, made when it is not there yet."""
        if self.plan is None:
            try:
                core = self.make()
            except DumpfsError as error:
                self.dump.failed[self.ino] = explain(error)
                raise
            self._take(core)
            return core.plan
        return self.plan

    def _take(self, core: DumpCore) -> None:
        if core.tables is not None:
            from dumpfs.linux.areas import MappedMemory

            self.tables = core.tables
            strict = self.dump.options.holes is HolePolicy.ERROR
            self.mapped = MappedMemory(core.tables, self.memory(), strict=strict)
        self.plan = core.plan  # last: another thread may look

    def build(self) -> bytes | None:
        """See `FileNode.build`: the plan as its headers and extents, with a line of JSON before them."""
        from dumpfs.linux.areas import pack_tables

        plan = self.planned()
        rows = array("Q")
        for extent in plan.extents[1:]:
            rows.extend((extent.offset, extent.size, _CONTENTS.index(extent.content), extent.start))
        packed = pack_tables(self.tables) if self.tables is not None else None
        head = {"headers": len(plan.headers), "notices": plan.notices, "tables": packed}
        return b"".join((json.dumps(head).encode(), b"\n", plan.headers, rows.tobytes()))

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`."""
        from dumpfs.linux.areas import unpack_tables

        line, _, rest = bytes(data).partition(b"\n")
        head = json.loads(line)
        rows = array("Q")
        rows.frombytes(rest[head["headers"] :])
        values = iter(rows)
        extents = [
            Extent(offset, size, _CONTENTS[kind], start)
            for offset, size, kind, start in zip(values, values, values, values, strict=True)
        ]
        plan = CorePlan(rest[: head["headers"]], extents, notices=tuple(head["notices"]))
        packed = head["tables"]
        self._take(DumpCore(plan, unpack_tables(self.dump.strict, packed) if packed is not None else None))

    def size(self) -> int:
        """See `FileNode.size`."""
        return self.planned().size

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        return self.dump.stored_bytes

    def memory_extents(self) -> MemoryExtents | None:
        """See `FileNode.memory_extents`."""
        memory = self.memory()
        if self.plan is None or not isinstance(memory, PhysMemory):
            return None
        physical = (e for e in self.plan.extents if e.content is Content.PHYSICAL)
        return MemoryExtents(memory, tuple((extent.offset, extent.size, extent.start) for extent in physical))

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        plan = self.plan or self.planned()
        mapped = self.mapped
        return plan.read(self.memory(), offset, size, mapped.read if mapped is not None else None)


@dataclass(slots=True)
class VmcoreFile(CoreFile):
    """An ELF core of the whole dump."""

    NAME: ClassVar[str] = "vmcore"
    ABOUT: ClassVar[str] = (
        "the dump as an ELF core like /proc/vmcore, for gdb, crash, drgn and makedumpfile: registers, VMCOREINFO, all"
        " RAM at its direct-map addresses, the kernel text, and what else the kernel had mapped (vmalloc memory with"
        " the kernel stacks, modules, vmemmap). Pages that the dump level left out read as zeros (with -o holes=error"
        " they cannot be read); pages that are lost or damaged give an I/O error."
    )
