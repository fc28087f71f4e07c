"""/gdbinit: a script that makes gdb ready for this dump.

The script is in `dumpfs/vfs/gdb`; what it needs to know of the dump is put into it as JSON. The server does not know
where it is mounted, so the script finds that out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from dumpfs import __version__
from dumpfs.arch.walk import PageTables
from dumpfs.elf.core_notes import FIRST_MADE_PID
from dumpfs.errors import DumpfsError
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.module_sections import module_build_id, module_sections
from dumpfs.linux.modules import Module
from dumpfs.linux.tasks import Task
from dumpfs.vfs.node import Node
from dumpfs.vfs.views.inside import InsideBuiltFile, InsideFile, preparer

_ARCHITECTURES: Mapping[str, str] = {
    "x86_64": "i386:x86-64",
    "i686": "i386",
    "aarch64": "aarch64",
    "arm": "arm",
    "ppc64": "powerpc:common64",
    "s390x": "s390:64-bit",
    "riscv64": "riscv:rv64",
}
"""uname -m to gdb's name."""
_LANDMARKS = ("_stext", "_text", "linux_banner", "init_task")
"""Symbols by which to tell how far a vmlinux lies from where the kernel ran, surest first."""
_PER_CPU = "__per_cpu_start"
"""Begin of the per-CPU variables; at 0 they are offsets, which KASLR does not move."""
_NO_CPU = 0xFFFFFFFF
_EXAMPLE = "/mnt"
_T = TypeVar("_T")


def _part(name: str) -> str:
    return (Path(__file__).parent.parent / "gdb" / name).read_text(encoding="utf-8").rstrip("\n")


# Read with this module, so that a mount goes on through an upgrade of the package.
_TEMPLATE = _part("gdbinit.in") + "\n"
_SCRIPT = {"SESSION": _part("session.py.in"), "COMMANDS": _part("commands.py.in")}


@dataclass(slots=True)
class GdbinitFile(InsideFile):
    """The script with the facts of this dump."""

    ABOUT: ClassVar[str] = (
        "makes gdb ready for this dump: `gdb -x gdbinit [VMLINUX]` loads the symbols where the kernel ran (without"
        " VMLINUX the file vmlinux), then vmcore-tasks, and adds commands: `help dumpfs` lists them. The kernel's own"
        " scripts for gdb work with it, but for lx-symbols, which would read VMLINUX anew and lose where it lay: use"
        " `dumpfs modules DIRECTORY`."
    )

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return render_gdbinit(self.inspector)

    def prepared_by(self) -> Node:
        """See `Node.prepared_by`: itself, for it takes less than what all views of the kernel's inside need.

        Where memory must be searched for VMCOREINFO, that is what takes long, and is done for all views at once.
        """
        kernel = self.dump.kernel
        return preparer(self, self.dump) if kernel is None or kernel.vmcoreinfo is None or kernel.doubt else self

    def build(self) -> bytes | None:
        """See `Node.build`."""
        return bytes(self._bytes())

    def adopt(self, data: memoryview | bytes) -> None:
        """See `Node.adopt`."""
        self.content = data

    def wanted_next(self) -> Sequence[Node]:
        """See `Node.wanted_next`: what the script has gdb load."""
        return self._offered("vmcore-tasks")

    def wanted_perhaps(self) -> Sequence[Node]:
        """See `Node.wanted_perhaps`: the first beside a vmlinux, the second in its place."""
        return self._offered("gdb/extra.symbols", "vmlinux")

    def _offered(self, *paths: str) -> Sequence[Node]:
        return [node for path in paths if (node := self.dump.tree.at(path)) is not None]


@dataclass(slots=True)
class ModulesJson(InsideBuiltFile):
    """What the script needs to know to place modules' files; made apart, for it is dear."""

    ABOUT: ClassVar[str] = "where the sections of the modules lay, for gdbinit: name, base, bytes, build-id, sections."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return json.dumps(collect_modules(self.inspector)).encode() + b"\n"


