"""/vmcore: the dump as an ELF core, as /proc/vmcore would have been.

The layout is in `dumpfs.elf.layout`; it is planned when the file is first looked at. For a large dump that takes a
while (its RAM map is read, and what the kernel's addresses are must be found out), so a mount has it done beside.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import ClassVar

from dumpfs.elf.core_notes import build_core_notes
from dumpfs.elf.layout import Content, CorePlan, CoreTarget, Extent, Mapping, plan_core
from dumpfs.elf.segments import ram_ranges
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import INLINE_PFNS, DumpFile

_CONTENTS = tuple(Content)
_SEARCHED_BYTES = 2 << 30
"""Stored memory that may be searched for VMCOREINFO before the file can be had: decoding it takes some ten seconds."""


def plan_dump_core(dump: Dump) -> CorePlan:
    """The plan of a dump's core, with the addresses of its kernel as far as they are known."""
    image, meta = dump.image, dump.image.meta
    notices: tuple[str, ...] = ()
    deep = dump.vmcoreinfo_text is not None or dump.stored_bytes <= _SEARCHED_BYTES
    if not deep:
        notices += (
            "/vmcore: it has no VMCOREINFO; the dump is too large to be searched for it (reading the file vmcoreinfo"
            " does that, and -o vmcoreinfo=FILE takes the result)",
        )
    kernel = dump.deep_kernel if deep else dump.kernel
    vmcoreinfo = dump.deep_vmcoreinfo_text if deep else None
    page_offset: int | None = None
    text: tuple[Mapping, ...] = ()
    if kernel is not None:
        machine, order, word_size = kernel.machine, kernel.byteorder, kernel.word_size
        page_offset = kernel.page_offset
        text = (Mapping(*kernel.text),) if kernel.text is not None else ()
    else:
        machine, order, word_size = meta.machine, meta.byteorder, meta.word_size
    if page_offset is None:
        notices += ("/vmcore: the direct map's address is unknown; virtual addresses in it are physical ones",)
    notes = build_core_notes(image.notes(), meta.byteorder, order, word_size, vmcoreinfo, image.eraseinfo())
    target = CoreTarget(machine, order, max(word_size, meta.word_size), dump.phys.page_size, kernel_word_size=word_size)
    return plan_core(target, ram_ranges(image), notes, page_offset, text, notices=notices)


@dataclass(slots=True)
class VmcoreFile(DumpFile):
    """An ELF core of the whole dump."""

    ABOUT: ClassVar[str] = (
        "the dump as an ELF core like /proc/vmcore, for gdb, crash, drgn and makedumpfile: registers, VMCOREINFO, all"
        " RAM at its direct-map addresses, and the kernel text. Pages that the dump level left out read as zeros (with"
        " -o holes=error they cannot be read); pages that are lost or damaged give an I/O error."
    )

    plan: CorePlan | None = field(default=None, kw_only=True)

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        if self.plan is not None:
            return True
        dump = self.dump
        return dump.vmcoreinfo_text is not None and dump.image.meta.max_pfn <= INLINE_PFNS

    def planned(self) -> CorePlan:
        """The layout."""
        plan = self.plan
        if plan is None:
            plan = self.plan = plan_dump_core(self.dump)
        return plan

    def build(self) -> bytes | None:
        """See `FileNode.build`: the plan as its headers and extents, with a line of JSON before them."""
        plan = self.planned()
        rows = array("Q")
        for extent in plan.extents[1:]:
            rows.extend((extent.offset, extent.size, _CONTENTS.index(extent.content), extent.start))
        head = {"headers": len(plan.headers), "notices": plan.notices}
        return b"".join((json.dumps(head).encode(), b"\n", plan.headers, rows.tobytes()))

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`."""
        line, _, rest = bytes(data).partition(b"\n")
        head = json.loads(line)
        rows = array("Q")
        rows.frombytes(rest[head["headers"] :])
        values = iter(rows)
        extents = [
            Extent(offset, size, _CONTENTS[kind], start)
            for offset, size, kind, start in zip(values, values, values, values, strict=True)
        ]
        self.plan = CorePlan(rest[: head["headers"]], extents, notices=tuple(head["notices"]))

    def size(self) -> int:
        """See `FileNode.size`."""
        return self.planned().size

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        return self.dump.stored_bytes

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        return (self.plan or self.planned()).read(self.dump.phys, offset, size)
