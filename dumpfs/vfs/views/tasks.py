"""/tasks: a directory for each process and each of its threads, with procfs's names and formats.

An inode's index in this space is `tid << 6 | number`: 0 is /tasks/PID, 1 on its files, 32 /tasks/PID/task, 33
/tasks/PID/task/TID and 34 on its files. Both a process and its first thread have the same tid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from dumpfs.errors import DumpfsError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import DirNode, Entry, Node, make_ino
from dumpfs.vfs.views.inside import InsideFile, preparer

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector
    from dumpfs.linux.tasks import Task

SPACE = 3
_SHIFT = 6
_PROCESS, _THREADS, _THREAD = 0, 32, 33

_Render = Callable[["Inspector", "Task"], bytes]


def _procfs(name: str) -> _Render:
    """A function of a module that is loaded when somebody looks into a task: the root is listed without it."""

    def render(inspector: Inspector, task: Task) -> bytes:
        function: _Render = getattr(import_module("dumpfs.linux.procfs"), name)
        return function(inspector, task)

    return render


def _registers(inspector: Inspector, task: Task) -> bytes:
    from dumpfs.linux.procfs import render_registers

    return render_registers(inspector.registers(task), inspector.kernel.word_size)


def _status(inspector: Inspector, task: Task) -> bytes:
    from dumpfs.linux.procfs import render_status

    threads = inspector.processes.get(task.tgid, ())
    return render_status(inspector, task, len(threads))


def _comm(_: Inspector, task: Task) -> bytes:
    from dumpfs.linux.procfs import render_comm

    return render_comm(task)


FILES: Mapping[str, _Render] = {
    "cmdline": _procfs("read_task_cmdline"),
    "comm": _comm,
    "maps": _procfs("render_maps"),
    "registers": _registers,
    "stack": _procfs("render_stack"),
    "status": _status,
}
"""Name of a file to what renders it; a file's number is its place here. New ones go to the end."""
_NAMES = tuple(FILES)


def _has_record(inspector: Inspector, task: Task) -> None:
    inspector.task_reader.record(task.vaddr)


def _has_registers(inspector: Inspector, task: Task) -> None:
    inspector.registers(task)


_CHECKS: Mapping[str, Callable[[Inspector, Task], object]] = {
    "cmdline": _procfs("check_task_cmdline"),
    "maps": _procfs("check_maps"),
    "registers": _has_registers,
    "stack": _has_registers,
    "status": _has_record,
}
"""Name of a file to what raises the reason why it cannot be rendered; much quicker than to render it."""
_LOOKED_AT = 256
"""Tasks of which `/status` tells what they lack."""


def _offered(inspector: Inspector, tid: int) -> Mapping[str, DumpfsError | None]:
    """The files of a task, each with the reason why it is not there, or None."""
    found: dict[str, DumpfsError | None] = dict.fromkeys(_NAMES)
    for name, check in _CHECKS.items():
        try:
            check(inspector, inspector.need_task(tid))
        except DumpfsError as exc:
            found[name] = exc
    return found


def find_lacking(inspector: Inspector) -> Mapping[str, str]:
    """What tasks lack of their files, by 'tasks/*/NAME', in a sentence; of the first few hundred tasks."""
    tids = sorted(inspector.processes)[:_LOOKED_AT]
    reasons: dict[str, list[str]] = {}
    for tid in tids:
        for name, error in _offered(inspector, tid).items():
            if error is not None:
                reasons.setdefault(name, []).append(f"{error.message} (tasks/{tid})")
    looked = f"{len(tids)} processes" if len(tids) == len(inspector.processes) else f"the first {len(tids)} processes"
    return {
        f"tasks/*/{name}": f"not of {len(found)} of {looked}: {found[0]}{', ...' if len(found) > 1 else ''}"
        for name, found in reasons.items()
    }


@dataclass(slots=True)
class TaskFile(InsideFile):
    """One file of a task."""

    tid: int
    name: str

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return self.dump.inspection.text(
            self.ino, lambda inspector: FILES[self.name](inspector, inspector.need_task(self.tid))
        )


