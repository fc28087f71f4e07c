"""The tasks of the dead kernel: processes, threads and each processor's idle task.

    init_task.tasks --> leader --> leader --> ...        one per process
                          |
                        signal->thread_head --> thread_node of each thread

Sources: Linux include/linux/sched.h and sched/signal.h (lists, states, flags), fs/proc/array.c (letters of states),
arch/x86/include/asm/switch_to.h (inactive_task_frame), arch/arm64/include/asm/processor.h (cpu_context).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dumpfs.errors import DumpfsError
from dumpfs.linux.records import Record, note_problem, read_record, walk_list
from dumpfs.linux.types import MissingTypeError, Types
from dumpfs.memory.virtual import AddressSpace

PID_MAX_LIMIT = 1 << 22
_MAX_TASKS = 1 << 20
PF_KTHREAD = 0x00200000

STATE_NAMES: Mapping[str, str] = {
    "R": "running",
    "S": "sleeping",
    "D": "disk sleep",
    "T": "stopped",
    "t": "tracing stop",
    "X": "dead",
    "Z": "zombie",
    "P": "parked",
    "I": "idle",
}
"""Letter and words of a state, as /proc/PID/status has them."""
_LETTERS = "RSDTtXZPI"
_TASK_REPORT = 0x7F
_TASK_IDLE = 0x402
_AS_UNINTERRUPTIBLE = 0x1000 | 0x8000
"""TASK_RTLOCK_WAIT and TASK_FROZEN show as disk sleep."""

_X86_FRAME = {"r15": "r15", "r14": "r14", "r13": "r13", "r12": "r12", "bx": "rbx", "bp": "rbp", "ret_addr": "rip"}
"""Member of inactive_task_frame to register."""
_ARM64_CONTEXT = {**{f"x{n}": f"x{n}" for n in range(19, 29)}, "fp": "x29", "sp": "sp", "pc": "pc"}


@dataclass(frozen=True, slots=True)
class Task:
    """One task (a thread, in user space's words)."""

    vaddr: int
    """Of its task_struct."""
    pid: int
    """Thread id; 0 for every idle task."""
    tgid: int
    """Process id."""
    ppid: int
    """Process id of its parent, 0 without one."""
    comm: str
    state: str
    """One letter, see STATE_NAMES."""
    flags: int
    """PF_ bits."""
    uid: int | None
    """Real user id; None when its credentials cannot be read."""
    mm: int
    """Address of its mm_struct; 0 for kernel threads."""
    stack: int
    """Lowest address of its kernel stack."""
    cpu: int
    """Processor it runs or last ran on."""
    running: bool
    """Whether it was on that processor when the machine stopped."""

    @property
    def kernel_thread(self) -> bool:
        """Whether it has no user half."""
        return bool(self.flags & PF_KTHREAD)

    @property
    def leader(self) -> bool:
        """Whether it stands for its process."""
        return self.pid == self.tgid


def state_letter(state: int, exit_state: int) -> str:
    """The letter that ps and /proc show."""
    if state & _TASK_IDLE == _TASK_IDLE:
        return "I"
    if state & _AS_UNINTERRUPTIBLE:
        state = 2
    return _LETTERS[((state | exit_state) & _TASK_REPORT).bit_length()]


class TaskReader:
    """Finds and reads the tasks of one kernel.

    Args:
        space: kernel memory.
        types: structures of this kernel.
        problems: told what could not be read.
    """

    def __init__(self, space: AddressSpace, types: Types, problems: list[str]) -> None:
        self.space = space
        self.types = types
        self.problems = problems
        self.size = types.size("task_struct")
        self._uid = types.find("cred", "uid")

    def record(self, vaddr: int) -> Record:
        """The whole task_struct at `vaddr`; errors as `read_record`."""
        return read_record(self.space, self.types, "task_struct", vaddr, size=self.size)

    def read(self, vaddr: int, running: Mapping[int, int] | None, idle_cpu: int | None = None) -> Task:
        """The task at `vaddr`.

        Args:
            vaddr: of its task_struct.
            running: task_struct address to processor, of what each processor ran; None takes the task's own word.
            idle_cpu: the processor that it is the idle task of.

        Raises:
            DumpfsError: it cannot be read, or is none.
        """
        record = self.record(vaddr)
        pid, tgid = record.value("pid"), record.value("tgid")
        if pid > PID_MAX_LIMIT or tgid > PID_MAX_LIMIT:
            raise DumpfsError(f"no task at {vaddr:#x}: its pid would be {pid}")
        last = record.get("thread_info.cpu", "cpu", "recent_used_cpu")
        if running is not None:
            cpu = running.get(vaddr)
        else:
            cpu = last if record.get("on_cpu") else None
        last = last if cpu is None else cpu
        if idle_cpu is not None:
            last = idle_cpu
        return Task(
            vaddr=vaddr,
            pid=pid,
            tgid=tgid,
            ppid=self._parent(record),
            comm=record.text("comm"),
            state=state_letter(record.value("__state", "state"), record.get("exit_state") or 0),
            flags=record.value("flags"),
            uid=self._read_uid(record),
            mm=record.value("mm"),
            stack=record.value("stack"),
            cpu=last if last is not None and last < PID_MAX_LIMIT else 0,
            running=cpu is not None,
        )

    def _parent(self, record: Record) -> int:
        parent = record.value("real_parent")
        try:
            value = self.space.read_u32(parent + self.types.offset("task_struct", "tgid")) if parent else 0
        except DumpfsError:
            return 0
        return value if value <= PID_MAX_LIMIT else 0

    def _read_uid(self, record: Record) -> int | None:
        cred = record.get("real_cred")
        if not cred or self._uid is None:
            return None
        try:
            return self.space.read_u32(cred + self._uid.offset)
        except DumpfsError:
            return None

    # -- finding them

    def addresses(self, init_task: int) -> Iterator[int]:
        """Addresses of every task but the idle ones, each process's leader before its other threads."""
        link = self.types.offset("task_struct", "tasks")
        seen = {init_task}
        what = "list of processes"
        for node in walk_list(self.space, init_task + link, _MAX_TASKS, self.problems, what):
            leader = node - link
            for vaddr in (leader, *self._threads(leader)):
                if vaddr not in seen:
                    if len(seen) > _MAX_TASKS:
                        note_problem(self.problems, f"more than {_MAX_TASKS} tasks, the rest is left out")
                        return
                    seen.add(vaddr)
                    yield vaddr

    def _threads(self, leader: int) -> Iterator[int]:
        """The threads of a process; the list hangs on its signal_struct since 3.14, on the leader before."""
        types, space = self.types, self.space
        what = f"threads of the task at {leader:#x}"
        try:
            if types.has("signal_struct", "thread_head"):
                link = types.offset("task_struct", "thread_node")
                head = space.read_word(leader + types.offset("task_struct", "signal"))
                if not head:
                    return
                head += types.offset("signal_struct", "thread_head")
            else:
                link = types.offset("task_struct", "thread_group")
                head = leader + link
        except MissingTypeError:
            raise
        except DumpfsError as exc:
            note_problem(self.problems, f"{what}: {exc}")
            return
        for node in walk_list(space, head, _MAX_TASKS, self.problems, what):
            yield node - link


def read_tasks(
    reader: TaskReader, init_task: int, idle: Mapping[int, int], running: Mapping[int, int] | None
) -> tuple[Task, ...]:
    """All tasks: idle ones by processor, then the processes in the kernel's order, each with its threads.

    Args:
        reader: of this kernel.
        init_task: address of the first processor's idle task.
        idle: processor to address of its idle task.
        running: address of a task to the processor it was on; None when that is unknown.

    Raises:
        MissingTypeError: task_struct is not known.
    """
    tasks = []
    idle_cpus: dict[int, int] = {init_task: 0}
    idle_cpus.update((vaddr, cpu) for cpu, vaddr in sorted(idle.items(), reverse=True))
    places: list[tuple[int, int | None]] = list(idle_cpus.items())
    places.sort(key=lambda place: place[1] or 0)
    places += [(vaddr, None) for vaddr in reader.addresses(init_task) if vaddr not in idle_cpus]
    for vaddr, cpu in places:
        try:
            tasks.append(reader.read(vaddr, running, cpu))
        except MissingTypeError:
            raise
        except DumpfsError as exc:
            note_problem(reader.problems, f"task at {vaddr:#x}: {exc}")
    return tuple(tasks)


def saved_registers(reader: TaskReader, task: Task, machine: str) -> dict[str, int]:
    """Registers of a task that is not running, as the switch to another task left them.

    Args:
        reader: of this kernel.
        task: the task.
        machine: `uname -m`: x86_64 or aarch64.

    Returns:
        Register names of the architecture's NT_PRSTATUS to values; only those that are kept across a switch.

    Raises:
        MissingTypeError: another architecture.
        DumpfsError: the task cannot be read.
    """
    record = reader.record(task.vaddr)
    space, types = reader.space, reader.types
    if machine == "x86_64":
        sp = record.value("thread.sp")
        frame = read_record(space, types, "inactive_task_frame", sp)
        registers = {name: frame.value(member) for member, name in _X86_FRAME.items()}
        registers["rsp"] = sp + len(frame.data)
        return registers
    if machine == "aarch64":
        return {name: record.value(f"thread.cpu_context.{member}") for member, name in _ARM64_CONTEXT.items()}
    raise MissingTypeError("registers", f"dumpfs does not know where {machine or 'this machine'} keeps them")


def processes(tasks: Sequence[Task]) -> dict[int, list[Task]]:
    """Process id to its threads, leader first; idle tasks are not among them.

    No process has the id 0: a task whose tgid was overwritten with it goes by its own pid.
    """
    found: dict[int, list[Task]] = {}
    for task in tasks:
        if task.pid:
            found.setdefault(task.tgid or task.pid, []).append(task)
    return found
