"""/vmcoreinfo: what the crashed kernel says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.errors import ViewError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import BuiltFile

NO_VMCOREINFO = "the dump has no VMCOREINFO; -o vmcoreinfo=FILE or -o vmlinux=FILE supplies it"
NOT_FOUND = "the dump carries no VMCOREINFO, and none was found in its memory"
HINT = "-o vmcoreinfo=FILE or -o vmlinux=FILE supplies it"


def without_vmcoreinfo(dump: Dump) -> str | None:
    """Why a view that needs VMCOREINFO cannot be offered, or None.

    A dump may have it in its memory; that is searched when the view is opened.
    """
    kernel = dump.kernel
    if dump.vmcoreinfo_text is not None or (kernel is not None and kernel.may_be_searched):
        return None
    return NO_VMCOREINFO


@dataclass(slots=True)
class VmcoreinfoFile(BuiltFile):
    """VMCOREINFO as the dump has it."""

    ABOUT: ClassVar[str] = (
        "what the crashed kernel says of itself: KEY=value lines with its release, symbols, sizes and offsets."
    )

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return without_vmcoreinfo(dump)

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        return self.content is not None or self.dump.vmcoreinfo_text is not None

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        if dump.deep_vmcoreinfo_text is None:
            raise ViewError(NOT_FOUND, hint=HINT)

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        text = self.dump.deep_vmcoreinfo_text
        if text is None:
            raise ViewError(f"vmcoreinfo: {NOT_FOUND}", hint=HINT)
        return text
