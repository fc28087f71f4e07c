"""The tree of files that a dump is.

A new view is one file in `dumpfs/vfs/views` and one row in `ROWS`; its module is imported when somebody looks at it.
The fixed tree has inode numbers of space 0, in the order of `_paths`; a view with members of its own (/pages) has a
space of its own, in which it makes nodes from the index alone. Any thread may use a tree.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from dumpfs.errors import DumpfsError, explain
from dumpfs.vfs.node import INDEX_BITS, ROOT_INO, DirNode, Entry, FileNode, Node, make_ino

if TYPE_CHECKING:
    from dumpfs.vfs.context import Dump


class ViewClass(Protocol):
    """What the class of a row offers; instances are nodes."""

    ABOUT: ClassVar[str]
    """What the file is, for /README; sentences, without a line break."""

    def __call__(self, ino: int, dump: Dump) -> Node:
        """The node; cheap."""

    def missing(self, dump: Dump) -> str | None:
        """Why this dump cannot offer the view, or None; cheap, and asked before anything of the kernel is known."""

    def probe(self, dump: Dump) -> None:
        """See `Node.probe`."""

    def find_lacking(self, dump: Dump) -> Mapping[str, str]:
        """See `Node.find_lacking`."""


class MemberDir(Protocol):
    """A directory with an inode space of its own."""

    def member(self, ino: int, index: int) -> Node:
        """The node with that index in the space; LookupError when there is none."""


class Row(NamedTuple):
    """One view."""

    path: str
    """Where it is, below the root, with at most one slash."""
    target: str
    """Module in `dumpfs.vfs.views` and class: 'hmem:HmemFile'."""
    space: int = 0
    """Number of its own inode space, for a directory that makes its members itself."""


ROWS: tuple[Row, ...] = (
    Row("README", "readme:ReadmeFile"),
    Row("bitmaps/ram", "bitmaps:RamBitmap"),
    Row("bitmaps/stored", "bitmaps:StoredBitmap"),
    Row("btf", "btf:BtfFile"),
    Row("cmdline", "cmdline:CmdlineFile"),
    Row("config", "config:ConfigFile"),
    Row("cpus", "cpus:CpusDir", space=2),
    Row("dmesg", "dmesg:DmesgFile"),
    Row("eraseinfo", "eraseinfo:EraseinfoFile"),
    Row("gdb/extra.symbols", "vmlinux:ExtraSymbolsFile"),
    Row("gdb/modules.json", "gdbinit:ModulesJson"),
    Row("gdbinit", "gdbinit:GdbinitFile"),
    Row("hmem", "hmem:HmemFile"),
    Row("info.json", "info:InfoFile"),
    Row("kallsyms", "kallsyms:KallsymsFile"),
    Row("memmap", "memmap:MemmapFile"),
    Row("modules", "modules:ModulesFile"),
    Row("pages", "pages:PagesDir", space=1),
    Row("status", "status:StatusFile"),
    Row("tasks", "tasks:TasksDir", space=3),
    Row("version", "version:VersionFile"),
    Row("vmcore", "vmcore:VmcoreFile"),
    Row("vmcore-kern", "vmcore_kern:VmcoreKernFile"),
    Row("vmcore-tasks", "vmcore_tasks:VmcoreTasksFile"),
    Row("vmcoreinfo", "vmcoreinfo:VmcoreinfoFile"),
    Row("vmlinux", "vmlinux:VmlinuxFile"),
)


_LOG = logging.getLogger("dumpfs")

_DECIDES = "tasks"
"""The view whose building finds out about the kernel's inside, for all others, and which of them there are."""


@dataclass(slots=True)
class FixedDir(DirNode):
    """The root, or a directory that only groups rows."""

    tree: Tree
    path: str
    """'' for the root."""

    def _children(self, *, files: bool = True) -> Iterator[tuple[int, str, Node]]:
        prefix = f"{self.path}/" if self.path else ""
        for position, path in enumerate(self.tree.paths[1:], 1):
            if path.startswith(prefix) and "/" not in path[len(prefix) :] and (files or self.tree.is_directory(path)):
                node = self.tree.at(path)
                if node is not None:
                    yield position, path[len(prefix) :], node

    def lookup(self, name: str) -> Node | None:
        """See `DirNode.lookup`."""
        if not name or "/" in name:
            return None
        return self.tree.at(f"{self.path}/{name}" if self.path else name)

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; a cookie is the row's position in the table."""
        return (entry for entry in self._children() if entry[0] > cookie)

    def subdirectories(self) -> int:
        """See `DirNode.subdirectories`."""
        return sum(1 for _, _, node in self._children(files=False) if isinstance(node, DirNode))

    def decided_by(self) -> Node | None:
        """See `Node.decided_by`."""
        return self.tree.decided_by()

    @property
    def patient(self) -> bool:
        """See `Node.patient`."""
        return self.tree.dump.inspection.is_quick

    def decide(self, failures: Mapping[int, str]) -> None:
        """See `Node.decide`."""
        self.tree.decide(failures)


