"""/cmdline: how the kernel was started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumpfs.linux.ikconfig import read_cmdline
from dumpfs.units import text_line
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideFile

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector


def _read(inspector: Inspector) -> bytes:
    return read_cmdline(inspector.space, inspector.symbol("saved_command_line"))


@dataclass(slots=True)
class CmdlineFile(InsideFile):
    """The boot command line."""

    ABOUT: ClassVar[str] = "the kernel's command line, as /proc/cmdline."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return text_line(_read(self.inspector))

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _read(dump.inspection.inspector)
