"""/version: which kernel it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.units import text_line
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideFile


@dataclass(slots=True)
class VersionFile(InsideFile):
    """The kernel's banner."""

    ABOUT: ClassVar[str] = "the kernel's release, compiler and time of build, as /proc/version."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return text_line(self.inspector.banner)

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _ = dump.inspection.inspector.banner
