"""/cmdline: how the kernel was started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.linux.ikconfig import read_cmdline
from dumpfs.units import text_line
from dumpfs.vfs.views.inside import InsideFile


@dataclass(slots=True)
class CmdlineFile(InsideFile):
    """The boot command line."""

    ABOUT: ClassVar[str] = "the kernel's command line, as /proc/cmdline."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return text_line(read_cmdline(self.inspector.space, self.inspector.symbol("saved_command_line")))
