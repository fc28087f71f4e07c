"""The dead kernel's log, whichever way its version kept it: what /dmesg shows.

Nothing but VMCOREINFO (or what stands in for it) is needed. What kind of log there is is told by the symbols that
are present, newest kind first, never by the kernel's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dumpfs.errors import ViewError, VmcoreinfoError
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.logrecord import LogGap, LogRecord, LogReport, merge_gaps, render_records
from dumpfs.linux.printk_log import is_record_log, iter_record_log, parse_text_log, read_text_log
from dumpfs.linux.printk_ring import iter_ring
from dumpfs.memory.virtual import AddressSpace
from dumpfs.vmcoreinfo import Vmcoreinfo


@dataclass(frozen=True, slots=True)
class Dmesg:
    """A rendered log."""

    text: bytes
    """Exactly what `makedumpfile --dump-dmesg` prints, unless more was asked for or something is missing."""
    notices: tuple[str, ...]
    """What is missing from the text, or was odd, one sentence each."""
    gaps: int = 0
    """Places of the text where something is missing; each has a line there that begins with `-- `."""


def render_dmesg(kernel: Kernel, *, caller: bool = False, device: bool = False) -> Dmesg:
    """The log as text.

    Args:
        kernel: one with VMCOREINFO; see `Kernel.deep`.
        caller: print who logged each record.
        device: print the device each record is about, on lines of its own.

    Raises:
        VmcoreinfoError: what finds the log is not known.
        ViewError: the kernel's memory cannot be translated.
        DumpfsError: the log's own head is not in the dump, or makes no sense.
    """
    space, info = _need(kernel)
    report = LogReport()
    if info.symbol("prb") is None and not is_record_log(info):
        text = read_text_log(space, info, report)
    else:
        signed = kernel.arch is not None and kernel.arch.signed_char
        found = _records(space, info, report)
        text = render_records(found, caller=caller, device=device, signed_char=signed)
    return Dmesg(text, report.notices(), report.gaps)


def records(kernel: Kernel, report: LogReport | None = None) -> Iterator[LogRecord | LogGap]:
    """The log's records, oldest first, and gaps where some are missing, of which `report` learns.

    Errors as `render_dmesg`.
    """
    space, info = _need(kernel)
    return _records(space, info, report if report is not None else LogReport())


def _need(kernel: Kernel) -> tuple[AddressSpace, Vmcoreinfo]:
    if kernel.vmcoreinfo is None:
        raise VmcoreinfoError("VMCOREINFO", "not in the dump", hint="-o vmlinux=FILE or vmcoreinfo=FILE supplies it")
    if kernel.space is None:
        raise ViewError("; ".join(kernel.problems) or "kernel memory cannot be translated")
    return kernel.space, kernel.vmcoreinfo


def _records(space: AddressSpace, info: Vmcoreinfo, report: LogReport) -> Iterator[LogRecord | LogGap]:
    if info.symbol("prb") is not None:
        return merge_gaps(iter_ring(space, info, report), report)
    if is_record_log(info):
        return merge_gaps(iter_record_log(space, info, report), report)
    return parse_text_log(read_text_log(space, info, report))
