"""Everything that a tree has, looked at; what a file system may not do is remembered as a problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dumpfs.cli.info import gather_facts
from dumpfs.cli.render import render_facts
from dumpfs.errors import DumpfsError
from dumpfs.vfs.context import Dump, OpenOptions
from dumpfs.vfs.node import DirNode, FileNode, Node

_WHOLE = 4 << 20
"""Bytes up to which a file is read from one end to the other."""
_ENTRIES = 3000
"""Of a directory, to list."""
_JSON = ("info.json", "gdb/modules.json")
_ESCAPED = ("README", "status", "modules", "version", "cmdline", "memmap", "kallsyms", "info.json")
"""Texts that a terminal may be given as they are."""


class Walk:
    """Looks at all of one dump.

    Args:
        paths: its files.
        options: fields of `OpenOptions`.
    """

    def __init__(self, paths: Sequence[str], options: Mapping[str, object]) -> None:
        self.problems: list[str] = []
        self.stage = "open"
        """What is being looked at."""
        self._paths = paths
        self._options = OpenOptions(**options)  # type: ignore[arg-type]

    def everything(self, branches: int = 6) -> None:
        """Open, look, close.

        Args:
            branches: members of each directory to look into.

        Raises:
            DumpfsError: the dump cannot be opened.
        """
        with Dump.open(self._paths, self._options) as dump:
            self.stage = "info"
            text = render_facts(gather_facts(dump))
            self._must_be_printable("info", text)
            if dump.memory_size < 0:
                self.problems.append("negative size of memory")
            for path in dump.tree.paths[1:]:
                self.stage = path
                node = dump.tree.at(path)
                if isinstance(node, DirNode):
                    self._directory(path, node, 2 * branches if path == "tasks" else branches)
                elif isinstance(node, FileNode):
                    self._file(path, node)

    def _must_be_printable(self, where: str, text: str, also: str = "\n") -> None:
        bad = next((c for c in text if not c.isprintable() and c not in also), None)
        if bad is not None:
            self.problems.append(f"{where} holds {bad!r}")

    def _file(self, path: str, node: FileNode) -> None:
        self.stage = path
        try:
            node.check_open()
            size = node.size()
            node.stored_bytes()
            node.xattrs()
            if not 0 <= size < 1 << 63:
                self.problems.append(f"{path}: size {size}")
            elif size <= _WHOLE:
                self._whole(path, node, size)
            else:
                self._spots(path, node, size)
        except DumpfsError as exc:
            self._must_be_printable(f"the error of {path}", str(exc), "")

    def _whole(self, path: str, node: FileNode, size: int) -> None:
        pieces, got = [], 0
        while piece := node.read(got, 1 << 17):
            pieces.append(piece)
            got += len(piece)
            if got > size + _WHOLE:
                break
        if got != size and not node.volatile:
            self.problems.append(f"{path}: {size} bytes, of which {got} can be read")
        if path in _JSON or path in _ESCAPED:
            self._text(path, b"".join(pieces))

    def _text(self, path: str, content: bytes) -> None:
        try:
            text = content.decode()
            if path in _JSON:
                json.loads(text, parse_constant=_refuse)
        except ValueError as exc:
            self.problems.append(f"{path}: {exc!r}")
        else:
            self._must_be_printable(path, text, "\n\t")

    def _spots(self, path: str, node: FileNode, size: int) -> None:
        for offset in (0, size // 3, size // 2, max(size - 70000, 0), size, size + 5):
            try:
                data = node.read(offset, 1 << 16)
            except DumpfsError:
                continue
            if len(data) != max(min(size - offset, 1 << 16), 0):
                self.problems.append(f"{path}: {len(data)} bytes at {offset} of {size}")

    def _directory(self, path: str, node: DirNode, branches: int) -> None:
        try:
            last = 0
            for count, (cookie, name, _) in enumerate(node.entries(0)):
                text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
                if cookie <= last:
                    self.problems.append(f"{path}: cookie {cookie} after {last}")
                last = cookie
                self._name(path, text)
                if count < branches:
                    self._entry(f"{path}/{text}", node.lookup(text))
                if count == _ENTRIES:
                    break
            node.subdirectories()
        except DumpfsError:
            return

    def _entry(self, path: str, child: Node | None) -> None:
        self.stage = path
        if isinstance(child, DirNode):
            self._directory(path, child, 6)
        elif isinstance(child, FileNode):
            self._file(path, child)
        else:
            self.problems.append(f"{path} is listed and cannot be looked up")

    def _name(self, path: str, name: str) -> None:
        if name in ("", ".", "..") or "/" in name or len(name.encode("utf-8", "surrogateescape")) > 255:
            self.problems.append(f"{path}: an entry is called {name!r}")
        self._must_be_printable(f"a name in {path}", name, "")


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
