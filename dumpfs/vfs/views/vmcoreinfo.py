"""/vmcoreinfo: what the crashed kernel says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import RenderedFile

NO_VMCOREINFO = (
    "the dump has no VMCOREINFO; -o vmcoreinfo=FILE or -o vmlinux=FILE supplies it (QEMU adds it to its dumps when the"
    " guest has a vmcoreinfo device)"
)


@dataclass(slots=True)
class VmcoreinfoFile(RenderedFile):
    """VMCOREINFO as the dump has it."""

    ABOUT: ClassVar[str] = (
        "what the crashed kernel says of itself: KEY=value lines with its release, symbols, sizes and offsets."
    )

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return None if dump.vmcoreinfo_text is not None else NO_VMCOREINFO

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return self.dump.vmcoreinfo_text or b""
