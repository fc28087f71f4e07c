"""Memory areas of processes: maple trees, lists before 6.1, and the line of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dumpfs.linux.inspect import Inspector
from dumpfs.linux.usermem import Area, MapleTree, UserMemory
from tests.unit.linux.kernelmem import Memory, make_types

NODE, VMA, MM = 0xFFFF888000100000, 0xFFFF888000200000, 0xFFFF888000300000
LEAF, RANGE, ARANGE = 1, 2, 3
SLOTS = {LEAF: 16, RANGE: 16, ARANGE: 10}
VMA_MEMBERS = {"vm_start": (0, 8), "vm_end": (8, 8), "vm_next": (16, 8), "vm_mm": (24, 8), "vm_flags": (32, 8),
               "vm_pgoff": (40, 8), "vm_file": (48, 8)}  # fmt: skip
MM_MEMBERS = {"mmap": (0, 8), "brk": (8, 8), "start_brk": (16, 8), "start_stack": (24, 8), "arg_start": (32, 8),
              "arg_end": (40, 8), "pgd": (48, 8)}  # fmt: skip


def node_members(prefix: str, slots: int) -> dict[str, tuple[int, int]]:
    out = {f"{prefix}.pivot[{i}]": (8 + 8 * i, 8) for i in range(slots - 1)}
    return out | {f"{prefix}.slot[{i}]": (8 * slots + 8 * i, 8) for i in range(slots)}


def make_inspector(memory: Memory, *, tree: bool) -> Inspector:
    types = make_types(
        {
            "maple_node": (256, {"x": (0, 8)}),
            "vm_area_struct": (64, VMA_MEMBERS),
            "mm_struct": (128, MM_MEMBERS | ({"mm_mt.ma_root": (64, 8)} if tree else {})),
        }
    )
    word = types.member("maple_node", "x")
    for prefix, slots in (("mr64", 16), ("ma64", 10)):
        for path, (offset, size) in node_members(prefix, slots).items():
            types.known["maple_node", path] = word._replace(offset=offset, size=size)
        types.known["maple_node", f"{prefix}.pivot"] = word._replace(length=slots - 1)
        types.known["maple_node", f"{prefix}.slot"] = word._replace(length=slots)
    kernel = SimpleNamespace(space=memory.space, vmcoreinfo=None, machine="x86_64", word_size=8, page_size=4096)
    inspector = Inspector(kernel)
    inspector.know("types", types)
    return inspector


def put_node(memory: Memory, vaddr: int, kind: int, rows: list[tuple[int, int]]) -> int:
    """A node of (last index, entry) rows; the pointer to it."""
    slots = SLOTS[kind]
    memory.write(vaddr, bytes(256))
    for number, (last, entry) in enumerate(rows):
        if number < slots - 1:
            memory.put(vaddr + 8 + 8 * number, last)
        memory.put(vaddr + 8 * slots + 8 * number, entry)
    return vaddr | kind << 3 | 6


TOP = (1 << 64) - 1


def test_entries_of_a_tree_come_in_order():
    memory = Memory()
    first = put_node(memory, NODE, LEAF, [(9, VMA), (19, 0), (29, VMA + 64)])
    full = put_node(memory, NODE + 256, LEAF, [(30 + i, VMA + 64 * (2 + i)) for i in range(15)] + [(99, VMA + 0x1000)])
    inner = put_node(memory, NODE + 512, ARANGE, [(29, first), (99, full)])
    root = put_node(memory, NODE + 768, ARANGE, [(99, inner), (TOP, 0)])
    problems: list[str] = []
    found = list(MapleTree(make_inspector(memory, tree=True), problems).entries(root))
    assert found == [VMA, VMA + 64, *(VMA + 64 * (2 + i) for i in range(15)), VMA + 0x1000]
    assert not problems


def test_what_lies_behind_the_last_pivot_is_no_entry():
    memory = Memory()
    root = put_node(memory, NODE, LEAF, [(9, VMA), (TOP, 0)])
    memory.put(NODE + 8 * 16 + 8 * 15, 0x1234)  # the node's metadata lies in its last slot
    assert list(MapleTree(make_inspector(memory, tree=True), []).entries(root)) == [VMA]


@pytest.mark.parametrize(("root", "entries"), [(0, []), (VMA, [VMA]), (2, []), (VMA | 1, [])])
def test_root_that_is_no_node_is_an_entry_or_nothing(root, entries):
    assert list(MapleTree(make_inspector(Memory(), tree=True), []).entries(root)) == entries


def test_tree_inside_itself_ends_with_a_problem():
    memory = Memory()
    root = put_node(memory, NODE, ARANGE, [(9, NODE | ARANGE << 3 | 6), (TOP, 0)])
    problems: list[str] = []
    assert list(MapleTree(make_inspector(memory, tree=True), problems).entries(root)) == []
    assert "too deep" in problems[0]


def test_node_that_is_not_in_the_dump_costs_only_its_entries():
    memory = Memory()
    leaf = put_node(memory, NODE, LEAF, [(TOP, VMA)])
    root = put_node(memory, NODE + 256, RANGE, [(9, NODE + 0x10000 | LEAF << 3 | 6), (TOP, leaf)])
    problems: list[str] = []
    assert list(MapleTree(make_inspector(memory, tree=True), problems).entries(root)) == [VMA]
    assert problems


def put_areas(memory: Memory) -> None:
    memory.write(MM, bytes(128))
    rows = [(0x400000, 0x401000, 5), (0x10000000, 0x10021000, 3), (0x7FFE00000000, 0x7FFE00021000, 3)]
    for number, (start, stop, flags) in enumerate(rows):
        vaddr = VMA + 64 * number
        memory.write(vaddr, bytes(64))
        for offset, value in ((0, start), (8, stop), (24, MM), (32, flags)):
            memory.put(vaddr + offset, value)
        memory.put(vaddr + 16, vaddr + 64 if number + 1 < len(rows) else 0)
    for offset, value in ((0, VMA), (8, 0x10021000), (16, 0x10000000), (24, 0x7FFE00020000)):
        memory.put(MM + offset, value)


def areas(memory: Memory) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    found = UserMemory(make_inspector(memory, tree=False), MM).areas(problems)
    return [area.render(8) for area in found], problems


def test_list_of_old_kernels_is_followed():
    memory = Memory()
    put_areas(memory)
    assert areas(memory) == (
        [
            "00400000-00401000 r-xp 00000000 00:00 0 \n",
            "10000000-10021000 rw-p 00000000 00:00 0 ".ljust(73) + "[heap]\n",
            "7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0 ".ljust(73) + "[stack]\n",
        ],
        [],
    )


@pytest.mark.parametrize(("pointer", "problem"), [(VMA, "circle"), (0x1000, "0x1000")])
def test_damaged_list_gives_what_came_before_it(pointer, problem):
    memory = Memory()
    put_areas(memory)
    memory.put(VMA + 64 + 16, pointer)
    lines, problems = areas(memory)
    assert len(lines) == 2
    assert any(problem in p for p in problems)


def test_area_that_ends_before_it_begins_is_none():
    memory = Memory()
    put_areas(memory)
    memory.put(VMA + 8, 0x1000)
    lines, problems = areas(memory)
    assert len(lines) == 2
    assert "no area" in problems[0]


def test_command_line_of_wild_bounds_is_refused():
    memory = Memory()
    put_areas(memory)
    memory.put(MM + 32, 0x1000)
    memory.put(MM + 40, 1 << 40)
    with pytest.raises(Exception, match="command line of"):
        UserMemory(make_inspector(memory, tree=False), MM).read_cmdline()


def test_file_and_device_have_their_columns():
    area = Area(0x7F0000000000, 0x7F0000001000, 0x81, 0x2000, 8 << 20 | 1, 1234, "/lib/x")
    assert area.render(8) == "7f0000000000-7f0000001000 r--s 00002000 08:01 1234".ljust(73) + "/lib/x\n"
