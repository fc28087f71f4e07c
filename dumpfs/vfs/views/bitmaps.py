"""/bitmaps: which pages the machine had, and which of them the dump holds, as raw bitmaps of kernel pages."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from dumpfs.ranges import PfnSet
from dumpfs.vfs.views.base import DumpFile


@dataclass(slots=True)
class _BitmapFile(DumpFile):
    """Bits of kernel pages, least significant bit of the first byte = pfn 0; both bitmaps have one length."""

    @abstractmethod
    def _members(self) -> PfnSet:
        """The pages whose bits are set."""

    def size(self) -> int:
        """See `FileNode.size`."""
        return (self.dump.stop_pfn + 7) // 8

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        size = max(min(size, self.size() - offset), 0)
        return self._members().read_bits(offset, size).ljust(size, b"\0")


@dataclass(slots=True)
class RamBitmap(_BitmapFile):
    """Pages of RAM."""

    ABOUT: ClassVar[str] = "bitmap of the pages of RAM that the machine had, least significant bit first."

    def _members(self) -> PfnSet:
        return self.dump.phys.ram


@dataclass(slots=True)
class StoredBitmap(_BitmapFile):
    """Pages whose content the dump holds."""

    ABOUT: ClassVar[str] = (
        "bitmap of the pages whose content is in the dump, least significant bit first; it tells an excluded page"
        " from a page of zeros."
    )

    def _members(self) -> PfnSet:
        return self.dump.phys.stored
