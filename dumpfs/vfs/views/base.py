"""What several views share: files whose whole content is made at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from dumpfs.errors import DumpfsError, explain
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import FileNode

INLINE_PFNS = 1 << 22
"""Pages of a dump (16 GiB of 4 KiB pages) up to which a pass over its bitmaps takes a few milliseconds, so that a
view needing one may be made while a request waits."""


@dataclass(slots=True)
class DumpFile(FileNode):
    """A file of a dump's tree."""

    ABOUT: ClassVar[str] = ""

    dump: Dump

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """Why the dump cannot offer the file, or None; see `tree.ViewClass`."""
        return None


@dataclass(slots=True)
class RenderedFile(DumpFile):
    """A file whose content is made in memory when it is first looked at, quickly."""

    content: bytes | memoryview | None = field(default=None, kw_only=True)

    @abstractmethod
    def render(self) -> bytes:
        """The content."""

    def _bytes(self) -> bytes | memoryview:
        content = self.content
        if content is None:
            try:
                content = self.content = self.render()
            except DumpfsError as error:
                self.dump.failed[self.ino] = explain(error)
                raise
        return content

    def size(self) -> int:
        """See `FileNode.size`."""
        return len(self._bytes())

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        return bytes(self._bytes()[offset : offset + size])


@dataclass(slots=True)
class BuiltFile(RenderedFile):
    """A file whose content takes long to make, so that the mount makes it beside its work."""

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        return self.content is not None

    def build(self) -> bytes | None:
        """See `FileNode.build`."""
        return bytes(self._bytes())

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`."""
        self.content = data
