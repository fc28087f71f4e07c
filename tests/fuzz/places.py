"""Where in a dump's file the views find what they read of the kernel's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.vfs.context import Dump

PAGE = 4096
_COMM = 16
_MODULE_NAME = 56
Ranges = list[tuple[int, int]]


def read_by_views(path: Path) -> tuple[Ranges, Ranges]:
    """(what is read, where names of tasks and modules stand) as ranges of the file; of a dump with raw pages."""
    from tests.fuzz.walk import Walk

    with _noted_reads() as reads:
        Walk([str(path)], {}).everything()
    with Dump.open([str(path)]) as dump:
        names = list(_names(dump))
        return _in_file(dump, reads), _in_file(dump, names)


@contextlib.contextmanager
def _noted_reads() -> Iterator[set[tuple[int, int]]]:
    """The (physical address, bytes) of every read while the context lasts."""
    reads: set[tuple[int, int]] = set()
    read, read_page = PhysMemory.read, PhysMemory.read_page

    def note(self: PhysMemory, paddr: int, size: int) -> bytes:
        reads.add((paddr, size))
        return read(self, paddr, size)

    def note_page(self: PhysMemory, pfn: int) -> bytes:
        reads.add((pfn * PAGE, PAGE))
        return read_page(self, pfn)

    with mock.patch.multiple(PhysMemory, read=note, read_page=note_page):
        yield reads


def _names(dump: Dump) -> Iterator[tuple[int, int]]:
    inspector = dump.inspection.inspector
    comm, name = inspector.types.member("task_struct", "comm"), inspector.types.member("module", "name")
    places = [(task.vaddr + comm.offset, _COMM) for task in inspector.tasks]
    places += [(module.vaddr + name.offset, _MODULE_NAME) for module in inspector.modules]
    for symbol, size in (("linux_banner", 160), ("saved_command_line", 8)):
        vaddr = inspector.find_symbol(symbol)
        if vaddr is not None:
            places.append((vaddr, size))
    for vaddr, size in places:
        with contextlib.suppress(DumpfsError):
            yield inspector.space.translate(vaddr), size


def _in_file(dump: Dump, places: set[tuple[int, int]] | list[tuple[int, int]]) -> Ranges:
    found = []
    for paddr, size in sorted(places):
        info = dump.phys.info(paddr // PAGE)
        if info.codec == "raw" and info.offset:
            within = paddr % PAGE
            found.append((info.offset + within, info.offset + min(within + size, PAGE)))
    return found
