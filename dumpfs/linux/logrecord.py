"""One record of the kernel log, and how it is printed.

The text is, byte for byte, what `makedumpfile --dump-dmesg` prints: the time in brackets, lines after the first
indented to stand below it, other bytes than printable ASCII and white space in hex.

Sources: makedumpfile printk.c and makedumpfile.c (format), Linux kernel/printk/printk.c (caller ids, /dev/kmsg's
device lines).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dumpfs.units import one_line

_CALLER_CPU = 1 << 31
_CALLER_WIDTH = 6
_ODD = re.compile(rb"[^\x20-\x7e\t\n\v\f\r]")
_LEVEL_MASK, _LEVEL_SHIFT = 7, 5


class LogRecord(NamedTuple):
    """A record as the kernel stored it."""

    seq: int
    """Number since boot."""
    ts_nsec: int
    """Nanoseconds of the kernel's log clock, from about boot on."""
    level: int
    """0 emergency ... 7 debug."""
    facility: int
    """syslog facility: 0 kernel, 1 user ..."""
    caller_id: int | None
    """Thread id, or a processor number with bit 31 set; None where the kernel does not keep it."""
    text: bytes
    """May hold newlines; has none at its end."""
    subsystem: str = ""
    """Of the device it is about, or ''."""
    device: str = ""
    """As in /dev/kmsg: 'b8:0', 'c4:64', 'n2', '+pci:0000:00:02.0', or ''."""

    @property
    def caller(self) -> str:
        """'T1234' or 'C1', or ''."""
        if self.caller_id is None:
            return ""
        kind = "C" if self.caller_id & _CALLER_CPU else "T"
        return f"{kind}{self.caller_id & ~_CALLER_CPU}"


class LogGap(NamedTuple):
    """A place in the log where something is missing."""

    number: int
    """How many of `unit`."""
    what: str
    """'their text is not in the dump' ..."""
    why: str
    """'page 0xf4fc is lost: ...', or ''."""
    unit: str = "record"
    """'record' or 'byte'."""

    def render(self) -> str:
        """The line that stands in the text for what is missing: no line of a kernel begins so."""
        number = f"{self.number} {self.unit}{'s' * (self.number != 1)}"
        why = f" ({one_line(self.why)})" if self.why else ""
        return f"-- {number}: {self.what}{why} --"


@dataclass(slots=True)
class LogReport:
    """What a walk over the log met, by sentence; where something is missing, the text says it as well."""

    counts: dict[str, int] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    gaps: int = 0
    """Places where something is missing."""

    def count(self, what: str, number: int = 1) -> None:
        """`number` more records of which `what` is true."""
        self.counts[what] = self.counts.get(what, 0) + number

    def gap(self, gap: LogGap) -> LogGap:
        """Take note of a gap; once for all that is missing in one place."""
        self.gaps += 1
        if gap.unit == "record":
            self.count(f"of which {gap.what}", gap.number)
        else:
            self.sentences.append(gap.render().strip("- "))
        return gap

    def notices(self) -> tuple[str, ...]:
        """One sentence for each kind of trouble."""
        return (*self.sentences, *(f"log records {what}: {n}" for what, n in self.counts.items()))


def split_level(flags: int, *, little: bool) -> int:
    """The level in the byte `flags:5, level:3`: a bit-field fills up from the low end on little-endian machines."""
    return flags >> _LEVEL_SHIFT if little else flags & _LEVEL_MASK


def escape(text: bytes, *, signed_char: bool) -> bytes:
    """`text` with bytes that are neither printable ASCII nor white space as \\xNN.

    makedumpfile hands a plain `char` to printf's %02x: where C's char is signed (x86), bytes from 0x80 on come out
    sign-extended, as \\xffffffNN.
    """

    def hexed(match: re.Match[bytes]) -> bytes:
        byte = match[0][0]
        return b"\\xffffff%02x" % byte if signed_char and byte >= 0x80 else b"\\x%02x" % byte

    return _ODD.sub(hexed, text)


def merge_gaps(records: Iterable[LogRecord | LogGap], report: LogReport) -> Iterator[LogRecord | LogGap]:
    """Gaps of one kind that follow each other as one, of which `report` learns: a lost page costs many records."""
    held: LogGap | None = None
    reasons: dict[str, None] = {}  # in order
    for record in records:
        if isinstance(record, LogGap):
            if held is not None and (held.what, held.unit) == (record.what, record.unit):
                held = held._replace(number=held.number + record.number)
            else:
                if held is not None:
                    yield report.gap(_with_reasons(held, reasons))
                held, reasons = record, {}
            reasons[record.why] = None
            continue
        if held is not None:
            yield report.gap(_with_reasons(held, reasons))
            held = None
        yield record
    if held is not None:
        yield report.gap(_with_reasons(held, reasons))


def _with_reasons(gap: LogGap, reasons: Collection[str]) -> LogGap:
    first, *others = reasons
    more = f", and {len(others)} more page{'s' * (len(others) != 1)}" if others else ""
    return gap._replace(why=first + more if first else "")


def render_records(
    records: Iterable[LogRecord | LogGap], *, caller: bool = False, device: bool = False, signed_char: bool = False
) -> bytes:
    """The log text.

    Args:
        records: in order; a gap becomes a line of its own.
        caller: print who logged each record, as CONFIG_PRINTK_CALLER does.
        device: print the device a record is about on lines of its own, as /dev/kmsg does.
        signed_char: see `escape`.
    """
    lines = []
    for record in records:
        if isinstance(record, LogGap):
            lines.append(record.render().encode())
            continue
        seconds, rest = divmod(record.ts_nsec, 1_000_000_000)
        prefix = b"[%5d.%06d]" % (seconds, rest // 1000)
        if caller and record.caller_id is not None:
            prefix += b"[%*s]" % (_CALLER_WIDTH, record.caller.encode())
        prefix += b" "
        indent = b"\n" + b" " * len(prefix)
        text = record.text
        if _ODD.search(text):
            text = escape(text, signed_char=signed_char)
        lines.append(prefix + text.replace(b"\n", indent))
        if device:
            for key, value in (("SUBSYSTEM", record.subsystem), ("DEVICE", record.device)):
                if value:
                    lines.append(f" {key}={one_line(value)}".encode())
    if lines:
        lines.append(b"")
    return b"\n".join(lines)
