"""/kallsyms: the kernel's and its modules' symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.errors import DumpfsError
from dumpfs.linux.kallsyms import render_kallsyms
from dumpfs.linux.modules import Module, SymbolBudget, module_symbols
from dumpfs.linux.records import note_problem
from dumpfs.linux.types import MissingTypeError
from dumpfs.vfs.context import Dump
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
        budget = SymbolBudget()
        try:
            for module in inspector.modules:
                texts.append(self._of_module(module, budget))
        except DumpfsError as exc:  # the kernel's own are worth having without
            note_problem(inspector.problems, f"kallsyms: without the symbols of modules: {exc}")
        return "".join(texts).encode("utf-8", "surrogateescape")

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _ = dump.inspection.inspector.kallsyms

    def _of_module(self, module: Module, budget: SymbolBudget) -> str:
        inspector = self.inspector
        try:
            symbols = module_symbols(inspector.space, inspector.types, module, budget)
        except MissingTypeError:
            raise  # so it is for every module
        except DumpfsError as exc:
            note_problem(inspector.problems, f"kallsyms: without the symbols of module {module.name}: {exc}")
            return ""
        return render_kallsyms(symbols, inspector.kernel.word_size, module.name)
