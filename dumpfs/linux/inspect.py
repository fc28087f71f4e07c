"""What can be told of a dead kernel by its own symbols and types; everything is found out when first asked for.

One `Inspector` per dump. Any thread may use it: at worst two find out the same thing at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.btf import MAX_BTF, Btf
from dumpfs.linux.code import KernelCode
from dumpfs.linux.debugfile import DebugFile
from dumpfs.linux.frames import Stack
from dumpfs.linux.ikconfig import find_version, read_config, read_version
from dumpfs.linux.kallsyms import Kallsyms, read_kallsyms, tables_from_vmcoreinfo
from dumpfs.linux.kallsyms_scan import find_kallsyms
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.modules import Module, read_modules
from dumpfs.linux.processors import SavedRegisters, find_registers, prstatus_notes, read_cpus
from dumpfs.linux.records import note_problem
from dumpfs.linux.tasks import Task, TaskReader, processes, read_tasks, saved_registers
from dumpfs.linux.types import Types
from dumpfs.linux.unnamed import find_btf, find_init_task
from dumpfs.linux.unwind import StackReader
from dumpfs.memory.virtual import AddressSpace

MAX_IMAGE = 256 << 20
DEFAULT_STACK_SIZE = 1 << 14
MAX_STACK_SIZE = 1 << 20
_T = TypeVar("_T")


class Inspector:
    """Symbols, types, modules, processors and tasks of one kernel.

    What cannot be found out raises a `DumpfsError` with the reason, the same one each time.

    Args:
        kernel: the kernel; `kernel.deep` gives more where the dump has no VMCOREINFO.
        debug: its vmlinux, for what the dump does not tell, or None.
    """

    def __init__(self, kernel: Kernel, debug: DebugFile | None = None) -> None:
        self.kernel = kernel
        self.problems: list[str] = []
        """What was met that is not as it should be, one sentence each."""
        self._known: dict[str, Any] = {}
        self._debug = debug

    def _once(self, name: str, make: Callable[[], _T]) -> _T:
        """What `make` returned or raised the first time."""
        if name not in self._known:
            try:
                self._known[name] = make()
            except DumpfsError as exc:
                self._known[name] = exc
        found = self._known[name]
        if isinstance(found, DumpfsError):
            raise found.with_traceback(None)  # else it would grow each time
        return cast(_T, found)

    def know(self, name: str, value: object) -> None:
        """Take what another process found out under a name of `_once`, or the error it met; see `frozen`."""
        self._known[name] = value

    def notices(self) -> Iterator[str]:
        """What could not be found out of what was asked, and what was odd."""
        for found in self._known.values():
            if isinstance(found, DumpfsError):
                yield found.message if found.hint is None else f"{found.message} ({found.hint})"
        yield from self.problems

    @property
    def space(self) -> AddressSpace:
        """Kernel memory."""
        if self.kernel.space is None:
            raise ViewError(
                "kernel memory cannot be translated", hint="VMCOREINFO, or the option vmlinux=, tells what it takes"
            )
        return self.kernel.space

    # -- symbols

    @property
    def kallsyms(self) -> Kallsyms:
        """The kernel's own symbols."""
        return self._once("kallsyms", self._read_kallsyms)

    def _read_kallsyms(self) -> Kallsyms:
        """By VMCOREINFO, else from the user's vmlinux, else by a search of the kernel image."""
        info = self.kernel.vmcoreinfo
        stext = info.symbol("_stext") if info is not None else None
        problem: DumpfsError
        try:
            if info is None:
                raise ViewError("the dump has no VMCOREINFO")
            return read_kallsyms(self.space, tables_from_vmcoreinfo(info), stext, "kallsyms in the dump")
        except DumpfsError as exc:
            problem = exc
        try:
            symbols = find_kallsyms(self.space, self.image_ranges, stext)
        except DumpfsError as exc:
            debug = self.debug_symbols
            if debug is not None:
                return debug
            raise ViewError(f"{problem}; {exc}", hint=exc.hint) from exc
        return symbols

    @property
    def debug_symbols(self) -> Kallsyms | None:
        """Symbols of the user's vmlinux, or None when none was given or it does not fit."""
        debug = self._debug
        if debug is None:
            return None
        try:
            return self._once("debug_symbols", lambda: debug.read_symbols(self.kernel.kaslr_offset or 0))
        except DumpfsError as exc:
            note_problem(self.problems, str(exc))
            return None

    @property
    def image_ranges(self) -> tuple[tuple[int, int], ...]:
        """(address, bytes) of memory that holds the kernel image: its own mapping, else the start of linear maps."""
        text = self.kernel.text
        if text is not None:
            return ((text[0], min(text[2], MAX_IMAGE)),)
        return tuple((rule.vaddr, min(rule.size, MAX_IMAGE)) for rule in self.space.linear)

    def find_symbol(self, name: str) -> int | None:
        """Address of a symbol by VMCOREINFO, kallsyms or the user's vmlinux; None when none of them knows it."""
        info = self.kernel.vmcoreinfo
        found = info.symbol(name) if info is not None else None
        if found is None:
            found = self.kallsyms.address(name)
        if found is None and self.debug_symbols is not None:  # data has no symbols without CONFIG_KALLSYMS_ALL
            found = self.debug_symbols.address(name)
        return found

    def symbol(self, name: str) -> int:
        """Like `find_symbol`; ViewError when there is none."""
        found = self.find_symbol(name)
        if found is None:
            raise ViewError(f"the kernel's table has no symbol {name}", hint="-o vmlinux=FILE supplies symbols")
        return found

    @property
    def banner(self) -> bytes:
        """The line of /proc/version: at its symbol, else where the kernel image holds one of this release."""
        return self._once("banner", self._find_banner)

    def _find_banner(self) -> bytes:
        try:
            symbol = self.find_symbol("linux_banner")
        except DumpfsError:
            symbol = None
        if symbol is not None:
            return read_version(self.space, symbol)
        return find_version(self.space, self.image_ranges, self.kernel.release)

    def read_config(self) -> bytes:
        """The kernel's configuration; errors as `ikconfig.read_config`."""
        try:
            symbol = self.find_symbol("kernel_config_data")
            has_constants = self.find_symbol("linux_banner") is not None
        except DumpfsError:
            symbol, has_constants = None, False  # without symbols it is searched for
        if symbol is None and has_constants:
            raise ViewError("no configuration in the kernel: it was built without CONFIG_IKCONFIG")
        return read_config(self.space, self.image_ranges, symbol)

    # -- types

    @property
    def types(self) -> Types:
        """Its structures."""
        return self._once("types", self._find_types)

    def _find_types(self) -> Types:
        try:
            return Types(Btf(self.read_btf(), self.kernel.word_size))
        except DumpfsError as exc:
            if self._debug is None:
                raise ViewError(f"its structures are unknown: {exc}", hint="-o vmlinux=FILE supplies them") from exc
            return self.debug_types()

    def debug_types(self) -> Types:
        """Structures by the user's vmlinux.

        Raises:
            DumpfsError: there is none, or it does not tell.
        """
        if self._debug is None:
            raise ViewError("its structures are unknown", hint="-o vmlinux=FILE supplies them")
        return Types(self._debug.read_types(self.kernel.word_size))

    def read_btf(self) -> bytes:
        """The raw BTF of the kernel itself, as /sys/kernel/btf/vmlinux has it."""
        start, stop = self.find_symbol("__start_BTF"), self.find_symbol("__stop_BTF")
        if start is None or stop is None:
            return self._once("btf", lambda: find_btf(self.space, self.image_ranges))
        if not 0 < stop - start <= MAX_BTF:
            raise ViewError(f"BTF of {stop - start} bytes cannot be")
        return self.space.read(start, stop - start)

    # -- modules

    @property
    def modules(self) -> tuple[Module, ...]:
        """The loaded modules."""
        return self._once(
            "modules", lambda: read_modules(self.space, self.types, self.symbol("modules"), self.problems)
        )

    # -- processors

    @property
    def cpus(self) -> tuple[int, ...]:
        """Numbers of the processors that were present; as many as left notes when the kernel's own mask is unknown."""
        return self._once("cpus", self._find_cpus)

    def _find_cpus(self) -> tuple[int, ...]:
        try:
            return read_cpus(self)
        except DumpfsError as exc:
            note_problem(self.problems, f"processors: numbered by their notes: {exc}")
            return tuple(range(len(prstatus_notes(self))))

    def percpu(self, vaddr: int, cpu: int) -> int:
        """Address of processor `cpu`'s copy of the per-CPU variable whose symbol is at `vaddr`."""
        offsets = self.find_symbol("__per_cpu_offset")
        if offsets is None:
            return vaddr
        mask = (1 << 8 * self.space.word_size) - 1
        return vaddr + self.space.read_word(offsets + cpu * self.space.word_size) & mask

    def _of_runqueue(self, member: str) -> dict[int, int]:
        """Processor to a pointer in its run queue; processors that cannot be read are left out."""
        queues, offset = self.symbol("runqueues"), self.types.offset("rq", member)
        found = {}
        for cpu in self.cpus:
            try:
                pointer = self.space.read_word(self.percpu(queues, cpu) + offset)
            except DumpfsError as exc:
                note_problem(self.problems, f"processor {cpu}: no run queue: {exc}")
                continue
            if pointer:
                found[cpu] = pointer
        return found

    @property
    def processor_notes(self) -> SavedRegisters:
        """What the processors' notes say, in the dump and in memory."""
        return self._once("processor_notes", lambda: find_registers(self))

    def prstatus(self, cpu: int) -> bytes | None:
        """Descriptor of the NT_PRSTATUS note of a processor, or None when there is none; see `find_registers`."""
        return self.processor_notes.notes.get(cpu)

    def cpu_registers(self, cpu: int) -> dict[str, int] | None:
        """Registers of a processor by the names of its architecture, or None when the dump does not have them."""
        desc, arch = self.prstatus(cpu), self.kernel.arch
        if desc is None or arch is None:
            return None
        if why := arch.prstatus.why_torn(desc):
            note_problem(self.problems, f"processor {cpu}: registers unknown: {why}")
            return None
        return arch.prstatus.parse_registers(desc, self.kernel.image.meta.byteorder)

    # -- tasks

    @property
    def task_reader(self) -> TaskReader:
        """Reads task_structs."""
        return self._once("task_reader", lambda: TaskReader(self.space, self.types, self.problems))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task, idle ones first."""
        return self._once("tasks", self._read_tasks)

    def _read_tasks(self) -> tuple[Task, ...]:
        init_task = self.find_symbol("init_task")
        if init_task is None:
            init_task = find_init_task(self.space, self.types, self.image_ranges)
        idle: dict[int, int] = {}
        running: dict[int, int] = {}
        try:
            idle = self._of_runqueue("idle")
            running = {vaddr: cpu for cpu, vaddr in self._of_runqueue("curr").items()}
        except DumpfsError as exc:
            note_problem(self.problems, f"idle tasks of all processors but the first: {exc}")
            return read_tasks(self.task_reader, init_task, idle, None)
        return read_tasks(self.task_reader, init_task, idle, running)

    @property
    def processes(self) -> dict[int, list[Task]]:
        """Process id to its threads, leader first; the idle tasks are not among them."""
        return self._once("processes", lambda: processes(self.tasks))

    def need_task(self, tid: int) -> Task:
        """The task with a thread id, or ViewError."""
        by_tid: dict[int, Task] = self._once("by_tid", lambda: {task.pid: task for task in reversed(self.tasks)})
        task = by_tid.get(tid)
        if task is None:
            raise ViewError(f"there is no task {tid}")
        return task

    def need_running(self, cpu: int) -> Task:
        """The task that a processor ran, or ViewError."""
        found = next((task for task in self.tasks if task.running and task.cpu == cpu), None)
        if found is None:
            raise ViewError(f"it is unknown what processor {cpu} ran")
        return found

    def registers(self, task: Task) -> dict[str, int]:
        """Registers of a task: its processor's when it was running, else those saved at its last switch.

        Raises:
            DumpfsError: they are not in the dump.
        """
        if task.running:
            found = self.cpu_registers(task.cpu)
            if found is None:
                raise ViewError(f"the dump has no registers of processor {task.cpu}, which ran this task")
            return found
        return saved_registers(self.task_reader, task, self.kernel.machine)

    # -- code and stacks

    @property
    def code(self) -> KernelCode:
        """Symbols and unwind tables of everything that can run."""
        return self._once("code", self._make_code)

    def _make_code(self) -> KernelCode:
        return KernelCode(self, self._known.get("orc"))

    @property
    def stack_reader(self) -> StackReader:
        """Walks kernel stacks."""
        return self._once("stack_reader", self._make_stack_reader)

    def _make_stack_reader(self) -> StackReader:
        info = self.kernel.vmcoreinfo
        mask = info.number("KERNELPACMASK") if info is not None else None
        try:
            types: Types | None = self.types
        except DumpfsError:
            types = None
        code = self.code
        machine = self.kernel.machine
        orc = machine == "x86_64" and code.has_orc
        return StackReader(self.space, types, code, machine, orc, (mask or 0) & (1 << 64) - 1)

    @property
    def stack_size(self) -> int:
        """Bytes of a task's kernel stack."""
        try:
            size = self.types.size("thread_union")
        except DumpfsError:
            return DEFAULT_STACK_SIZE
        return size if 0 < size <= MAX_STACK_SIZE else DEFAULT_STACK_SIZE

    def stack(self, task: Task) -> Stack:
        """The kernel stack of a task.

        Raises:
            DumpfsError: its registers are not in the dump.
        """
        bounds = (task.stack, self.stack_size) if task.stack else None
        return self.stack_reader.walk(self.registers(task), bounds, running=task.running)
