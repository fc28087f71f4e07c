"""Modules: /proc/modules and /proc/kallsyms of kernels old and new, and damaged lists."""

from __future__ import annotations

import struct

import pytest

from dumpfs.errors import DumpfsError
from dumpfs.linux.modules import Module, SymbolBudget, module_symbols, read_modules, render_modules
from tests.unit.linux.kernelmem import Memory, make_types

HEAD, FIRST = 0xFFFFFFFF82000000, 0xFFFFFFFFC0000000
COMMON = {
    "state": (0, 4),
    "list.next": (8, 8),
    "list.prev": (16, 8),
    "name": (24, 16),
    "refcnt.counter": (40, 4),
    "source_list": (48, 16),
    "init": (64, 8),
    "exit": (72, 8),
    "taints": (80, 8),
    "kallsyms": (88, 8),
    "syms": (160, 8),
    "num_syms": (168, 4),
}
LAYOUTS = {
    "6.1": {"core_layout.base": (96, 8), "core_layout.size": (104, 4), "init_layout.base": (112, 8),
            "init_layout.size": (120, 4)},
    "4.4": {"module_core": (96, 8), "core_size": (104, 4), "module_init": (112, 8), "init_size": (120, 4)},
}  # fmt: skip
OTHERS = {
    "module_use": (48, {"source_list": (0, 16), "source": (32, 8)}),
    "mod_kallsyms": (32, {"symtab": (0, 8), "num_symtab": (8, 4), "strtab": (16, 8), "typetab": (24, 8)}),
    "kernel_symbol": (12, {"value_offset": (0, 4), "name_offset": (4, 4)}),
}


def machine(layout: str = "6.1"):
    memory = Memory()
    names = ["zram", "zsmalloc"]
    places = [FIRST + 0x1000 * n for n in range(len(names))]
    memory.put_list(HEAD, [p + 8 for p in places])
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        nodes = memory.space.read(place + 8, 16)
        memory.write(place, bytes(256))
        memory.write(place + 8, nodes)
        memory.write(place + 24, name.encode().ljust(16, b"\0"))
        memory.put(place + 40, 1 + number, 4)
        memory.put_list(place + 48, [])
        memory.put(place + 96, 0xFFFFFFFFC0100000 + 0x10000 * number)
        memory.put(place + 104, 0x8000, 4)
    use = FIRST + 0x8000
    memory.put_list(places[1] + 48, [use])
    memory.put(use + 32, places[0])
    types = make_types({"module": (256, COMMON | LAYOUTS[layout]), **OTHERS})
    return memory, types, places


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lines_are_those_of_proc(layout):
    memory, types, places = machine(layout)
    memory.put(places[0] + 80, 1 << 12 | 1 << 13)
    memory.put(places[1] + 64, 0x1234)
    problems: list[str] = []
    assert render_modules(read_modules(memory.space, types, HEAD, problems), 8) == (
        "zram 32768 0 - Live 0xffffffffc0100000 (OE)\nzsmalloc 32768 1 zram,[permanent], Live 0xffffffffc0110000\n"
    )
    assert not problems


def test_module_that_is_still_unformed_is_left_out():
    memory, types, places = machine()
    memory.put(places[0], 3, 4)
    assert [m.name for m in read_modules(memory.space, types, HEAD, [])] == ["zsmalloc"]


def test_damaged_list_gives_what_lies_on_both_sides_of_the_damage():
    memory, types, places = machine()
    memory.put(places[0] + 8, 0x10)
    problems: list[str] = []
    assert [m.name for m in read_modules(memory.space, types, HEAD, problems)] == ["zram", "zsmalloc"]
    assert any("list of modules: cut after" in p and "1 more are found from its end" in p for p in problems)


def with_symbols():
    memory, types, places = machine()
    tables, symtab, strtab, typetab = (FIRST + 0x9000 + 0x400 * n for n in range(4))
    memory.put(places[0] + 88, tables)
    rows = [(0, 0), (1, 0xFFFFFFFFC0100000), (6, 0xFFFFFFFFC0100040), (12, 0xFFFFFFFFC0100080)]
    for number, (name, value) in enumerate(rows):
        memory.write(symtab + 24 * number, struct.pack("<IBBHQQ", name, 0, 0, 1, value, 0))
    memory.write(strtab, b"\0open\0close\0data\0")
    memory.write(typetab, b"ntTd")
    for at, value in ((0, symtab), (16, strtab), (24, typetab)):
        memory.put(tables + at, value)
    memory.put(tables + 8, len(rows), 4)
    exports = FIRST + 0xB000
    memory.put(places[0] + 160, exports)
    memory.put(places[0] + 168, 1, 4)
    memory.put(exports, 0xFFFFFFFFC0100000 - exports, 4)
    (module, _) = read_modules(memory.space, types, HEAD, [])
    return memory, types, module, tables


def test_exported_symbols_have_upper_case_types():
    memory, types, module, _ = with_symbols()
    assert module_symbols(memory.space, types, module) == [
        (0xFFFFFFFFC0100000, "T", "open"),
        (0xFFFFFFFFC0100040, "t", "close"),
        (0xFFFFFFFFC0100080, "d", "data"),
    ]


def test_names_are_fit_for_a_terminal_and_a_line_of_words():
    memory, types, module, _ = with_symbols()
    strtab = FIRST + 0x9800
    memory.write(strtab, b"\0op\x1bn\0c\nose\0\xff a\0")
    assert [name for _, _, name in module_symbols(memory.space, types, module)] == [
        r"op\x1bn",
        r"c\nose",
        r"\xff\x20a",
    ]
    memory.write(module.vaddr + 24, b"z\x1b[31m\nfake 9\0")
    found = read_modules(memory.space, types, HEAD, [])
    assert [m.name for m in found] == [r"z\x1b[31m\nfake\x209", "zsmalloc"]
    assert found[1].users[0] == found[0].name


@pytest.mark.parametrize("count", [1 << 31, 5_000_000, 100_000])
def test_impossible_number_of_symbols_is_an_error(count):
    memory, types, module, tables = with_symbols()
    memory.put(tables + 8, count, 4)
    with pytest.raises(DumpfsError):
        module_symbols(memory.space, types, module)


def test_module_covers_its_own_memory_only():
    module = Module("m", 0, "Live", 0x1000, 0x20, 0, (), "", ((0x1000, 0x10), (0x3000, 0x10)))
    assert [module.covers(v) for v in (0xFFF, 0x1000, 0x100F, 0x1010, 0x3008)] == [False, True, True, False, True]


def test_name_is_cut_where_the_kernel_would():
    memory, types, module, _ = with_symbols()
    memory.write(FIRST + 0x9800, b"\0" + b"x" * 3000)
    assert {len(name) for _, _, name in module_symbols(memory.space, types, module)} == {511}


def test_all_modules_together_have_a_budget_of_symbols():
    memory, types, module, _ = with_symbols()
    budget = SymbolBudget(symbols=10)
    assert len(module_symbols(memory.space, types, module, budget)) == 3
    assert len(module_symbols(memory.space, types, module, budget)) == 3
    with pytest.raises(DumpfsError, match="4 symbols in 100 bytes are more than modules can have"):
        module_symbols(memory.space, types, module, budget)


@pytest.mark.parametrize("field", ["symbols", "nbytes"])
def test_claim_is_refused_before_anything_is_read(field):
    memory, types, module, tables = with_symbols()
    memory.put(tables + 8, 0xFFFFFFFF, 4)
    with pytest.raises(DumpfsError, match="more than modules can have"):
        module_symbols(memory.space, types, module)
