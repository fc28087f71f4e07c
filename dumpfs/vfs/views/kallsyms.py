"""/kallsyms: the kernel's and its modules' symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.errors import DumpfsError
from dumpfs.linux.kallsyms import render_kallsyms
from dumpfs.linux.modules import module_symbols
from dumpfs.linux.records import note_problem
from dumpfs.vfs.views.inside import InsideBuiltFile


@dataclass(slots=True)
class KallsymsFile(InsideBuiltFile):
    """The symbols as /proc/kallsyms shows them to root."""

    ABOUT: ClassVar[str] = "the symbols of the kernel and its modules, as /proc/kallsyms shows them."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        inspector = self.inspector
        word_size = inspector.kernel.word_size
        texts = [render_kallsyms(inspector.kallsyms, word_size)]
        try:
            for module in inspector.modules:
                symbols = module_symbols(inspector.space, inspector.types, module)
                texts.append(render_kallsyms(symbols, word_size, module.name))
        except DumpfsError as exc:  # the kernel's own are worth having without
            note_problem(inspector.problems, f"kallsyms: without the symbols of modules: {exc}")
        return "".join(texts).encode("utf-8", "surrogateescape")
