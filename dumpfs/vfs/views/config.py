"""/config: how the kernel was configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.units import text_lines
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideBuiltFile


@dataclass(slots=True)
class ConfigFile(InsideBuiltFile):
    """The configuration that the kernel carries."""

    ABOUT: ClassVar[str] = "the kernel's configuration, unpacked; offered by kernels with CONFIG_IKCONFIG."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return text_lines(self.inspector.read_config())

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        dump.inspection.inspector.read_config()
