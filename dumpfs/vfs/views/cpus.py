"""/cpus: a directory for each processor.

An inode's index in this space is `processor << 4 | number`: 0 is the directory, 1 on its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumpfs.errors import ViewError
from dumpfs.units import one_line
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import DirNode, Entry, Node, make_ino
from dumpfs.vfs.views.inside import InsideFile
from dumpfs.vfs.views.tasks import InsideDir

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector

SPACE = 2
_SHIFT = 4


def _prstatus(inspector: Inspector, cpu: int) -> bytes:
    desc = inspector.prstatus(cpu)
    if desc is None:
        raise ViewError(f"the dump has no registers of processor {cpu}")
    return desc


def _registers(inspector: Inspector, cpu: int) -> bytes:
    from dumpfs.linux.procfs import render_registers

    registers = inspector.cpu_registers(cpu)
    if registers is None:
        raise ViewError(f"the dump has no registers of processor {cpu}")
    return render_registers(registers, inspector.kernel.word_size)


def _stack(inspector: Inspector, cpu: int) -> bytes:
    from dumpfs.linux.procfs import render_stack

    return render_stack(inspector, inspector.need_running(cpu))


def _task(inspector: Inspector, cpu: int) -> bytes:
    task = inspector.need_running(cpu)
    return f"{task.pid} ({one_line(task.comm)})\n".encode()


FILES: Mapping[str, Callable[[Inspector, int], bytes]] = {
    "prstatus": _prstatus,
    "registers": _registers,
    "stack": _stack,
    "task": _task,
}
"""Name of a file to what renders it; a file's number is its place here. New ones go to the end."""
_NAMES = tuple(FILES)


@dataclass(slots=True)
class CpuFile(InsideFile):
    """One file of a processor."""

    cpu: int
    name: str

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return self.dump.inspection.text(self.ino, lambda inspector: FILES[self.name](inspector, self.cpu))


@dataclass(slots=True)
class CpuDir(DirNode):
    """The directory of a processor."""

    dump: Dump
    cpu: int

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        return _node(self.dump, self.cpu, 1 + _NAMES.index(name)) if name in FILES else None

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`."""
        for position in range(cookie + 1, len(_NAMES) + 1):
            yield position, _NAMES[position - 1], _node(self.dump, self.cpu, position)


@dataclass(slots=True)
class CpusDir(InsideDir):
    """The directory of processors."""

    ABOUT: ClassVar[str] = (
        "one directory per processor: its registers as text and as the raw NT_PRSTATUS, the task it ran, and its stack."
    )

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return dump.inspection.missing()

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        if not name.isascii() or not name.isdigit() or len(name) > 6 or (name[0] == "0" and name != "0"):
            return None
        cpu = int(name)
        return _node(self.dump, cpu, 0) if cpu in self.dump.inspection.inspector.cpus else None

    def member(self, ino: int, index: int) -> Node:
        """See `tree.MemberDir`."""
        return _node(self.dump, index >> _SHIFT, index & (1 << _SHIFT) - 1)

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a cookie is the processor's number + 1."""
        for cpu in self.dump.inspection.inspector.cpus:
            if cpu + 1 > cookie:
                yield cpu + 1, str(cpu), _node(self.dump, cpu, 0)

    def subdirectories(self) -> int:
        """See `DirNode.subdirectories`."""
        return len(self.dump.inspection.inspector.cpus) if self.ready else 0


def _node(dump: Dump, cpu: int, number: int) -> Node:
    from dumpfs.linux.inspect import MAX_CPUS

    if cpu >= MAX_CPUS or number > len(_NAMES):
        raise LookupError(f"no processor {cpu} or no file {number} of it")
    ino = make_ino(SPACE, cpu << _SHIFT | number)
    return CpuFile(ino, dump, cpu, _NAMES[number - 1]) if number else CpuDir(ino, dump, cpu)
