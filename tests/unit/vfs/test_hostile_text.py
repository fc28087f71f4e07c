"""Whatever a dead kernel calls its tasks and modules, no file that is text commands a terminal or forges a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from dumpfs.errors import DumpfsError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import DirNode, FileNode, Node

RAW = frozenset(("comm", "cmdline", "prstatus"))
"""Files of a task that are as procfs has them, bytes of a program's own, and registers."""
ONE_LINE = ("version", "cmdline", "cpus/0/task")
BINARY = frozenset(("btf", "hmem", "vmcore", "vmcore-tasks", "vmcore-kern", "vmlinux", "gdb/extra.symbols"))
DIRECTORIES = frozenset(("pages", "bitmaps"))
EVIL = (
    b"\x1b]0;PWN\x07",
    b"a\nb\r\x1b[2J",
    b"\x1b[31mred",
    b"a\xe2\x80\xaeb",
    b"\xff\xfe\x80",
    b"\xc2\x9b31mX",
    b"\\n\\\"'\x7f",
    b"\xe2\x80\x8b\xef\xb8\x8f",
)
MODULE = b"x 1 0 - Live 0x0\nfake 99 0 - Live 0xffffffffc0000000"
BANNER = b"Linux version 6.1.0\x1b]0;PWN\x07\nforged second line\n\0"
CMDLINE = b"root=\x1b[31mX\n$(id)\0"


class Forger:
    """Overwrites the kernel's memory in a copy of a dump whose pages are not compressed."""

    def __init__(self, source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        self.dump = Dump.open([str(source)])
        self.inspector = self.dump.inspection.inspector
        self._file = target.open("r+b")

    def write(self, vaddr: int, data: bytes) -> None:
        for position, byte in enumerate(data):
            paddr = self.inspector.space.translate(vaddr + position)
            page = self.dump.phys.info(paddr >> 12)
            assert page.codec == "raw"
            assert page.offset is not None
            self._file.seek(page.offset + paddr % 4096)
            self._file.write(bytes([byte]))

    def close(self) -> None:
        self._file.close()
        self.dump.close()


@pytest.fixture(scope="module")
def hostile(data, tmp_path_factory) -> Path:
    """A dump whose tasks, modules, banner and command line are full of commands for terminals."""
    target = tmp_path_factory.mktemp("hostile") / "hostile\nERROR: forged \x1b[31m.kdump"
    forger = Forger(data("mkd-raw-d31.kdump"), target)
    inspector = forger.inspector
    comm, name = (inspector.types.member(*where).offset for where in (("task_struct", "comm"), ("module", "name")))
    for number, task in enumerate(inspector.tasks):
        forger.write(task.vaddr + comm, EVIL[number % len(EVIL)][:15].ljust(16, b"\0"))
    for number, module in enumerate(inspector.modules):
        text = MODULE if not number else EVIL[number % len(EVIL)]
        forger.write(module.vaddr + name, text[:55].ljust(56, b"\0"))
    forger.write(inspector.symbol("linux_banner"), BANNER)
    forger.write(inspector.space.read_word(inspector.symbol("saved_command_line")), CMDLINE)
    forger.close()
    return target


def text_files(path: str, node: Node):
    """Every file below a node that is text, few of many of a kind."""
    if isinstance(node, FileNode):
        yield path, node
    elif isinstance(node, DirNode):
        for count, (_, name, _) in enumerate(node.entries(0)):
            where = f"{path}/{name}".lstrip("/")
            raw = "/" in path and name in RAW
            if raw or where in BINARY or where in DIRECTORIES or (path in ("tasks", "cpus") and count >= 2 * len(EVIL)):
                continue
            yield from text_files(where, node.lookup(name))


def content(node: FileNode) -> bytes:
    data = b""
    while piece := node.read(len(data), 1 << 20):
        data += piece
    return data


def attempt(node: FileNode) -> str:
    """What a reader gets, be it the reason why there is nothing."""
    try:
        return content(node).decode()
    except DumpfsError as exc:
        return str(exc)


def test_text_commands_no_terminal(hostile: Path) -> None:
    looked_at = set()
    with Dump.open([str(hostile)]) as dump:
        for path, node in text_files("", dump.tree.root):
            looked_at.add(path)
            bad = {c for c in attempt(node) if not c.isprintable() and c not in "\n\t"}
            assert not bad, f"{path} holds {bad}"
    assert {*ONE_LINE, "status", "README", "modules", "kallsyms", "tasks/1/status"} <= looked_at


def test_one_entry_is_one_line(hostile: Path) -> None:
    with Dump.open([str(hostile)]) as dump:
        texts = {path: content(dump.tree.lookup_path(path)) for path in (*ONE_LINE, "modules")}
        lines = dict.fromkeys(ONE_LINE, 1) | {"modules": len(dump.inspection.inspector.modules)}
        assert {path: text.count(b"\n") for path, text in texts.items()} == lines
    assert texts["version"] == rb"Linux version 6.1.0\x1b]0;PWN\x07\nforged second line" + b"\n"
    assert texts["cmdline"] == rb"root=\x1b[31mX\n$(id)" + b"\n"
    assert not any(line.startswith(b"fake") for line in texts["modules"].splitlines())


def test_names_that_procfs_has_raw_are_raw(hostile: Path) -> None:
    with Dump.open([str(hostile)]) as dump:
        inspector = dump.inspection.inspector
        found = {content(dump.tree.lookup_path(f"tasks/{pid}/comm")) for pid in inspector.processes}
        assert b"\x1b]0;PWN\x07\n" in found
        task = next(t for t in inspector.tasks if t.pid and t.comm == "\x1b]0;PWN\x07")
        status = content(dump.tree.lookup_path(f"tasks/{task.tgid}/task/{task.pid}/status"))
        assert status.startswith(b"Name:\t\\x1b]0;PWN\\x07\n")


def test_what_is_said_of_the_dump_is_in_lines_of_ours(hostile: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(hostile)]) == 0
    assert main(["info", str(hostile.with_name("gone\n\x1b[31m"))]) != 0
    out, err = capfd.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert "\nERROR" not in out + err
