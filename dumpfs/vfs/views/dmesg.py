"""/dmesg: the dead kernel's log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

from dumpfs.errors import DumpfsError, ViewError, explain
from dumpfs.linux.logrecord import escape
from dumpfs.units import one_line
from dumpfs.vfs.context import Dump
from dumpfs.vfs.savedlog import SavedLog
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
    gaps: int = field(default=0, kw_only=True)
    """Places of the text where something is missing."""
    source: str = field(default="", kw_only=True)
    """Name of the file beside the dump that it comes from; '' for the dump's memory."""

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`: judged by what must be known, without reading the log."""
        reason = _unreadable(dump)
        return None if reason is None or dump.saved_logs.names() else reason

    @property
    def lack(self) -> str:
        """See `FileNode.lack`."""
        if self.source:
            return ""  # it says so itself, and is whole
        if not self.gaps:
            return ""
        saved = next(iter(self.dump.saved_logs.names()), "")
        perhaps = f"; {one_line(saved)} beside the dump may have it" if saved else ""
        places = f"{self.gaps} place{'s' * (self.gaps != 1)}, marked with -- in the text"
        return f"the log is not whole: something is missing in {places}{perhaps}"

    def render(self) -> bytes:
        """See `RenderedFile.render`: from memory, or where that cannot be, the one saved beside the dump."""
        try:
            return self._from_memory()
        except DumpfsError as error:
            saved = _find_saved(self.dump)
            if saved is None:
                raise
            self.source = saved.name
            name = one_line(saved.name)
            self.notices = (f"the log is that of {name} beside the dump; memory cannot give it: {explain(error)}",)
            return f"-- {self.notices[0]} --\n".encode() + escape(saved.text, signed_char=False)

    def _from_memory(self) -> bytes:
        from dumpfs.linux.printk import render_dmesg

        reason = _unreadable(self.dump)
        if reason is not None:
            raise ViewError(f"dmesg: {reason}", hint=HINT)
        options = self.dump.options
        kernel = self.dump.need_kernel().deep
        if kernel.vmcoreinfo is None:
            raise ViewError(f"dmesg: {NOT_FOUND}", hint=HINT)
        dmesg = render_dmesg(kernel, caller=options.caller, device=options.device)
        self.notices = tuple(dmesg.notices)
        self.gaps = dmesg.gaps
        return dmesg.text

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`: where the log begins can be read, or one lies beside the dump."""
        from dumpfs.linux.printk import records

        if (node := dump.tree.made("dmesg")) is not None and not node.ready:
            try:
                next(records(dump.need_kernel().deep), None)
            except DumpfsError:
                if _find_saved(dump) is None:
                    raise

    def build(self) -> bytes | None:
        """See `FileNode.build`: what was odd as a line of JSON, then the text."""
        text = bytes(self._bytes())
        return json.dumps([self.notices, self.gaps, self.source]).encode() + b"\n" + text

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`."""
        line, _, text = bytes(data).partition(b"\n")
        notices, self.gaps, self.source = json.loads(line)
        self.notices = tuple(notices)
        self.content = text


def _find_saved(dump: Dump) -> SavedLog | None:
    """The log of this dump's kernel that lies beside it."""
    kernel = dump.kernel
    return dump.saved_logs.find(dump.image.meta.uts.release if kernel is None else kernel.release)


def _unreadable(dump: Dump) -> str | None:
    """Why memory cannot give the log, as far as that is known without reading it; or None."""
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
