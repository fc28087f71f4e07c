"""ORC tables: the bits of both kinds of entry, and finding the entry of an instruction."""

from __future__ import annotations

import struct

import pytest

from dumpfs.errors import CorruptDumpError, DumpfsError
from dumpfs.linux.btf import Btf
from dumpfs.linux.orc import OrcFormat, OrcReg, OrcTable, OrcType
from dumpfs.linux.types import Types
from tests.build.btf import BtfBuilder
from tests.unit.linux.kernelmem import Memory

TEXT, IPS, ENTRIES = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000, 0xFFFFFFFF82100000

OLD = ["sp_reg:4", "bp_reg:4", "type:2", "end:1"]
SIGNAL = ["sp_reg:4", "bp_reg:4", "type:2", "signal:1", "end:1"]
NEW = ["sp_reg:4", "bp_reg:4", "type:3", "signal:1"]


def orc_types(fields: list[str]) -> Types:
    b = BtfBuilder()
    s16, unsigned = b.integer("s16", 2), b.integer("unsigned int", 4)
    members = [("sp_offset", s16, 0), ("bp_offset", s16, 16)]
    position = 32
    for field in fields:
        name, _, width = field.partition(":")
        members.append((name, unsigned, position | int(width) << 24))
        position += int(width)
    b.struct("orc_entry", 6, members, flag=True)
    return Types(Btf(b.build(), 8))


@pytest.mark.parametrize(
    ("fields", "bits", "kind", "signal"),
    [
        (OLD, 0b000, OrcType.CALL, False),
        (OLD, 0b001, OrcType.REGS, True),
        (OLD, 0b010, OrcType.REGS_PARTIAL, True),
        (OLD, 0b100, OrcType.END_OF_STACK, False),
        (SIGNAL, 0b0101, OrcType.REGS, True),
        (SIGNAL, 0b0001, OrcType.REGS, False),
        (SIGNAL, 0b1000, OrcType.END_OF_STACK, False),
        (NEW, 0b0000, OrcType.UNDEFINED, False),
        (NEW, 0b0001, OrcType.END_OF_STACK, False),
        (NEW, 0b0010, OrcType.CALL, False),
        (NEW, 0b1011, OrcType.REGS, True),
        (NEW, 0b0100, OrcType.REGS_PARTIAL, False),
        (NEW, 0b0111, OrcType.UNDEFINED, False),
    ],
)
def test_type_is_read_from_every_layout(fields, bits, kind, signal):
    entry = OrcFormat(orc_types(fields)).decode(struct.pack("<hhBB", -8, -16, 0x15, bits))
    assert (entry.sp_offset, entry.bp_offset, entry.sp_reg, entry.bp_reg) == (-8, -16, OrcReg.SP, OrcReg.PREV_SP)
    assert (entry.type, entry.signal) == (kind, signal)


def put_table(memory: Memory, starts: list[int]) -> None:
    for number, start in enumerate(starts):
        memory.put(IPS + 4 * number, start - (IPS + 4 * number), 4)
        memory.write(ENTRIES + 6 * number, struct.pack("<hhBB", number, 0, 0x05, 2))


@pytest.mark.parametrize(("inside", "number"), [(0, 0), (15, 0), (16, 1), (99, 1), (100, 2), (1 << 20, 2)])
def test_entry_before_an_instruction_is_its(inside, number):
    memory = Memory()
    put_table(memory, [TEXT, TEXT + 16, TEXT + 100])
    table = OrcTable(memory.space, IPS, ENTRIES, 3)
    assert table.find(TEXT + inside) == memory.space.read(ENTRIES + 6 * number, 6)
    assert OrcTable.thaw(table.freeze()).find(TEXT + inside) == table.find(TEXT + inside)


def test_code_before_the_first_entry_has_none():
    memory = Memory()
    put_table(memory, [TEXT])
    assert OrcTable(memory.space, IPS, ENTRIES, 1).find(TEXT - 1) is None


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
def test_impossible_length_is_refused(count):
    with pytest.raises(CorruptDumpError):
        OrcTable(Memory().space, IPS, ENTRIES, count)


def test_table_that_is_not_in_the_dump_is_an_error():
    with pytest.raises(DumpfsError):
        OrcTable(Memory().space, IPS, ENTRIES, 3)
