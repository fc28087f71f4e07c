"""/cpus: a directory for each processor.

An inode's index in this space is `processor << 4 | number`: 0 is the directory, 1 on its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumpfs.errors import DumpfsError, ViewError, explain
from dumpfs.units import one_line
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import Entry, Node, make_ino
from dumpfs.vfs.views.inside import InsideFile
from dumpfs.vfs.views.tasks import InsideDir

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector

SPACE = 2
_SHIFT = 4
_LOOKED_AT = 256


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


def _has_registers(inspector: Inspector, cpu: int) -> None:
    if inspector.cpu_registers(cpu) is None:
        raise ViewError(f"the dump has no registers of processor {cpu}")


def _has_stack(inspector: Inspector, cpu: int) -> None:
    inspector.registers(inspector.need_running(cpu))


_CHECKS: Mapping[str, Callable[[Inspector, int], object]] = {
    "prstatus": _prstatus,
    "registers": _has_registers,
    "stack": _has_stack,
    "task": _task,
}
"""Name of a file to what raises the reason why it cannot be rendered; much quicker than to render it."""


def _offered(inspector: Inspector, cpu: int) -> Mapping[str, DumpfsError | None]:
    """The files of a processor, each with the reason why it is not there, or None."""
    found: dict[str, DumpfsError | None] = dict.fromkeys(_NAMES)
    for name, check in _CHECKS.items():
        try:
            check(inspector, cpu)
        except DumpfsError as exc:
            found[name] = exc
    return found


def find_lacking(inspector: Inspector) -> Mapping[str, str]:
    """What processors lack of their files, by 'cpus/N/NAME', with the reasons; of the first few hundred processors."""
    return {
        f"cpus/{cpu}/{name}": explain(error)
        for cpu in inspector.cpus[:_LOOKED_AT]
        for name, error in _offered(inspector, cpu).items()
        if error is not None
    }


@dataclass(slots=True)
class CpuFile(InsideFile):
    """One file of a processor."""

    cpu: int
    name: str

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return self.dump.inspection.text(self.ino, lambda inspector: FILES[self.name](inspector, self.cpu))


@dataclass(slots=True)
class CpuDir(InsideDir):
    """The directory of a processor."""

    cpu: int

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        return _node(self.dump, self.cpu, 1 + _NAMES.index(name)) if name in FILES else None

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a file that cannot be read is not listed, but can be looked up, and says why."""
        lacking = _offered(self.dump.inspection.inspector, self.cpu)
        for position, name in enumerate(_NAMES, 1):
            if position > cookie and lacking[name] is None:
                yield position, name, _node(self.dump, self.cpu, position)


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

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`."""
        _ = dump.inspection.inspector.cpus

    @classmethod
    def find_lacking(cls, dump: Dump) -> Mapping[str, str]:
        """See `Node.find_lacking`."""
        return find_lacking(dump.inspection.inspector)

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
    from dumpfs.linux.processors import MAX_CPUS

    if cpu >= MAX_CPUS or number > len(_NAMES):
        raise LookupError(f"no processor {cpu} or no file {number} of it")
    ino = make_ino(SPACE, cpu << _SHIFT | number)
    return CpuFile(ino, dump, cpu, _NAMES[number - 1]) if number else CpuDir(ino, dump, cpu)
