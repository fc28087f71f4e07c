"""Call frame information, by pyelftools."""

from __future__ import annotations

import io

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from dumpfs.elf.callframes import (
    AARCH64_REGISTERS,
    X86_64_REGISTERS,
    Coverage,
    FrameKind,
    FrameSection,
    advance,
    def_cfa,
    def_cfa_indirect,
    saved_at_cfa,
    saved_at_register,
    sleb,
    uleb,
    undefined,
    unsaved,
)
from dumpfs.elf.symbolfile import SymbolFile

RBP, RSP, RIP = 6, 7, 16
CALL = FrameKind(RIP, def_cfa(RSP, 8) + saved_at_cfa(RIP, -8))
START = 0xFFFFFFFF81000000


def decode(*coverages: Coverage, word_size: int = 8, byteorder: str = "little") -> list[FDE]:
    section = FrameSection(word_size, byteorder)
    section.add(coverages)
    data = SymbolFile("x86_64", word_size, byteorder, b"", [], [], section.build()).build()
    entries = ELFFile(io.BytesIO(data)).get_dwarf_info().CFI_entries()
    return [entry for entry in entries if isinstance(entry, FDE)]


def table(*rows: tuple[int, bytes], kind: FrameKind = CALL) -> list[dict]:
    (fde,) = decode(Coverage(START, START + 0x100000, kind, rows))
    return fde.get_decoded().table


@pytest.mark.parametrize(("number", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (624485, "e58e26")])
def test_unsigned_numbers(number, encoded):
    assert uleb(number).hex() == encoded


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, "00"), (2, "02"), (-2, "7e"), (63, "3f"), (64, "c000"), (-64, "40"), (-128, "807f")]
)
def test_signed_numbers(number, encoded):
    assert sleb(number).hex() == encoded


def test_registers_have_the_psabis_numbers():
    assert [X86_64_REGISTERS[name] for name in ("rax", "rdx", "rbp", "rsp", "r8", "r15", "rip")] == [
        *(0, 1, 6, 7, 8, 15, 16)
    ]
    assert (AARCH64_REGISTERS["x29"], AARCH64_REGISTERS["x30"], AARCH64_REGISTERS["sp"]) == (29, 30, 31)


def test_fde_covers_its_range():
    (fde,) = decode(Coverage(START, START + 0x40, CALL, ((START, b""),)))
    assert (fde.header.initial_location, fde.header.address_range) == (START, 0x40)
    assert fde.cie.header.return_address_register == RIP


def test_fdes_of_one_kind_share_a_cie():
    fdes = decode(*(Coverage(START + n, START + n + 1, CALL, ((START + n, b""),)) for n in range(3)))
    assert len({fde.cie.offset for fde in fdes}) == 1


@pytest.mark.parametrize("distance", [1, 63, 64, 255, 256, 65535, 65536])
def test_rows_begin_where_they_are_said_to(distance):
    rows = table((START, def_cfa(RSP, 8)), (START + distance, def_cfa(RSP, 16)))
    assert [(row["pc"], row["cfa"].offset) for row in rows] == [(START, 8), (START + distance, 16)]


def test_a_row_may_undo_the_one_before():
    saved, again = saved_at_cfa(RBP, -16), unsaved(RBP)
    rows = table((START, def_cfa(RSP, 16) + saved), (START + 4, def_cfa(RSP, 8) + again))
    assert rows[0][RBP].arg == -16
    assert RBP not in rows[1]


def test_frame_address_below_a_register_and_by_memory():
    rows = table(
        (START, def_cfa(RBP, -8)), (START + 1, def_cfa_indirect(RBP, -8)), (START + 2, def_cfa_indirect(RSP, 0, 16))
    )
    assert [bytes(row["cfa"].expr).hex() for row in rows] == ["7678", "767806", "77000623" + "10"]


def test_a_negative_amount_is_added_to_what_memory_holds():
    (row,) = table((START, def_cfa_indirect(RSP, 0, -8)))
    assert bytes(row["cfa"].expr).hex() == "7700060f" + "f8ffffffffffffff" + "22"


def test_register_saved_beside_another():
    (row,) = table((START, saved_at_register(RBP, RBP, 0)))
    assert bytes(row[RBP].arg).hex() == "7600"


def test_undefined_return_address():
    (row,) = table((START, b""), kind=FrameKind(RIP, def_cfa(RSP, 8) + undefined(RIP)))
    assert row[RIP].type == "UNDEFINED"


def test_signal_frames_say_so():
    (fde,) = decode(Coverage(START, START + 1, FrameKind(RIP, def_cfa(RSP, 8), signal=True), ((START, b""),)))
    assert fde.cie.header.augmentation == b"zS"


def test_big_endian_and_small_words():
    (fde,) = decode(Coverage(0xC0000000, 0xC0000400, CALL, ((0xC0000200, b""),)), word_size=4, byteorder="big")
    assert (fde.header.initial_location, fde.header.address_range) == (0xC0000000, 0x400)


@pytest.mark.parametrize("offset", [-4, 8])
def test_registers_that_cannot_be_saved_there_are_refused(offset):
    with pytest.raises(ValueError, match="a register saved at CFA"):
        saved_at_cfa(RBP, offset)


def test_long_advances_have_the_targets_byte_order():
    assert advance(0x1234, "big").hex() == "031234"
    assert advance(0x12345678, "little").hex() == "0478563412"