def render_gdbinit(inspector: Inspector) -> bytes:
    """The text of the script."""
    kernel = inspector.kernel
    values = _SCRIPT | {
        "EXAMPLE": _EXAMPLE,
        "VERSION": __version__,
        "RELEASE": _printable(kernel.release) or "unknown version",
        "OFFSET": hex(kernel.kaslr_offset or 0),
        "PERCPU": " -s .data..percpu 0" if _symbol(inspector, _PER_CPU) == 0 else "",
        "FACTS": repr(json.dumps(collect_facts(inspector), separators=(",", ":"))),
    }
    # In one pass: a dump may have a task called "@COMMANDS@".
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], _TEMPLATE).encode()


def _printable(text: str) -> str:
    """A text from the dump, fit for a comment of one line."""
    return "".join(c for c in text if c.isascii() and c.isprintable())


def collect_facts(inspector: Inspector) -> dict[str, object]:
    """What the script knows of the dump, as JSON types; what cannot be found out is empty."""
    kernel = inspector.kernel
    tasks: Sequence[Task] = _or(lambda: inspector.tasks, ())
    return {
        "release": kernel.release,
        "build_id": kernel.build_id,
        "architecture": _ARCHITECTURES.get(kernel.machine),
        "landmarks": [[name, address] for name in _LANDMARKS if (address := _symbol(inspector, name)) is not None],
        "fixed": [[_PER_CPU, 0]] if _symbol(inspector, _PER_CPU) == 0 else [],
        "page_size": kernel.page_size,
        "linear": [[rule.vaddr, rule.size, rule.paddr] for rule in kernel.space.linear] if kernel.space else [],
        "page_tables": _page_tables(inspector),
        "made_pid": FIRST_MADE_PID,
        "tasks": [[thread_number(task), task.comm, task.state, task.cpu] for task in tasks],
        "panic_thread": _panic_thread(inspector, tasks),
    }


def thread_number(task: Task) -> int:
    """pr_pid of a task in /vmcore-tasks; idle tasks, all with pid 0, have one by their processor."""
    return task.pid or FIRST_MADE_PID + task.cpu


def _or(find: Callable[[], _T], otherwise: _T) -> _T:
    """What `find` returns, or `otherwise` where the dump does not tell; the file has its uses all the same."""
    try:
        return find()
    except DumpfsError:
        return otherwise


def _symbol(inspector: Inspector, name: str) -> int | None:
    return _or(lambda: inspector.find_symbol(name), None)


def _page_tables(inspector: Inspector) -> list[object] | None:
    """Root, base of the address range, and the levels, as `arch.walk.PageTables` has them."""
    space = inspector.kernel.space
    if space is None or not isinstance(space.tables, PageTables):
        return None
    tables = space.tables
    return [tables.root, tables.first, tables.byteorder, [list(level) for level in tables.levels]]


def _panic_thread(inspector: Inspector, tasks: Sequence[Task]) -> int | None:
    """Number of the thread that panicked, by the processor that the kernel remembers."""
    for name in ("panic_cpu", "crashing_cpu"):
        address = _symbol(inspector, name)
        if address is None:
            continue
        cpu = _or(lambda vaddr=address: inspector.space.read_u32(vaddr), _NO_CPU)  # type: ignore[misc]
        found = next((task for task in tasks if task.running and task.cpu == cpu), None)
        if found is not None:
            return thread_number(found)
    return None


def collect_modules(inspector: Inspector) -> list[list[object]]:
    """Name, base address, bytes, build-id in hex, and [section, address] pairs of each module."""
    rows: list[list[object]] = []
    modules: Sequence[Module] = _or(lambda: inspector.modules, ())
    for module in modules:
        space, types = inspector.space, inspector.types
        sections: dict[str, int] = {}
        try:
            sections = module_sections(space, types, module)
            build_id = module_build_id(space, types, module, sections)
        except DumpfsError:
            build_id = ""  # the base will do for functions
        rows.append([module.name, module.base, module.size, build_id, sorted(sections.items())])
    return rows
