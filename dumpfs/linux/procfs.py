"""The texts of /proc for a dead kernel: names, columns and words as procfs has them.

Sources: Linux fs/proc/array.c (status), fs/proc/base.c (stack, comm), Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.errors import DumpfsError
from dumpfs.linux.frozen import some_tasks
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.records import Record, read_record
from dumpfs.linux.tasks import STATE_NAMES, Task
from dumpfs.linux.types import MissingTypeError
from dumpfs.linux.unwind import describe
from dumpfs.linux.usermem import UserMemory
from dumpfs.units import one_line

_MAX_GROUPS = 1 << 16
_MAX_NAMESPACES = 32
_CAPABILITIES = (
    ("CapInh", "cap_inheritable"),
    ("CapPrm", "cap_permitted"),
    ("CapEff", "cap_effective"),
    ("CapBnd", "cap_bset"),
    ("CapAmb", "cap_ambient"),
)


def render_comm(task: Task) -> bytes:
    """/proc/PID/comm."""
    return f"{task.comm}\n".encode()


def render_registers(registers: dict[str, int], word_size: int) -> bytes:
    """One register a line: name and value; procfs has no such file."""
    width = 2 * word_size
    return "".join(f"{name:<10} 0x{value:0{width}x}\n" for name, value in registers.items()).encode()


def render_stack(inspector: Inspector, task: Task) -> bytes:
    """/proc/PID/stack, with a last line that says how it was found.

    Frames found by searching the stack are marked by '? ', as the kernel does in its own traces.

    Raises:
        DumpfsError: the task's registers are not in the dump.
    """
    stack = inspector.stack(task)
    lookup = inspector.code.lookup
    lines = [f"[<0>] {'? ' if frame.guessed else ''}{describe(frame, lookup)}\n" for frame in stack.frames]
    if not stack.frames and not stack.end:
        lines.append("# in user mode\n")
    elif stack.end:
        lines.append(f"# unwound by {stack.unwinder or 'nothing'}; {stack.end}\n")
    else:
        lines.append(f"# unwound by {stack.unwinder}\n")
    return "".join(lines).encode()


def render_maps(inspector: Inspector, task: Task) -> bytes:
    """/proc/PID/maps; empty for kernel threads.

    Raises:
        DumpfsError: the process's memory description is not in the dump.
    """
    if not task.mm:
        return b""
    problems: list[str] = []
    word_size = inspector.kernel.word_size
    lines = [area.render(word_size) for area in UserMemory(inspector, task.mm).areas(problems)]
    lines += [f"# {problem}\n" for problem in problems]
    return "".join(lines).encode()


def read_task_cmdline(inspector: Inspector, task: Task) -> bytes:
    """/proc/PID/cmdline; empty for kernel threads.

    Raises:
        DumpfsError: the arguments are not in the dump.
    """
    return UserMemory(inspector, task.mm).read_cmdline() if task.mm else b""


def check_maps(inspector: Inspector, task: Task) -> None:
    """Raise what `render_maps` would."""
    if task.mm:
        next(UserMemory(inspector, task.mm).areas([]), None)


def check_task_cmdline(inspector: Inspector, task: Task) -> None:
    """Raise what `read_task_cmdline` would; nothing of the arguments is read."""
    if task.mm:
        UserMemory(inspector, task.mm).check_cmdline()


def render_status(inspector: Inspector, task: Task, threads: int) -> bytes:
    """/proc/PID/status, those of its lines that this kernel's structures tell.

    Args:
        inspector: of the kernel.
        task: the task.
        threads: tasks of its process.

    Raises:
        DumpfsError: its task_struct cannot be read.
    """
    record = inspector.task_reader.record(task.vaddr)
    lines = [
        ("Name", one_line(task.comm.replace("\\", "\\\\"))),
        *_umask(inspector, record),
        ("State", f"{task.state} ({STATE_NAMES[task.state]})"),
        ("Tgid", f"{task.tgid}"),
        ("Ngid", f"{_numa_group(inspector, record)}"),
        ("Pid", f"{task.pid}"),
        ("PPid", f"{task.ppid}"),
        ("TracerPid", f"{_tracer(inspector, record)}"),
        *_credentials(inspector, record),
        *_namespaces(inspector, record),
        ("Kthread", f"{int(task.kernel_thread)}"),
        *_memory(inspector, task),
        ("Threads", f"{threads}"),
        *_signals(inspector, record),
        *_capabilities(inspector, record),
        *_optional(record, "Seccomp", "seccomp.mode"),
        *_optional(record, "voluntary_ctxt_switches", "nvcsw"),
        *_optional(record, "nonvoluntary_ctxt_switches", "nivcsw"),
    ]
    return "".join(f"{name}:\t{value}\n" for name, value in lines).encode()


_Lines = Iterator[tuple[str, str]]


def _optional(record: Record, label: str, path: str) -> _Lines:
    value = record.get(path)
    if value is not None:
        yield label, f"{value}"


def _umask(inspector: Inspector, record: Record) -> _Lines:
    fs = record.get("fs")
    if fs:
        try:
            yield "Umask", f"{read_record(inspector.space, inspector.types, 'fs_struct', fs).value('umask'):04o}"
        except DumpfsError:
            return  # not in the dump, and so not in the text


def _numa_group(inspector: Inspector, record: Record) -> int:
    group = record.get("numa_group")
    if not group:
        return 0
    try:
        return inspector.space.read_u32(group + inspector.types.offset("numa_group", "gid"))
    except DumpfsError:
        return 0


def _tracer(inspector: Inspector, record: Record) -> int:
    if not record.get("ptrace"):
        return 0
    try:
        return inspector.space.read_u32(record.value("parent") + inspector.types.offset("task_struct", "pid"))
    except DumpfsError:
        return 0


def _credentials(inspector: Inspector, record: Record) -> _Lines:
    space, types = inspector.space, inspector.types
    try:
        cred = read_record(space, types, "cred", record.value("real_cred"))
        yield "Uid", "\t".join(f"{cred.value(n)}" for n in ("uid", "euid", "suid", "fsuid"))
        yield "Gid", "\t".join(f"{cred.value(n)}" for n in ("gid", "egid", "sgid", "fsgid"))
        files = record.get("files")
        if files:
            table = space.read_word(files + types.offset("files_struct", "fdt"))
            yield "FDSize", f"{space.read_u32(table + types.offset('fdtable', 'max_fds'))}"
        else:
            yield "FDSize", "0"
        info = cred.get("group_info")
        if info:
            count = space.read_u32(info + types.offset("group_info", "ngroups"))
            data = space.read(info + types.offset("group_info", "gid"), 4 * min(count, _MAX_GROUPS))
            groups = [int.from_bytes(data[i : i + 4], space.byteorder) for i in range(0, len(data), 4)]
            yield "Groups", "".join(f"{group} " for group in groups) or " "
    except DumpfsError:
        return  # as far as the dump goes


def _namespaces(inspector: Inspector, record: Record) -> _Lines:
    """The ids of a task from its own pid namespace's view inwards."""
    space, types = inspector.space, inspector.types
    try:
        pid = record.get("thread_pid", "pids[0].pid")
        if not pid:
            return
        level = space.read_u32(pid + types.offset("pid", "level"))
        numbers = pid + types.offset("pid", "numbers")
        step, number = types.size("upid"), types.offset("upid", "nr")
        if level < _MAX_NAMESPACES:
            ids = [space.read_u32(numbers + step * i + number) for i in range(level + 1)]
            yield "NSpid", "\t".join(map(str, ids))
    except DumpfsError:
        return  # as far as the dump goes


