"""/hmem: flat physical memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.vfs.node import MemoryExtents
from dumpfs.vfs.views.base import DumpFile


@dataclass(slots=True)
class HmemFile(DumpFile):
    """Physical memory; the offset in the file is the physical address."""

    ABOUT: ClassVar[str] = (
        "physical memory, offset = physical address. Memory that is not RAM, or that the dump level left out, reads"
        " as zeros (with -o holes=error it cannot be read); pages that are lost or damaged give an I/O error."
    )

    def size(self) -> int:
        """See `FileNode.size`."""
        return self.dump.memory_size

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        return self.dump.stored_bytes

    def memory_extents(self) -> MemoryExtents | None:
        """See `FileNode.memory_extents`."""
        return MemoryExtents(self.dump.phys, ((0, self.dump.memory_size, 0),))

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        dump = self.dump
        if offset + size > dump.memory_size:
            size = dump.memory_size - offset
        return dump.phys.read(offset, size)
