"""Kernel virtual memory: linear maps, page tables behind them, reads of all kinds."""

from __future__ import annotations

import pytest

from dumpfs.arch import x86_64
from dumpfs.errors import AbsentPageError, PageError, TranslationError
from dumpfs.memory.virtual import AddressSpace, Area, LinearMap, SparseReader
from tests.unit.linux.guest import PAGE, Guest

TOP = 1 << 64
TEXT, DIRECT = 0xFFFFFFFF81000000, 0xFFFF888000000000


def space(order: str = "little", word: int = 8) -> tuple[Guest, AddressSpace]:
    guest = Guest(64, order)
    for pfn in range(64):
        guest.put(pfn * PAGE, bytes([pfn]) * PAGE)
    root = guest.table()
    guest.put(root, bytes(PAGE))
    for vaddr, paddr in ((TOP - 3 * PAGE, 0x5000), (TOP - 2 * PAGE, 0x9000)):
        for table in range(3):
            guest.put(guest._next_table * PAGE - (table + 1) * PAGE, bytes(PAGE))
        guest.map_x86(root, vaddr, paddr)
    linear = [LinearMap("text", TEXT, 4 * PAGE, 0x2000), LinearMap("direct map", DIRECT, 64 * PAGE, 0)]
    tables = x86_64.page_tables(guest.phys(), root, 4) if order == "little" else None
    return guest, AddressSpace(guest.phys(), order, word, linear, tables)


def test_linear_maps_answer_first():
    guest, memory = space()
    assert memory.translate(TEXT + 5) == 0x2005
    assert memory.translate(DIRECT + 0x3001) == 0x3001
    assert guest.reads == 0


def test_page_tables_answer_the_rest():
    _, memory = space()
    assert memory.translate(TOP - 3 * PAGE + 1) == 0x5001
    assert memory.translate(TOP - 3 * PAGE + 2) == 0x5002  # remembered
    with pytest.raises(TranslationError):
        memory.translate(TOP - PAGE)


def test_without_tables_only_linear_maps_are_known():
    _, memory = space("big")
    with pytest.raises(TranslationError, match="page tables were not found"):
        memory.translate(TOP - 3 * PAGE)


def test_a_read_crosses_pages_that_are_not_neighbours():
    _, memory = space()
    assert memory.read(TOP - 2 * PAGE - 2, 4) == b"\x05\x05\x09\x09"
    assert memory.read(DIRECT, 64 * PAGE) == bytes(memory.phys.image.memory)
    assert memory.read(TEXT, 0) == b""


def test_a_read_that_leaves_the_map_is_an_error():
    _, memory = space()
    with pytest.raises(TranslationError):
        memory.read(TOP - PAGE - 1, 2)
    with pytest.raises(TranslationError):
        memory.read(DIRECT + 64 * PAGE - 1, 2)


def test_a_read_of_a_missing_page_is_an_error():
    guest, memory = space()
    guest.lost_pages.add(3)
    with pytest.raises(PageError):
        memory.read(DIRECT + 2 * PAGE, 2 * PAGE)


def test_memory_that_is_not_ram_is_an_error():
    guest = Guest(4)
    memory = AddressSpace(guest.phys(), "little", 8, [LinearMap("direct map", DIRECT, 16 * PAGE, 0)])
    with pytest.raises(AbsentPageError):
        memory.read(DIRECT + 8 * PAGE, 8)


@pytest.mark.parametrize("order", ["little", "big"])
def test_integers_are_in_the_kernels_byte_order(order: str):
    guest, memory = space(order)
    guest.put(0x1000, 0x0102030405060708)
    at = DIRECT + 0x1000
    assert memory.read_u64(at) == memory.read_word(at) == 0x0102030405060708
    assert memory.read_u32(at) == (0x05060708 if order == "little" else 0x01020304)
    assert memory.read_u16(at) == (0x0708 if order == "little" else 0x0102)
    assert memory.read_u8(at) == (8 if order == "little" else 1)
    guest.put(0x2000, -5, 4)
    assert memory.read_int(DIRECT + 0x2000, 4, signed=True) == -5


