"""/kallsyms, /btf, /config, /cmdline, /version, /modules, /cpus and /tasks of a real dump."""

from __future__ import annotations

import pytest

from dumpfs.errors import DumpfsError, ExcludedPageError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import DirNode, FileNode
from tests.unit.vfs.fakes import FakeImage, S

BANNER = b"Linux version 6.1.192-dumpfs-tiny (root@vm) "


@pytest.fixture(scope="module")
def dump(data):
    """Opened once: what is found out stays known."""
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        yield dump


@pytest.fixture
def fresh(data):
    """Nothing found out yet."""
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        yield dump


def read(dump: Dump, path: str) -> bytes:
    node = dump.tree.lookup_path(path)
    assert isinstance(node, FileNode), path
    return node.read(0, node.size() + 1)


def names(dump: Dump, path: str) -> list[str]:
    return [name for _, name, _ in dump.tree.lookup_path(path).entries(0)]


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("version", BANNER),
        ("cmdline", b"console=ttyS0 crashkernel=40M "),
        ("modules", b"loop 32768 0 - Live 0xffffffffc0000000\n"),
        ("config", b"#\n# Automatically generated file; DO NOT EDIT.\n"),
        ("btf", b"\x9f\xeb\x01\x00"),
        ("kallsyms", b"0000000000000000 A fixed_percpu_data\n"),
        ("cpus/0/task", b"0 (swapper/0)\n"),
        ("cpus/1/task", b"1 (init)\n"),
        ("cpus/1/registers", b"r15        0x0000000000000002\n"),
        ("cpus/1/stack", b"[<0>] __crash_kexec+"),
        ("tasks/1/comm", b"init\n"),
        ("tasks/2/status", b"Name:\tkthreadd\n"),
        ("tasks/2/stack", b"[<0>] __schedule+"),
        ("tasks/1/task/1/maps", b"00400000-00401000 r--p 00000000 00:02 "),
        ("tasks/2/maps", b""),
    ],
)
def test_file_begins_as_in_proc(dump, path, start):
    assert read(dump, path).startswith(start)


def test_stack_says_how_it_was_found(dump):
    assert read(dump, "tasks/1/stack").endswith(b"\n# unwound by ORC\n")


def test_symbols_of_modules_follow_the_kernels(dump):
    lines = read(dump, "kallsyms").splitlines()
    assert len(lines) > 35016
    assert all(line.endswith(b"\t[loop]") for line in lines[35016:])


def test_raw_registers_are_the_note(dump):
    assert len(read(dump, "cpus/0/prstatus")) == 336


def test_every_process_is_listed_by_number(dump):
    pids = [int(name) for name in names(dump, "tasks")]
    assert pids == sorted(pids)
    assert pids[:2] == [1, 2]
    assert {read(dump, f"tasks/{pid}/comm") for pid in pids} >= {b"hold\n", b"kthreadd\n", b"sleep\n"}


def test_process_has_procs_files_and_its_threads(dump):
    assert names(dump, "tasks/2") == ["cmdline", "comm", "maps", "registers", "stack", "status", "task"]
    assert names(dump, "tasks/2/task") == ["2"]
    assert names(dump, "tasks/2/task/2") == ["cmdline", "comm", "maps", "registers", "stack", "status"]


def test_file_that_cannot_be_read_is_not_listed_and_says_why(dump):
    assert names(dump, "tasks/1") == ["comm", "maps", "registers", "stack", "status", "task"]
    with pytest.raises(ExcludedPageError):
        dump.tree.lookup_path("tasks/1/cmdline").check_open()


def test_what_is_listed_can_be_read(dump):
    def check(path: str, node) -> None:
        if isinstance(node, FileNode):
            node.check_open()
            assert len(node.read(0, node.size() + 1)) == node.size(), path
        elif path not in ("/pages", "/bitmaps"):
            for _, name, child in node.entries(0):
                check(f"{path}/{name}", child)

    for path in ("cpus", "tasks", "gdb"):
        check(f"/{path}", dump.tree.lookup_path(path))


def test_listing_resumes_after_a_cookie(dump):
    for path in ("tasks", "tasks/1", "tasks/1/task", "cpus", "cpus/0"):
        node = dump.tree.lookup_path(path)
        entries = [(cookie, name) for cookie, name, _ in node.entries(0)]
        for i, (cookie, _) in enumerate(entries):
            assert [(c, n) for c, n, _ in node.entries(cookie)] == entries[i + 1 :]


def test_inode_leads_to_the_node_again(dump):
    def check(node: DirNode) -> None:
        for _, name, child in node.entries(0):
            assert dump.tree.node(child.ino) == child
            assert node.lookup(name) == child
            if isinstance(child, DirNode):
                check(child)

    for path in ("cpus", "tasks/1"):
        check(dump.tree.lookup_path(path))


@pytest.mark.parametrize(
    "path",
    ["tasks/0", "tasks/01", "tasks/9999", "tasks/x", "tasks/1/task/2", "tasks/1/task/1/task", "tasks/1/fd", "cpus/2",
     "cpus/00", "cpus/x", "cpus/0/maps"],
)  # fmt: skip
def test_other_names_do_not_exist(dump, path):
    assert dump.tree.lookup_path(path) is None


@pytest.mark.parametrize("ino", [3 << 48 | 1 << 6 | 63, 2 << 48 | 15, 2 << 48 | 1 << 40])
def test_inode_of_no_file_is_a_lookup_error(dump, ino):
    with pytest.raises(LookupError):
        dump.tree.node(ino)


def test_task_that_is_gone_is_an_error_to_read(dump):
    node = dump.tree.node(3 << 48 | 9999 << 6 | 2)
    with pytest.raises(DumpfsError, match="no task 9999"):
        node.check_open()


def test_user_page_that_was_left_out_is_an_error_to_open(dump):
    with pytest.raises(ExcludedPageError):
        dump.tree.lookup_path("tasks/1/cmdline").check_open()


def test_nothing_is_found_out_by_listing_the_root(fresh):
    for _, name, node in fresh.tree.root.entries(0):
        if name in ("kallsyms", "btf", "config", "cmdline", "modules", "version", "cpus", "tasks"):
            assert not node.ready
    assert not fresh.inspection.ready


def test_one_build_prepares_all_small_views(fresh, dump):
    tasks = dump.tree.lookup_path("tasks")
    frozen = tasks.build()
    waiting = [fresh.tree.lookup_path(p) for p in ("tasks", "cpus", "cmdline", "version", "modules")]
    assert {node.prepared_by().ino for node in waiting} == {tasks.ino}
    waiting[0].prepared_by().adopt(memoryview(frozen))
    assert all(node.ready for node in waiting)
    for path in ("tasks/2/stack", "tasks/2/status", "cpus/1/registers", "modules", "version"):
        assert read(fresh, path) == read(dump, path)


def test_kernel_of_an_unknown_machine_has_no_inside():
    dump = Dump(FakeImage({0: S}, machine="vax"))
    for path in ("kallsyms", "tasks", "cpus", "btf"):
        assert dump.tree.lookup_path(path) is None
    assert "tasks: machine vax" in read(dump, "status").decode()


def test_kernel_that_cannot_be_read_says_why():
    dump = Dump(FakeImage(dict.fromkeys(range(16), S)))
    with pytest.raises(DumpfsError):
        list(dump.tree.lookup_path("tasks").entries(0))
    assert "inside the kernel: " in read(dump, "status").decode()
