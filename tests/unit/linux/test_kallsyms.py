"""The kernel's own symbol table: every coding of addresses, found by VMCOREINFO or by its looks."""

from __future__ import annotations

import random
from array import array

import pytest

from dumpfs.errors import CorruptDumpError, DumpfsError, ViewError
from dumpfs.linux.kallsyms import Kallsyms, read_kallsyms, render_kallsyms, tables_from_vmcoreinfo
from dumpfs.linux.kallsyms_scan import find_kallsyms
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.build.kallsyms import build_kallsyms
from tests.unit.linux.kernelmem import Memory

BASE = {8: 0xFFFFFFFF81000000, 4: 0xC0100000}
SCHEMES = ("absolute", "percpu", "relative", "self")


def make_symbols(word: int, count: int = 600, percpu: bool = True) -> list[tuple[int, str, str]]:
    chooser = random.Random(7)
    symbols = [(0, "A", "fixed_percpu_data"), (0x1000, "A", "g")] if percpu else []
    address = BASE[word]
    symbols += [(address, "T", "_stext"), (address, "T", "_text")]
    for number in range(count):
        address += chooser.choice((0, 4, 0x40, 0x123))
        symbols.append((address, chooser.choice("tTdDrRbBwW"), f"sys_lock{number}_{'x' * chooser.choice((1, 9, 150))}"))
    symbols.append((address + 64, "B", "_end"))
    return symbols


def put_tables(scheme, order="old", byteorder="little", word=8, symbols=None):
    symbols = symbols or make_symbols(word, percpu=scheme in ("absolute", "percpu"))
    start = BASE[word] + 0x100000
    tables = build_kallsyms(symbols, start, scheme, order, byteorder, word)
    memory = Memory(byteorder, word)
    memory.write(start, tables.data)
    return memory, tables, symbols


def read(memory, tables, word=8):
    info = Vmcoreinfo(tables.vmcoreinfo())
    return read_kallsyms(memory.space, tables_from_vmcoreinfo(info), BASE[word], "test")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ["old", "new"])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("word", [4, 8])
def test_every_coding_of_addresses_is_read(scheme, order, byteorder, word):
    memory, tables, symbols = put_tables(scheme, order, byteorder, word)
    assert list(read(memory, tables, word)) == symbols


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ["old", "new"])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_table_is_found_by_its_looks(scheme, order, byteorder):
    if (scheme, order) in (("absolute", "new"), ("self", "old")):
        pytest.skip("no such kernel")
    memory, tables, symbols = put_tables(scheme, order, byteorder)
    image = [(tables.start, len(tables.data))]
    assert list(find_kallsyms(memory.space, image, BASE[8])) == symbols


def test_memory_without_a_table_has_none():
    memory = Memory()
    memory.write(BASE[8], bytes(1 << 16))
    with pytest.raises(ViewError, match="no symbol table"):
        find_kallsyms(memory.space, [(BASE[8], 1 << 16)], None)


def test_image_full_of_digits_is_given_up_soon():
    memory = Memory()
    memory.write(BASE[8], b"".join(b"%d\0" % (n % 10) for n in range(1 << 16)))
    with pytest.raises(ViewError):
        find_kallsyms(memory.space, [(BASE[8], 1 << 17)], None)


def test_wrong_stext_is_refused():
    memory, tables, _ = put_tables("relative")
    with pytest.raises(CorruptDumpError, match="_stext is at"):
        read_kallsyms(memory.space, tables_from_vmcoreinfo(Vmcoreinfo(tables.vmcoreinfo())), BASE[8] + 16, "test")


def test_vmcoreinfo_without_the_keys_is_no_way():
    with pytest.raises(ViewError, match="kernels before"):
        tables_from_vmcoreinfo(Vmcoreinfo(b"OSRELEASE=5.10\n"))


@pytest.mark.parametrize("count", [0, 5_000_000, 0xFFFFFFFF])
def test_impossible_number_of_symbols_is_refused(count):
    memory, tables, _ = put_tables("percpu")
    memory.put(tables.places["num_syms"], count, 4)
    with pytest.raises(CorruptDumpError, match="symbols cannot be"):
        read(memory, tables)


