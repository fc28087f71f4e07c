"""The tree: names, inode numbers, views that are not offered."""

from __future__ import annotations

import pytest

from dumpfs.vfs.node import ROOT_INO, DirNode, FileNode
from dumpfs.vfs.tree import ROWS
from dumpfs.vfs.views.pages import SPACE
from tests.unit.vfs.fakes import FakeImage, S, fake_dump, fake_kernel

TEXT = b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(prb)=ffffffff81000000\nCRASHTIME=1700000000\n"


def tree(text: bytes | None = TEXT, **kernel: object):
    from dumpfs.vmcoreinfo import Vmcoreinfo

    info = None if text is None else Vmcoreinfo(text)
    return fake_dump(FakeImage({0: S, 2: S}, vmcoreinfo=text), fake_kernel(vmcoreinfo=info, **kernel)).tree


def names(node: DirNode) -> list[str]:
    return [name for _, name, _ in node.entries(0)]


def test_root_lists_every_view_of_a_dump_that_offers_all():
    assert names(tree().root) == sorted({row.path.split("/")[0] for row in ROWS})


def test_node_of_an_inode_is_the_node_that_was_looked_up():
    t = tree()
    for _, name, node in t.root.entries(0):
        assert t.node(node.ino) is t.root.lookup(name) is node
    assert t.node(ROOT_INO) is t.root


def test_inode_numbers_are_unique():
    t = tree()
    inos = [t.root.ino, *(n.ino for _, _, n in t.root.entries(0)), *(n.ino for _, n in t.files())]
    assert len(set(inos)) == len(t.paths)


@pytest.mark.parametrize("ino", [0, 99, 9 << 48, (9 << 48) | 5, -1])
def test_unknown_inode_is_a_lookup_error(ino):
    with pytest.raises(LookupError):
        tree().node(ino)


def test_page_inode_leads_to_the_page():
    t = tree()
    page = t.lookup_path("pages/2")
    assert page.ino == SPACE << 48 | 2
    assert t.node(page.ino) == page


@pytest.mark.parametrize("path", ["", "/", "bitmaps", "bitmaps/ram", "/pages/2", "pages/0x2", "hmem", "pages/"])
def test_path_is_found(path):
    assert tree().lookup_path(path) is not None


@pytest.mark.parametrize(
    "path", ["x", "hmem/x", "bitmaps/x", "pages/x", "pages/1", "pages/2/x", "bitmaps/ram/x", "a//b"]
)
def test_path_is_not_found(path):
    assert tree().lookup_path(path) is None


def test_listing_resumes_after_a_cookie():
    entries = list(tree().root.entries(0))
    for i, (cookie, _, _) in enumerate(entries):
        assert [e[1] for e in tree().root.entries(cookie)] == [e[1] for e in entries[i + 1 :]]


def test_subdirectories_are_counted():
    t = tree()
    assert t.root.subdirectories() == sum(isinstance(node, DirNode) for _, _, node in t.root.entries(0))


@pytest.mark.parametrize(
    ("text", "kernel", "name", "why"),
    [
        (None, {"arch": None}, "vmcoreinfo", "no VMCOREINFO"),
        (None, {"arch": None}, "dmesg", "no VMCOREINFO"),
        (b"OSRELEASE=6.1\n", {}, "dmesg", "where the log is"),
        (TEXT, {"space": None, "problems": ("page tables are missing",)}, "dmesg", "page tables are missing"),
    ],
)
def test_view_that_cannot_be_offered_is_absent_with_a_reason(text, kernel, name, why):
    t = tree(text, **kernel)
    assert name not in names(t.root)
    assert t.lookup_path(name) is None
    assert why in {path: reason for path, _, reason in t.views()}[name]
    assert f"{name}: " in t.lookup_path("status").read(0, 1 << 20).decode()
    assert why in " ".join(t.lookup_path("README").read(0, 1 << 20).decode().split())


def test_views_that_memory_may_hold_are_offered_and_not_ready():
    t = tree(None)
    for name in ("vmcoreinfo", "dmesg", "vmcore"):
        assert not t.lookup_path(name).ready


SLOW = {"dmesg", "btf", "cmdline", "config", "kallsyms", "modules", "version", "vmcore-kern", "vmcore-tasks"}
"""Files made beside the mount's work."""


def test_offered_files_are_ready_but_for_what_the_kernel_holds():
    assert {path for path, node in tree().files() if not node.ready} >= SLOW


def test_every_view_explains_itself():
    for _, view, _ in tree().views():
        assert view.ABOUT.endswith(".")


def test_rows_name_their_own_space():
    spaces = [row.space for row in ROWS if row.space]
    assert SPACE in spaces
    assert len(set(spaces)) == len(spaces)


def test_files_have_the_crash_time():
    assert tree().times_ns == 1_700_000_000 * 10**9


def test_only_status_is_volatile():
    assert [path for path, node in tree().files() if node.volatile] == ["status"]


def test_reading_beyond_the_end_is_empty():
    for path, node in tree().files():
        if node.ready:
            assert node.read(node.size(), 100) == b"", path
            assert len(node.read(node.size() - 1, 100)) == 1, path
            assert isinstance(node, FileNode)