class Tree:
    """The files of one dump.

    Args:
        dump: the dump.
        rows: the table of views.
    """

    def __init__(self, dump: Dump, rows: tuple[Row, ...] = ROWS) -> None:
        self.dump = dump
        self._rows = {row.path: row for row in rows}
        self._spaces = {row.space: row.path for row in rows if row.space}
        groups = dict.fromkeys(row.path.rpartition("/")[0] for row in rows)
        self.paths = ("", *sorted({*self._rows, *groups} - {""}))
        """Every path of the fixed tree, offered or not; the position in it is the inode index less one."""
        self._inos = {path: make_ino(0, ROOT_INO + i) for i, path in enumerate(self.paths)}
        self._nodes: dict[str, Node | None] = {}
        self._reasons: dict[str, str] = {}
        self._absent: dict[str, str] = {}
        self._decided = False
        self.root = FixedDir(ROOT_INO, self, "")
        self._nodes[""] = self.root

    @property
    def times_ns(self) -> int:
        """Time stamp of every file, nanoseconds since the epoch: when the machine crashed."""
        return self.dump.crash_time_ns

    def at(self, path: str) -> Node | None:
        """The node at a path of the fixed tree, or None when there is no such path or the dump does not offer it."""
        return None if path in self._absent else self.made(path)

    def made(self, path: str) -> Node | None:
        """As `at`, but also the node of a view that turned out not to be offered: it says why when it is used."""
        try:
            return self._nodes[path]
        except KeyError:
            pass
        if path not in self._inos:
            return None
        node = self._nodes[path] = self._make(path)
        return node

    # -- what the kernel's inside decides

    def decided_by(self) -> Node | None:
        """The node whose building decides which views there are; None once that is decided."""
        return None if self._decided else self.made(_DECIDES)

    def find_absent(self) -> dict[str, str]:
        """The views that the dump turns out not to offer, with the reasons; looks into the kernel, which takes long."""
        absent: dict[str, str] = {}
        for path in self._rows:
            if self.made(path) is not None:
                try:
                    self.view_class(path).probe(self.dump)
                    absent.update(self.view_class(path).find_lacking(self.dump))
                except DumpfsError as error:
                    absent[path] = explain(error)
                except Exception as error:  # noqa: BLE001 (a mistake of ours in one view must not cost all others)
                    _LOG.exception("unexpected error while looking whether there can be a %s", path)
                    absent[path] = f"unexpected {type(error).__name__}; the log tells more"
        return absent

    def settle(self, absent: Mapping[str, str]) -> None:
        """Take what `find_absent` found, here or in another process."""
        self._absent.update(absent)
        self._decided = True

    def decide(self, failures: Mapping[int, str]) -> None:
        """Leave out what could not be built, by inode number, and all that needs what could not be found out."""
        for path, ino in self._inos.items():
            if ino in failures and path in self._rows:
                self._absent.setdefault(path, failures[ino])
        if not self._decided and _DECIDES in self._absent:
            inside = [path for path in self._rows if (node := self.made(path)) is not None and node.INSIDE]
            self.settle(dict.fromkeys(inside, self._absent[_DECIDES]))

    def is_directory(self, path: str) -> bool:
        """Whether a path of the fixed tree is a directory, offered or not; loads no view."""
        row = self._rows.get(path)
        return row is None or row.space > 0

    def _make(self, path: str) -> Node | None:
        row = self._rows.get(path)
        if row is None:
            return FixedDir(self._inos[path], self, path)
        view = self.view_class(path)
        reason = view.missing(self.dump)
        if reason is not None:
            self._reasons[path] = reason
            return None
        return view(self._inos[path], self.dump)

    def view_class(self, path: str) -> ViewClass:
        """The class behind a row."""
        module, _, name = self._rows[path].target.partition(":")
        view: ViewClass = getattr(import_module(f"dumpfs.vfs.views.{module}"), name)
        return view

    def views(self) -> Iterator[tuple[str, ViewClass, str | None]]:
        """Every row in order: path, class, and None if it is offered, else the reason why not.

        By what is known at once, so that every process says the same; see also `absent`.
        """
        for path in self._rows:
            self.made(path)
            yield path, self.view_class(path), self._reasons.get(path)

    def absent(self) -> Mapping[str, str]:
        """Views that turned out not to be offered, as far as this process knows, with the reasons."""
        return self._absent

    def node(self, ino: int) -> Node:
        """The node with inode number `ino`.

        Raises:
            LookupError: no file of this tree has it.
        """
        space = ino >> INDEX_BITS
        if space:
            return self._member_dir(space).member(ino, ino & (1 << INDEX_BITS) - 1)
        index = ino - ROOT_INO
        if 0 <= index < len(self.paths):
            node = self.made(self.paths[index])
            if node is not None:
                return node
        raise LookupError(f"no inode {ino:#x}")

    def _member_dir(self, space: int) -> MemberDir:
        node = self.made(self._spaces[space])  # KeyError is a LookupError
        if node is None:
            raise LookupError(f"no inode space {space}")
        return node  # type: ignore[return-value]  # rows with a space name such classes

    def lookup_path(self, path: str) -> Node | None:
        """The node at a path such as 'pages/74565', or None; a leading slash does not matter."""
        node: Node | None = self.root
        for name in path.strip("/").split("/") if path.strip("/") else ():
            node = node.lookup(name) if isinstance(node, DirNode) else None
            if node is None:
                return None
        return node

    def files(self) -> Iterator[tuple[str, FileNode]]:
        """The offered files of the fixed tree."""
        for path in self.paths:
            node = self.at(path)
            if isinstance(node, FileNode):
                yield path, node