def _memory(inspector: Inspector, task: Task) -> _Lines:
    if not task.mm:
        return
    try:
        mm = UserMemory(inspector, task.mm).mm
        scale = inspector.kernel.page_size // 1024
        sizes = {name: mm.get(name) for name in ("total_vm", "hiwater_vm", "locked_vm", "data_vm", "stack_vm")}
        text = mm.value("end_code") - mm.value("start_code")
        resident = [_resident(mm, kind) for kind in (1, 0, 3)]
    except DumpfsError:
        return  # as far as the dump goes
    total = sizes["total_vm"] or 0
    rows = (
        ("VmPeak", max(sizes["hiwater_vm"] or 0, total) * scale),
        ("VmSize", total * scale),
        ("VmLck", (sizes["locked_vm"] or 0) * scale),
        ("VmRSS", sum(resident) * scale),
        *((name, pages * scale) for name, pages in zip(("RssAnon", "RssFile", "RssShmem"), resident, strict=True)),
        ("VmData", (sizes["data_vm"] or 0) * scale),
        ("VmStk", (sizes["stack_vm"] or 0) * scale),
        ("VmExe", max(text, 0) // 1024),
    )
    for name, kilobytes in rows:
        yield name, f"{kilobytes:8} kB"


def _resident(mm: Record, kind: int) -> int:
    """Pages of a kind (0 file, 1 anonymous, 3 shared); what processors count by themselves (6.2 on) is left out."""
    value = mm.get(f"rss_stat.count[{kind}].counter", f"rss_stat[{kind}].count", signed=True)
    return max(value or 0, 0)


def _signals(inspector: Inspector, record: Record) -> _Lines:
    space, types = inspector.space, inspector.types
    try:
        size = types.member("task_struct", "blocked").size

        def mask(data: bytes) -> str:
            words = [data[i : i + space.word_size] for i in range(0, len(data), space.word_size)]
            value = sum(int.from_bytes(w, space.byteorder) << 8 * space.word_size * i for i, w in enumerate(words))
            return f"{value:0{2 * size}x}"

        yield "SigPnd", mask(record.raw("pending.signal"))
        signal = record.get("signal")
        if signal:
            yield "ShdPnd", mask(space.read(signal + types.offset("signal_struct", "shared_pending.signal"), size))
        yield "SigBlk", mask(record.raw("blocked"))
    except MissingTypeError:
        raise
    except DumpfsError:
        return  # as far as the dump goes


def _capabilities(inspector: Inspector, record: Record) -> _Lines:
    try:
        cred = read_record(inspector.space, inspector.types, "cred", record.value("real_cred"))
        for label, member in _CAPABILITIES:
            if inspector.types.has("cred", member):
                yield label, f"{int.from_bytes(cred.raw(member), inspector.space.byteorder):016x}"
    except DumpfsError:
        return  # as far as the dump goes


def warm_up(inspector: Inspector) -> None:
    """Render texts of a few tasks and forget them: their questions about types are then answered."""
    try:
        tasks = some_tasks(inspector)
    except DumpfsError:
        return  # there are no tasks to render; who asks for one will hear why
    for task in tasks:
        for render in (render_stack, render_maps, read_task_cmdline):
            try:
                render(inspector, task)
            except DumpfsError:
                continue  # a question about one task only
        try:
            render_status(inspector, task, 1)
        except DumpfsError:
            continue  # likewise
