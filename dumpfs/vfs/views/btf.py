"""/btf: the kernel's types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.inside import InsideBuiltFile


@dataclass(slots=True)
class BtfFile(InsideBuiltFile):
    """The raw BTF of the kernel."""

    ABOUT: ClassVar[str] = "the types of the kernel in BTF, as /sys/kernel/btf/vmlinux; bpftool and pahole read it."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return self.inspector.read_btf()

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        dump.inspection.inspector.read_btf()
