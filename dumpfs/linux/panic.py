"""What a kernel died of, as its own log tells it.

The texts are those of the kernel's printk calls: kernel/panic.c (panic), arch/*/kernel/traps.c and mm/fault.c (oops
headers), lib/bug.c, drivers/tty/sysrq.c, kernel/watchdog.c, lib/dump_stack.c (the CPU/PID/Comm line).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = re.compile(r"^\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? ?(.*)$")
_PANIC = re.compile(r"(?<!---\[ end )Kernel panic - not syncing\b")
_PANIC_END = re.compile(r"---\[ end (Kernel panic - not syncing.*?)(?: \]---)?$")
"""What panic() prints last, where no capture kernel was started: the panic line once more, of old kernels unclosed."""
_CAUSES = (
    r"BUG: ",
    r"kernel BUG at ",
    r"Oops: ",
    r"Oops - ",
    r"Internal error: ",
    r"general protection fault",
    r"divide error: ",
    r"double fault: ",
    r"invalid opcode: ",
    r"Unable to handle kernel ",
    r"Unhandled fault: ",
    r"watchdog: ",
    r"NMI watchdog: ",
    r"(?:sysrq: )?SysRq : Trigger a crash",
    r"sysrq: Trigger a crash",
    r"Fatal hardware error",
    r"mce: \[Hardware Error\]",
    r"Machine check: ",
    r"illegal operation: ",
    r"specification exception: ",
)
_CAUSE = re.compile("|".join(_CAUSES))
_COMPLAINT_LINES = 8
"""Lines within which two complaints are parts of one."""
_RELATED_SECONDS = 60.0
"""Between a complaint and the panic that it led to; a watchdog or a reboot timer may lie between."""
_TASK = re.compile(r"\bCPU: (\d+) (?:UID: \d+ )?PID: (\d+) Comm: (.*?) (?:Kdump: |Not tainted|Tainted: )")
_WHERE = re.compile(r"\b(?:RIP: 0010:|pc : |PC is at |epc : |NIP \[[0-9a-f]+\] )(\S+)")


@dataclass(frozen=True, slots=True)
class Panic:
    """The end of a kernel; strings are empty and numbers None where its log does not tell."""

    message: str = ""
    """The panic line: 'Kernel panic - not syncing: ...'."""
    cause: str = ""
    """The complaint that led to it: 'BUG: kernel NULL pointer dereference, address: ...'."""
    where: str = ""
    """Function and offset of the fault, when the log names it."""
    task: str = ""
    """Name of the task that was running on the processor that panicked."""
    pid: int | None = None
    cpu: int | None = None
    uptime: float | None = None
    """Seconds since the kernel started, of the last line with a time."""

    @property
    def headline(self) -> str:
        """The most telling line, or ''."""
        return self.message or self.cause


def find_panic(log: str) -> Panic:
    """What the log, as `dmesg` prints it, says of the crash.

    A kernel that goes into its capture kernel from an oops prints no panic line; the last complaint is all there is
    then. Before a panic line a complaint counts if it came shortly before: an older one was survived.
    """
    lines = [_split(line) for line in log.splitlines()]
    uptime = next((time for time, _ in reversed(lines) if time is not None), None)
    end = _last(lines, _PANIC, len(lines))
    if end is None:  # the ring buffer may have lost the line
        end = _last(lines, _PANIC_END, len(lines))
    cause = _find_cause(lines, len(lines) if end is None else end)
    if end is not None and cause is not None and (lines[end][0] or 0.0) - (lines[cause][0] or 0.0) > _RELATED_SECONDS:
        cause = None
    # The dump_stack of a panic follows its line; that of an oops lies between the complaint and the panic.
    start = cause if cause is not None else end
    if start is None:
        return Panic(uptime=uptime)
    task = next((m for _, text in lines[start:] if (m := _TASK.search(text))), None)
    where = next((m for _, text in lines[start:] if (m := _WHERE.search(text))), None)
    return Panic(
        message=_PANIC_END.sub(r"\1", lines[end][1]) if end is not None else "",
        cause=lines[cause][1] if cause is not None else "",
        where=where[1] if where else "",
        task=task[3] if task else "",
        pid=int(task[2]) if task else None,
        cpu=int(task[1]) if task else None,
        uptime=uptime,
    )


def _split(line: str) -> tuple[float | None, str]:
    match = _PREFIX.match(line)
    return (float(match[1]), match[2]) if match else (None, line)


def _last(lines: Sequence[tuple[float | None, str]], pattern: re.Pattern[str], stop: int) -> int | None:
    """Index of the last line below `stop` that `pattern` is found in."""
    return next((i for i in range(stop - 1, -1, -1) if pattern.search(lines[i][1])), None)


def _find_cause(lines: Sequence[tuple[float | None, str]], stop: int) -> int | None:
    """Index of the first line of the last complaint below `stop`: an oops prints several ("BUG: ...", "Oops: ...")."""
    found = _last(lines, _CAUSE, stop)
    while found is not None:
        earlier = _last(lines[max(found - _COMPLAINT_LINES, 0) : found], _CAUSE, min(found, _COMPLAINT_LINES))
        if earlier is None:
            break
        found = max(found - _COMPLAINT_LINES, 0) + earlier
    return found