@pytest.mark.parametrize("name", ["names", "token_table", "token_index", "offsets", "relative_base", "num_syms"])
def test_missing_page_is_an_error_and_no_crash(name):
    memory, tables, _ = put_tables("percpu")
    del memory.phys.pages[tables.places[name] >> 12]
    with pytest.raises(DumpfsError):
        read(memory, tables)


def test_symbol_without_a_name_is_refused():
    memory, tables, _ = put_tables("percpu")
    memory.write(tables.places["names"], b"\0")
    with pytest.raises(CorruptDumpError, match="without type and name"):
        read(memory, tables)


def test_tokens_that_blow_names_up_are_refused():
    memory, tables, symbols = put_tables("percpu", symbols=make_symbols(8, 20_000))
    memory.write(tables.places["token_table"], b"x" * 30_000 + bytes(400))
    memory.write(tables.places["token_index"], array("H", range(256)).tobytes())
    memory.write(tables.places["names"], b"\x20".ljust(0x21, b"\0") * len(symbols))
    with pytest.raises(CorruptDumpError, match="bytes cannot be"):
        read(memory, tables)


def test_names_of_other_letters_are_read():
    memory, tables, symbols = put_tables("relative")
    at = tables.data.index(b"\0n\0", tables.places["token_table"] - tables.start) + 1
    memory.write(tables.start + at, b"\xf1")
    found = read(memory, tables)
    assert list(found) == [(address, letter, name.replace("n", "ñ")) for address, letter, name in symbols]
    assert [found.name(index) for index in range(len(found))] == [name for _, _, name in found]


def test_names_are_fit_for_a_terminal():
    memory, tables, symbols = put_tables("relative")
    at = tables.data.index(b"\0n\0", tables.places["token_table"] - tables.start) + 1
    memory.write(tables.start + at, b"\x1b")
    found = read(memory, tables)
    assert [name for _, _, name in found] == [name.replace("n", r"\x1b") for _, _, name in symbols]


def small() -> Kallsyms:
    rows = [
        (0, "A", "pcpu"),
        (0x100, "T", "_stext"),
        (0x100, "t", "alias"),
        (0x140, "t", "twice"),
        (0x180, "d", "twice"),
        (0x200, "B", "_end"),
    ]
    return Kallsyms(array("Q", [r[0] for r in rows]), [r[2] for r in rows], "".join(r[1] for r in rows), "test")


def test_name_gives_the_first_address():
    assert small().address("twice") == 0x140
    assert [small().addresses[i] for i in small().indexes("twice")] == [0x140, 0x180]


@pytest.mark.parametrize("name", ["", "twic", "wice", "twice\n", "nothing"])
def test_unknown_name_has_no_address(name):
    assert small().address(name) is None
    with pytest.raises(ViewError, match="no symbol"):
        small().need(name)


@pytest.mark.parametrize(
    ("vaddr", "found"),
    [(0x100, "_stext+0x0/0x40"), (0x13F, "_stext+0x3f/0x40"), (0x1FF, "twice+0x7f/0x80"), (0x200, None), (0xFF, None),
     (0, None)],
)  # fmt: skip
def test_address_is_looked_up_in_the_first_of_its_aliases(vaddr, found):
    symbol = small().lookup(vaddr)
    assert (symbol and str(symbol)) == found


def test_table_need_not_ascend():
    symbols = Kallsyms(array("Q", [0x300, 0x100, 0x200]), ["c", "_stext", "b"], "TTT", "test")
    assert str(symbols.lookup(0x210)) == "b+0x10/0x100"


def test_frozen_symbols_are_the_same():
    symbols = small()
    again = Kallsyms.thaw("test", symbols.freeze())
    assert list(again) == list(symbols)
    assert again.lookup(0x150) == symbols.lookup(0x150)


def test_lines_are_those_of_proc():
    assert render_kallsyms([(0xFFFFFFFF81000000, "T", "_text")], 8) == "ffffffff81000000 T _text\n"
    assert render_kallsyms([(0xC0100000, "t", "f")], 4, "loop") == "c0100000 t f\t[loop]\n"
