"""/dmesg: the dead kernel's log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

from dumpfs.errors import ViewError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import BuiltFile
from dumpfs.vfs.views.vmcoreinfo import HINT, NOT_FOUND, without_vmcoreinfo

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
        reason = without_vmcoreinfo(dump)
        kernel = dump.kernel
        if reason is not None or kernel is None:
            return reason or str(dump.kernel_error)
        info = kernel.vmcoreinfo
        if info is None or kernel.doubt:
            return None  # a search of memory may tell
        if not any(f"SYMBOL({name})" in info for name in _RINGS):
            return "VMCOREINFO does not say where the log is (neither prb nor log_buf); -o vmlinux=FILE may"
        if kernel.space is None:
            return "; ".join(kernel.problems) or f"the memory layout of a {kernel.machine} kernel is unknown"
        return None

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        from dumpfs.linux.printk import render_dmesg

        options = self.dump.options
        kernel = self.dump.need_kernel().deep
        if kernel.vmcoreinfo is None:
            raise ViewError(f"dmesg: {NOT_FOUND}", hint=HINT)
        dmesg = render_dmesg(kernel, caller=options.caller, device=options.device)
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