@dataclass(slots=True)
class InsideDir(DirNode):
    """A directory that is listed from what one helper process finds out for all."""

    INSIDE: ClassVar[bool] = True

    dump: Dump

    @property
    def ready(self) -> bool:
        """See `Node.ready`."""
        return self.dump.inspection.ready

    def prepared_by(self) -> Node:
        """See `Node.prepared_by`."""
        return preparer(self, self.dump)

    def build(self) -> bytes | None:
        """See `Node.build`."""
        return self.dump.inspection.build()

    def adopt(self, data: memoryview | bytes) -> None:
        """See `Node.adopt`."""
        self.dump.inspection.adopt(data)


@dataclass(slots=True)
class TaskDir(InsideDir):
    """The directory of a process or of a thread."""

    tid: int
    thread: bool

    @property
    def _base(self) -> int:
        return _THREAD if self.thread else _PROCESS

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        if name in FILES:
            return _node(self.dump, self.tid, self._base + 1 + _NAMES.index(name))
        return _node(self.dump, self.tid, _THREADS) if name == "task" and not self.thread else None

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a file that cannot be read is not listed, but can be looked up, and says why."""
        names = _NAMES if self.thread else (*_NAMES, "task")
        lacking = _offered(self.dump.inspection.inspector, self.tid)
        for position, name in enumerate(names, 1):
            node = self.lookup(name) if position > cookie and lacking.get(name) is None else None
            if node is not None:
                yield position, name, node

    def subdirectories(self) -> int:
        """See `DirNode.subdirectories`."""
        return 0 if self.thread else 1


@dataclass(slots=True)
class ThreadsDir(InsideDir):
    """/tasks/PID/task."""

    tid: int

    def _threads(self) -> list[int]:
        return sorted({task.pid for task in self.dump.inspection.inspector.processes.get(self.tid, ())})

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        tid = _parse_pid(name)
        return _node(self.dump, tid, _THREAD) if tid is not None and tid in self._threads() else None

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a cookie is the tid + 1."""
        for tid in self._threads():
            if tid + 1 > cookie:
                yield tid + 1, str(tid), _node(self.dump, tid, _THREAD)

    def subdirectories(self) -> int:
        """See `DirNode.subdirectories`."""
        return len(self._threads()) if self.ready else 0


@dataclass(slots=True)
class TasksDir(InsideDir):
    """The directory of processes."""

    ABOUT: ClassVar[str] = (
        "one directory per process, threads below task/, with comm, status, cmdline, maps, stack as in /proc and the"
        " saved registers. The last line of stack says how it was found."
    )

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return dump.inspection.missing()

    def prepared_by(self) -> Node:
        """See `Node.prepared_by`."""
        return self

    def _processes(self) -> Mapping[int, list[Task]]:
        return self.dump.inspection.inspector.processes

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        pid = _parse_pid(name)
        return _node(self.dump, pid, _PROCESS) if pid is not None and pid in self._processes() else None

    def member(self, ino: int, index: int) -> Node:
        """See `tree.MemberDir`."""
        tid, number = index >> _SHIFT, index & (1 << _SHIFT) - 1
        return _node(self.dump, tid, number)

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a cookie is the pid + 1."""
        for pid in sorted(self._processes()):
            if pid + 1 > cookie:
                yield pid + 1, str(pid), _node(self.dump, pid, _PROCESS)

    def subdirectories(self) -> int:
        """See `DirNode.subdirectories`."""
        try:
            return len(self._processes()) if self.ready else 0
        except DumpfsError:
            return 0  # listing it will say why

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _ = dump.inspection.inspector.processes

    @classmethod
    def find_lacking(cls, dump: Dump) -> Mapping[str, str]:
        """See `Node.find_lacking`."""
        return find_lacking(dump.inspection.inspector)


def _node(dump: Dump, tid: int, number: int) -> Node:
    ino = make_ino(SPACE, tid << _SHIFT | number)
    if number == _THREADS:
        return ThreadsDir(ino, dump, tid)
    thread = number >= _THREAD
    place = number - (_THREAD if thread else _PROCESS)
    if not place:
        return TaskDir(ino, dump, tid, thread)
    if place > len(_NAMES):
        raise LookupError(f"no inode {ino:#x}")
    return TaskFile(ino, dump, tid, _NAMES[place - 1])


def _parse_pid(name: str) -> int | None:
    """The pid that a file name stands for: decimal without leading zeros."""
    if not name.isascii() or not name.isdigit() or len(name) > 10 or name[0] == "0":
        return None
    pid = int(name)
    from dumpfs.linux.tasks import PID_MAX_LIMIT

    return pid if pid <= PID_MAX_LIMIT else None
