"""Virtual memory in the cores of a real dump: the form of its segments, and their bytes."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from dumpfs.elf.structs import elf_abi, parse_phdrs
from dumpfs.vfs.context import Dump, OpenOptions
from dumpfs.vfs.views.vmcore import VmcoreFile

DUMP = "mkd-raw-d31.kdump"
TEXT, MODULES, TOP = 0xFFFFFFFF81000000, 0xFFFFFFFFC0000000, 1 << 64


@pytest.fixture(scope="module")
def dump(data):
    with Dump.open([str(data(DUMP))]) as opened:
        yield opened


def segments(node):
    """PT_LOADs in the file's order."""
    head = node.read(0, 64)
    count = struct.unpack_from("<H", head, 56)[0]
    return list(parse_phdrs(elf_abi(8, "little"), node.read(64, 56 * count), count))[1:]


@pytest.mark.parametrize("name", ["vmcore", "vmcore-tasks", "vmcore-kern"])
def test_virtual_ranges_come_after_ram_and_end_at_the_top(dump, name):
    *loads, last = segments(dump.tree.lookup_path(name))
    kinds = ["text" if s.p_vaddr == TEXT else "ram" if s.p_paddr < 1 << 40 else "virtual" for s in loads]
    assert kinds == sorted(kinds, key=["text", "ram", "virtual"].index)
    assert (last.p_vaddr - last.p_paddr, last.p_filesz) == (dump.kernel.page_offset, 1)
    virtual = [s for s, kind in zip(loads, kinds, strict=True) if kind == "virtual"]
    assert len(virtual) > 50
    for segment in virtual:
        assert segment.p_paddr + segment.p_memsz == TOP
        assert segment.p_filesz == segment.p_memsz
        assert segment.p_offset % 4096 == segment.p_vaddr % 4096 == 0
    assert [s.p_vaddr for s in virtual] == sorted(s.p_vaddr for s in virtual)
    assert any(s.p_vaddr == MODULES for s in virtual)


def test_nothing_but_the_last_byte_is_described_twice_by_virtual_address(dump):
    loads = sorted((s.p_vaddr, s.p_memsz) for s in segments(dump.tree.lookup_path("vmcore"))[:-1])
    assert all(a + size <= b for (a, size), (b, _) in pairwise(loads))


def test_their_bytes_are_what_the_kernel_had_there(dump):
    node, space = dump.tree.lookup_path("vmcore"), dump.kernel.space
    for segment in segments(node):
        if segment.p_paddr >= 1 << 40:
            data = node.read(segment.p_offset, segment.p_filesz)
            page = space.phys.with_policy(dump.phys.policy)
            expected = b"".join(page.read(paddr, size) for paddr, size in space.runs(segment.p_vaddr, segment.p_filesz))
            assert data == expected


def test_reads_of_any_size_agree(dump):
    node = dump.tree.lookup_path("vmcore")
    first = next(s for s in segments(node) if s.p_vaddr == MODULES)
    start = first.p_offset - 5000
    whole = node.read(start, 60_000)
    for step in (1000, 4096, 7777):
        assert b"".join(node.read(start + at, min(step, 60_000 - at)) for at in range(0, 60_000, step)) == whole


def test_another_process_reads_the_same_by_the_plan(dump):
    built = dump.tree.lookup_path("vmcore")
    adopted = VmcoreFile(built.ino, dump)
    adopted.adopt(built.build())
    assert adopted.mapped is not None
    start = built.plan.extents[-1].offset - (1 << 20)
    assert adopted.read(start, 2 << 20) == built.read(start, 2 << 20)


def test_memory_left_out_is_an_error_with_that_policy(data):
    from dumpfs.errors import DumpfsError
    from dumpfs.memory.physical import HolePolicy

    with Dump.open([str(data(DUMP))], OpenOptions(holes=HolePolicy.ERROR)) as strict:
        node = strict.tree.lookup_path("vmcore")
        kinds = {"read": 0, "refused": 0}
        for segment in segments(node):
            if segment.p_paddr >= 1 << 40:
                try:
                    node.read(segment.p_offset, segment.p_filesz)
                    kinds["read"] += 1
                except DumpfsError:
                    kinds["refused"] += 1
    assert kinds["read"] > 40


def test_every_task_is_a_thread(dump):
    from dumpfs.arch.base import arch_for
    from dumpfs.notes import parse_notes

    node = dump.tree.lookup_path("vmcore-tasks")
    head = node.read(0, 120)
    offset, size = struct.unpack_from("<Q16xQ", head, 72)[0], struct.unpack_from("<Q", head, 96)[0]
    layout = arch_for("x86_64").prstatus
    notes = [n for n in parse_notes(node.read(offset, size), "little") if n.name == b"CORE" and n.type == 1]
    pids = [layout.pid(n.desc, "little") for n in notes]
    tasks = dump.inspection.inspector.tasks
    assert len(set(pids)) == len(pids) == len(tasks)
    assert {t.pid for t in tasks if t.pid} == {p for p in pids if p < 1 << 22}
    assert sorted(p for p in pids if p >= 1 << 22) == [(1 << 22) + t.cpu for t in tasks if not t.pid]
