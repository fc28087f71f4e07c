"""/modules: the modules that were loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.linux.modules import render_modules
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideFile


@dataclass(slots=True)
class ModulesFile(InsideFile):
    """The list of modules."""

    ABOUT: ClassVar[str] = "the modules that were loaded, as /proc/modules."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        inspector = self.inspector
        return render_modules(inspector.modules, inspector.kernel.word_size).encode()

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _ = dump.inspection.inspector.modules
