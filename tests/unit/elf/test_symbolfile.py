"""Symbol files, by pyelftools."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile

from dumpfs.elf.symbolfile import Region, SymbolFile, SymbolTable

TEXT, DATA = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000
REGIONS = [Region(".text", TEXT, TEXT + 0x1000, True), Region(".data", DATA, DATA + 0x1000, False)]


def symbols(*rows: tuple[int, str, str]) -> SymbolTable:
    text = b"".join(name.encode() + b"\0" for _, _, name in rows)
    names = []
    position = 0
    for _, _, name in rows:
        names.append(position)
        position += len(name) + 1
    return SymbolTable([row[0] for row in rows], "".join(row[1] for row in rows), text, names)


def build(*tables: SymbolTable, regions=REGIONS, build_id=b"", frames=b"", word_size=8, byteorder="little") -> ELFFile:
    return ELFFile(io.BytesIO(SymbolFile("x86_64", word_size, byteorder, build_id, regions, tables, frames).build()))


def found(*tables: SymbolTable, **more) -> dict[str, tuple[int, int, str, str]]:
    """Name to address, size, type and binding."""
    section = build(*tables, **more).get_section_by_name(".symtab")
    return {
        s.name: (s["st_value"], s["st_size"], s["st_info"]["type"][4:], s["st_info"]["bind"][4:])
        for s in list(section.iter_symbols())[1:]
    }


@pytest.mark.parametrize(("word_size", "byteorder"), [(8, "little"), (8, "big"), (4, "little"), (4, "big")])
def test_file_is_an_executable_of_its_class(word_size, byteorder):
    regions = [Region(".text", 0xC0000000, 0xC0001000, True)]
    elf = build(symbols((0xC0000010, "T", "f")), regions=regions, word_size=word_size, byteorder=byteorder)
    assert (elf.elfclass, elf.little_endian, elf["e_type"]) == (8 * word_size, byteorder == "little", "ET_EXEC")
    symbol = elf.get_section_by_name(".symtab").get_symbol(1)
    assert (symbol.name, symbol["st_value"], symbol["st_size"]) == ("f", 0xC0000010, 0xFF0)


def test_sections_have_addresses_and_no_bytes():
    text = build().get_section_by_name(".text")
    assert (text["sh_type"], text["sh_addr"], text["sh_size"], text["sh_flags"]) == ("SHT_NOBITS", TEXT, 0x1000, 6)


def test_functions_reach_to_the_next_symbol():
    got = found(symbols((TEXT, "T", "a"), (TEXT + 0x10, "t", "b"), (TEXT + 0x30, "W", "c"), (DATA, "D", "d")))
    assert got == {
        "a": (TEXT, 0x10, "FUNC", "GLOBAL"),
        "b": (TEXT + 0x10, 0x20, "FUNC", "LOCAL"),
        "c": (TEXT + 0x30, 0xFD0, "FUNC", "WEAK"),
        "d": (DATA, 0x1000, "OBJECT", "GLOBAL"),
    }


def test_local_symbols_come_first():
    section = build(symbols((TEXT, "T", "a"), (TEXT + 1, "t", "b"))).get_section_by_name(".symtab")
    assert [s.name for s in section.iter_symbols()] == ["", "b", "a"]
    assert section["sh_info"] == 2


def test_one_symbol_of_an_address_has_a_size():
    got = found(
        symbols(
            (TEXT, "T", "_stext"),
            (TEXT, "t", "local"),
            (TEXT, "T", "global"),
            (TEXT, "T", "alias"),
            (TEXT + 8, "T", "__sched_text_start"),
            (TEXT + 8, "t", "__schedule"),
            (TEXT + 16, "T", "end"),
        )
    )
    assert {name for name, (_, size, _, _) in got.items() if size} == {"global", "__schedule", "end"}


def test_a_label_that_is_alone_has_a_size():
    assert found(symbols((TEXT, "T", "_stext"), (TEXT + 8, "T", "f")))["_stext"][1] == 8


def test_symbols_outside_of_sections_are_absolute():
    section = build(symbols((0x100, "A", "percpu"), (TEXT, "a", "odd"))).get_section_by_name(".symtab")
    assert {s.name: s["st_shndx"] for s in list(section.iter_symbols())[1:]} == {"percpu": "SHN_ABS", "odd": "SHN_ABS"}


def test_tables_are_joined():
    got = found(symbols((TEXT, "T", "a")), symbols((DATA, "d", "b"), (DATA + 8, "d", "c")))
    assert set(got) == {"a", "b", "c"}


def test_build_id_is_a_note_in_section_and_segment():
    elf = build(build_id=bytes(range(20)))
    notes = list(elf.get_section_by_name(".note.gnu.build-id").iter_notes())
    assert [n["n_desc"] for n in notes] == [bytes(range(20)).hex()]
    (segment,) = elf.iter_segments()
    assert (segment["p_type"], [n["n_desc"] for n in segment.iter_notes()]) == ("PT_NOTE", [bytes(range(20)).hex()])


def test_without_build_id_there_is_no_segment():
    elf = build()
    assert (elf.num_segments(), elf.get_section_by_name(".note.gnu.build-id")) == (0, None)


def test_frames_come_with_a_unit_of_debug_information():
    """Else gdb would look for the file's debug information elsewhere."""
    units = list(build(frames=bytes(8)).get_dwarf_info().iter_CUs())
    assert [unit.get_top_DIE().tag for unit in units] == ["DW_TAG_compile_unit"]
