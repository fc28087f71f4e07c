"""/dmesg: the dead kernel's log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import BuiltFile
from dumpfs.vfs.views.vmcoreinfo import NO_VMCOREINFO
from dumpfs.vmcoreinfo import Vmcoreinfo

_RINGS = ("prb", "log_buf")
"""Symbols of the log: the printk ring since 5.10, the log buffer before."""


@dataclass(slots=True)
class DmesgFile(BuiltFile):
    """The log as `dmesg` would have printed it."""

    ABOUT: ClassVar[str] = "the log of the crashed kernel, as dmesg would have printed it."

    notices: tuple[str, ...] = field(default=(), kw_only=True)
    """What was odd in the log, once it was rendered."""

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`: judged by what must be known, without reading the log."""
        if dump.options.vmlinux is not None and dump.vmcoreinfo_text is None:
            return None if dump.kernel is not None else str(dump.kernel_error)
        text = dump.vmcoreinfo_text
        if text is None:
            return NO_VMCOREINFO
        info = Vmcoreinfo(text)
        if not any(f"SYMBOL({name})" in info for name in _RINGS):
            return "VMCOREINFO does not say where the log is (neither prb nor log_buf); -o vmlinux=FILE may"
        return None

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        from dumpfs.linux.printk import render_dmesg

        options = self.dump.options
        dmesg = render_dmesg(self.dump.need_kernel(), caller=options.caller, device=options.device)
        self.notices = tuple(dmesg.notices)
        return dmesg.text

    def build(self) -> bytes | None:
        """See `FileNode.build`: the notices as a line of JSON, then the text."""
        text = bytes(self._bytes())
        return json.dumps(self.notices).encode() + b"\n" + text

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`."""
        line, _, text = bytes(data).partition(b"\n")
        self.notices = tuple(json.loads(line))
        self.content = text
