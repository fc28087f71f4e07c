"""/vmcore-tasks: /vmcore with a thread for every task, so that gdb shows them all.

The processors' own notes come first and are the dump's, but for pr_pid. A task that slept has a note made from what
the switch to another task saved: enough to unwind from, for whatever else its registers held is on its stack. gdb tells
threads apart by pr_pid and takes 0 for none, so idle tasks, all with pid 0, get numbers that no task can have.

Sources: Linux include/linux/elfcore.h (struct elf_prstatus), include/linux/threads.h (PID_MAX_LIMIT), arch/x86/include/
asm/segment.h (kernel selectors), arch/arm64/include/uapi/asm/ptrace.h (PSR_MODE_EL1h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumpfs.elf.core_notes import FIRST_MADE_PID, ThreadNotes
from dumpfs.errors import DumpfsError, ViewError
from dumpfs.notes import NT_PRSTATUS, build_note
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.vmcore import CoreFile, DumpCore, plan_dump_core

if TYPE_CHECKING:
    from dumpfs.arch.base import PrstatusLayout
    from dumpfs.linux.inspect import Inspector
    from dumpfs.linux.tasks import Task
    from dumpfs.structs import ByteOrder

_KERNEL_MODE: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"cs": 0x10, "ss": 0x18, "eflags": 0x2},
    "aarch64": {"pstate": 0x5},
}
"""Registers that say "in the kernel", for architectures whose sleeping tasks can be told."""
_MAX_THREADS = 1 << 16
"""Threads in a core; gdb keeps a record of each, and this many take it minutes."""
_MAX_TOLD = 3


class _Pids:
    """Thread numbers: the kernel's own where they are unique, else ones that no task can have."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def take(self, pid: int, cpu: int) -> int:
        """`pid`, or a made-up number, by the processor where possible."""
        if not 0 < pid < FIRST_MADE_PID or pid in self._used:
            pid = FIRST_MADE_PID + cpu
            while pid in self._used:
                pid += 1
        self._used.add(pid)
        return pid


def find_threads(dump: Dump) -> ThreadNotes:
    """A thread for each processor's note and for each task that was on none.

    Raises:
        DumpfsError: the tasks cannot be found.
    """
    inspector = dump.inspection.inspector
    arch = inspector.kernel.arch
    machine = inspector.kernel.machine
    if arch is None or machine not in _KERNEL_MODE:
        raise ViewError(f"vmcore-tasks: {_other_machine(machine)}")
    tasks = inspector.tasks
    pids = _Pids()
    running = {task.cpu: task for task in tasks if task.running}
    cpus = _note_cpus(inspector, running)
    cpu_pids = []
    asleep = [task for task in tasks if not task.running]
    of_others = {task.pid for task in asleep}
    for number, (desc, cpu) in enumerate(cpus):
        task = running.pop(cpu, None) if cpu is not None else None
        pid = task.pid if task is not None else arch.prstatus.pid(desc, inspector.kernel.image.meta.byteorder)
        if task is None and pid in of_others:
            pid = 0  # QEMU numbers processors from 1
        cpu_pids.append(pids.take(pid, number if cpu is None else cpu))
    problems: list[str] = []
    if running:
        names = ", ".join(f"{task.comm} ({task.pid})" for task in list(running.values())[:_MAX_TOLD])
        problems.append(f"tasks on processors that left no registers are not among the threads: {names}")
    data = bytearray()
    unreadable = []
    for task in asleep[: _MAX_THREADS - len(cpu_pids)]:
        try:
            registers = inspector.registers(task)
        except DumpfsError as exc:
            unreadable.append(f"{task.comm} ({task.pid}): {exc.message}")
            continue
        pid = pids.take(task.pid, task.cpu)
        data += _prstatus(arch.prstatus, inspector.kernel.byteorder, pid, task, {**_KERNEL_MODE[machine], **registers})
    if unreadable:
        problems.append(
            f"{len(unreadable)} tasks are not among the threads, for their registers cannot be read:"
            f" {'; '.join(unreadable[:_MAX_TOLD])}"
        )
    if len(asleep) > _MAX_THREADS - len(cpu_pids):
        problems.append(f"of {len(tasks)} tasks only {_MAX_THREADS} are threads")
    return ThreadNotes(tuple(cpu_pids), bytes(data), (*problems, *inspector.problems))


def _note_cpus(inspector: Inspector, running: Mapping[int, Task]) -> Sequence[tuple[bytes, int | None]]:
    """Each processor note's descriptor and whose it is, as far as that can be told.

    A kernel writes one for each processor that is present, in order; when some are missing, the pid in it tells.
    """
    kernel = inspector.kernel
    arch = kernel.arch
    assert arch is not None
    need = arch.prstatus.pid_offset + 4
    notes = [n.desc for n in kernel.notes if n.name == b"CORE" and n.type == NT_PRSTATUS and len(n.desc) >= need]
    try:
        cpus = inspector.cpus
    except DumpfsError:
        cpus = ()
    if len(notes) == len(cpus):
        return list(zip(notes, cpus, strict=True))
    by_pid: dict[int, list[int]] = {}
    for cpu, task in running.items():
        by_pid.setdefault(task.pid, []).append(cpu)
    order = kernel.image.meta.byteorder
    found: list[tuple[bytes, int | None]] = []
    for desc in notes:
        pid = arch.prstatus.pid(desc, order)
        known = by_pid.pop(pid, []) if pid else []
        found.append((desc, known[0] if len(known) == 1 else None))
    return found


def _prstatus(
    layout: PrstatusLayout, byteorder: ByteOrder, pid: int, task: Task, registers: Mapping[str, int]
) -> bytes:
    """The note of a task."""
    desc = bytearray(layout.descsz)

    def put(offset: int, value: int, size: int) -> None:
        desc[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, byteorder)

    put(layout.pid_offset, pid, 4)
    put(layout.pid_offset + 4, task.ppid, 4)
    for name, offset, size in layout.registers:
        if name in registers:
            put(offset, registers[name], size)
    return build_note(b"CORE", NT_PRSTATUS, bytes(desc), byteorder)


def _other_machine(machine: str) -> str:
    return f"dumpfs does not know where a {machine or 'kernel of unknown machine'} keeps the registers of tasks"


@dataclass(slots=True)
class VmcoreTasksFile(CoreFile):
    """An ELF core of the whole dump with every task as a thread."""

    INSIDE: ClassVar[bool] = True
    NAME: ClassVar[str] = "vmcore-tasks"
    ABOUT: ClassVar[str] = (
        "vmcore with a thread for every task, for gdb: `info threads` and `thread apply all bt` show them all. The"
        " processors come first, then the tasks that slept; idle tasks have numbers from 4194304 on. Give tools that"
        " count processors by their notes (crash, makedumpfile) the plain vmcore."
    )

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`: whether the tasks can be found is known when the file is opened."""
        reason = dump.inspection.missing()
        if reason is not None or dump.kernel is None:
            return reason
        machine = dump.kernel.machine
        return None if machine in _KERNEL_MODE or not machine else _other_machine(machine)

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        inspector = dump.inspection.inspector
        if inspector.kernel.machine not in _KERNEL_MODE:
            raise ViewError(_other_machine(inspector.kernel.machine))
        _ = inspector.tasks

    def make(self) -> DumpCore:
        """See `CoreFile.make`."""
        return plan_dump_core(self.dump, self.NAME, find_threads)
