"""/vmlinux and /gdb/extra.symbols: what gdb needs to know of a kernel, made of the dump alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideBuiltFile

# What builds the files is imported by the helper process that builds: a listing of the root needs only their names.


@dataclass(slots=True)
class SymbolsFile(InsideBuiltFile):
    """A symbol file."""

    WHOLE: ClassVar[bool]
    """Whether the kernel's own symbols are wanted."""

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        from dumpfs.elf.kernelfile import build_symbol_file

        return build_symbol_file(self.inspector, whole=self.WHOLE)

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        inspector = dump.inspection.inspector
        _ = inspector.kallsyms, inspector.code.ranges

    def load(self) -> None:
        """See `Node.load`."""
        import dumpfs.elf.kernelfile  # noqa: F401


@dataclass(slots=True)
class VmlinuxFile(SymbolsFile):
    """Symbols and unwind information of the kernel and its modules."""

    ABOUT: ClassVar[str] = (
        "an ELF file with the names of all functions and variables of the kernel and its modules, at the addresses"
        " where they were, and what it takes to walk stacks: for gdb without debug information. It has the kernel's"
        " build-id, so `debuginfod-find debuginfo` can fetch the real one by it."
    )
    WHOLE: ClassVar[bool] = True


@dataclass(slots=True)
class ExtraSymbolsFile(SymbolsFile):
    """What a vmlinux lacks."""

    ABOUT: ClassVar[str] = (
        "an ELF file that gdbinit loads beside a real vmlinux: names of modules' functions, and where stacks end."
    )
    WHOLE: ClassVar[bool] = False