def test_a_word_of_a_32_bit_kernel_has_four_bytes_and_addresses_wrap():
    guest = Guest(4)
    memory = AddressSpace(guest.phys(), "little", 4, [LinearMap("direct map", 0xC0000000, 4 * PAGE, 0)])
    guest.put(0x10, 0xC0001000, 4)
    assert memory.read_word(0xC0000010) == 0xC0001000
    assert memory.translate(0xFFFFFFFFC0000010) == 0x10


def test_a_string_ends_at_its_nul_or_the_limit():
    guest, memory = space()
    guest.put(0x1000, b"hello\0world")
    assert memory.read_cstring(DIRECT + 0x1000, 100) == b"hello"
    assert memory.read_cstring(DIRECT + 0x1000, 3) == b"hel"
    guest.put(0x2FF0, b"x" * 20 + b"\0")
    assert memory.read_cstring(DIRECT + 0x2FF0, 100) == b"x" * 20


def test_a_string_at_the_end_of_what_is_there_is_read():
    guest, memory = space()
    guest.put(0x1FF8, b"end\0")
    guest.lost_pages.add(2)
    assert memory.read_cstring(DIRECT + 0x1FF8, 100) == b"end"


def test_runs_join_physical_neighbours():
    _, memory = space()
    assert list(memory.runs(TOP - 3 * PAGE + 0x800, PAGE)) == [(0x5800, 0x800), (0x9000, 0x800)]
    assert list(memory.runs(DIRECT + 0x800, 3 * PAGE)) == [(0x800, 3 * PAGE)]


def test_areas_come_from_the_tables_and_without_them_from_the_linear_maps():
    _, with_tables = space()
    assert list(with_tables.areas()) == [Area(TOP - 3 * PAGE, 2 * PAGE, ((0x5000, PAGE), (0x9000, PAGE)))]
    _, without = space("big")
    assert [area.vaddr for area in without.areas()] == [DIRECT, TEXT]
    assert list(without.areas(TEXT + PAGE, TEXT + 2 * PAGE)) == [Area(TEXT + PAGE, PAGE, ((0x3000, PAGE),))]


def test_sparse_array_is_read_in_any_pieces():
    guest, memory = space()
    array = SparseReader(memory, DIRECT + 0x800, 60 * PAGE)
    for offset, size in ((0, 8), (5, 3000), (PAGE * 15, 3 * PAGE), (60 * PAGE - 1, 1), (0, 60 * PAGE)):
        assert array.read(offset, size) == bytes(guest.memory[0x800 + offset : 0x800 + offset + size])
    assert array.read(60 * PAGE - 1, 2) is None
    assert array.read(-1, 1) is None


def test_sparse_array_knows_its_holes():
    guest, memory = space()
    guest.lost_pages.add(4)
    array = SparseReader(memory, DIRECT + 0x800, 60 * PAGE)
    hole = 4 * PAGE - 0x800
    assert array.read(hole - 8, 8) == b"\x03" * 8
    assert array.read(hole - 8, 9) is None
    assert array.read(hole + PAGE, 8) == b"\x05" * 8
    assert array.read(hole + PAGE - 1, 2) is None
    assert list(array.missing) == [DIRECT + 4 * PAGE]


class OnePage:
    """Page tables of which every entry leads to the same page."""

    def translate(self, vaddr: int) -> tuple[int, int]:
        return 0x3000 + vaddr % PAGE, PAGE - vaddr % PAGE

    def areas(self, first=None, stop=None, report=None):
        return iter(())


def test_range_that_maps_one_page_again_and_again_is_refused():
    guest = Guest(64)
    memory = AddressSpace(guest.phys(), "little", 8, (), OnePage())
    assert memory.read(0xFFFFFFFFC0000000, 200 * PAGE)
    guest.reads = 0
    with pytest.raises(TranslationError, match="the same memory as before, at 0x3000"):
        memory.read(0xFFFFFFFFC0000000, 1 << 40)
    assert guest.reads < 300
