"""BTF: structures, anonymous members, bit-fields, arrays; and blobs that are none."""

from __future__ import annotations

import pytest

from dumpfs.errors import CorruptDumpError, DumpfsError, TruncatedDumpError
from dumpfs.linux.btf import Btf, Kind
from dumpfs.linux.records import member_value
from dumpfs.linux.types import Member, MissingTypeError, Types, split_path
from tests.build.btf import BtfBuilder


def build(byteorder: str = "little") -> bytes:
    b = BtfBuilder(byteorder)
    u32, u64, char = b.integer("u32", 4), b.integer("u64", 8), b.integer("char", 1)
    listed = b.struct("list_head", 16, [("next", b.pointer(), 0), ("prev", b.pointer(), 64)])
    inner = b.struct("", 8, [("low", u32, 0), ("high", u32, 32)])
    either = b.struct("", 8, [("whole", u64, 0), ("", inner, 0)], union=True)
    memory = b.struct("memory", 16, [("base", b.pointer(), 0), ("size", u32, 64)])
    b.typedef("memory_t", b.typedef("memory_alias", memory))
    b.struct(
        "task",
        128,
        [
            ("tasks", listed, 0),
            ("", either, 128),
            ("comm", b.array(char, 16), 192),
            ("mem", b.array(memory, 3), 320),
            ("bits", u32, 704 | 5 << 24),
            ("more", u32, 709 | 11 << 24),
        ],
        flag=True,
    )
    b.struct("old", 8, [("a", b.integer("u3", 4, 3), 0), ("b", u32, 32)])
    b.enum("state", {"STATE_ON": 1, "STATE_OFF": -1, "OTHER": 7})
    return b.build()


def btf(byteorder: str = "little") -> Btf:
    return Btf(build(byteorder), 8)


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("tasks", Member(0, 16)),
        ("tasks.prev", Member(8, 8)),
        ("whole", Member(16, 8)),
        ("high", Member(20, 4)),
        ("comm", Member(24, 16, length=16)),
        ("comm[3]", Member(27, 1)),
        ("mem", Member(40, 48, length=3)),
        ("mem[2].size", Member(80, 4)),
        ("bits", Member(88, 4, 0, 5)),
        ("more", Member(88, 4, 5, 11)),
    ],
)
def test_member_is_where_the_compiler_put_it(byteorder, path, member):
    assert btf(byteorder).member("task", path) == member


@pytest.mark.parametrize("path", ["nothing", "tasks.nothing", "comm.next", "mem.base", "whole[1]", "low.high"])
def test_missing_member_is_told(path):
    with pytest.raises(MissingTypeError, match="struct task"):
        btf().member("task", path)


def test_missing_structure_is_told():
    with pytest.raises(MissingTypeError, match="not in the BTF"):
        btf().size("nothing")


def test_width_of_an_old_bit_field_is_its_types():
    assert btf().member("old", "a") == Member(0, 4, 0, 3)
    assert btf().member("old", "b") == Member(4, 4)


def test_typedef_of_a_structure_serves_as_its_name():
    assert btf().size("memory_t") == 16
    assert btf().member("memory_t", "size").offset == 8


def test_enumerators_are_found_by_prefix():
    assert btf().enumerators("STATE_") == {"STATE_ON": 1, "STATE_OFF": -1}


def test_name_is_looked_up_whole():
    assert not btf().find("tas", Kind.STRUCT)
    assert btf().name(btf().find("task", Kind.STRUCT)) == "task"


def test_frozen_types_are_the_same():
    types = btf()
    again = Btf.thaw(8, "test", types.freeze())
    assert again.member("task", "mem[1].base") == types.member("task", "mem[1].base")


def test_first_name_that_exists_is_taken():
    types = Types(btf())
    assert types.offset("task", "nothing", "comm") == 24
    assert types.find("task", "nothing") is None
    assert not types.has("nothing", "comm")


@pytest.mark.parametrize(("byteorder", "value"), [("little", 0b10110), ("big", 0b00001)])
def test_bit_field_value_follows_the_byte_order(byteorder, value):
    assert member_value(b"\x0b\x0d", Member(0, 4, 0, 5), "little") == 0x0B
    data = (0b0000_1101_1011_0110).to_bytes(2, byteorder)
    assert member_value(data, Member(0, 4, 0, 5), byteorder) == value


def test_signed_bit_field_is_negative():
    assert member_value(b"\x1f", Member(0, 4, 0, 5), "little", signed=True) == -1


@pytest.mark.parametrize("path", ["", ".", "a.", "a[", "a[x]", "a[1"])
def test_nonsense_is_no_path(path):
    with pytest.raises(ValueError):
        split_path(path)


@pytest.mark.parametrize("size", range(0, 24, 5))
def test_too_few_bytes_for_a_header(size):
    with pytest.raises(TruncatedDumpError):
        Btf(build()[:size], 8)


def test_types_cut_off_are_told():
    with pytest.raises(DumpfsError):
        Btf(build()[:-1], 8)


@pytest.mark.parametrize("offset", [0, 2, 8, 12, 16, 20])
@pytest.mark.parametrize("value", [0, 1, 0xFF, 0xFFFFFFFF])
def test_damaged_header_is_refused_or_read(offset, value):
    data = bytearray(build())
    data[offset : offset + 4] = value.to_bytes(4, "little")
    try:
        Btf(bytes(data), 8)
    except (CorruptDumpError, TruncatedDumpError):
        pass


def test_structure_inside_itself_ends():
    b = BtfBuilder()
    b.struct("loop", 8, [("", 1, 0), ("x", b.count + 2, 0)])
    b.integer("u32", 4)
    types = Btf(b.build(), 8)
    assert types.member("loop", "x").offset == 0
    with pytest.raises(MissingTypeError):
        types.member("loop", "y")


def test_typedef_of_itself_ends():
    b = BtfBuilder()
    b.typedef("loop", 1)
    assert Btf(b.build(), 8).type_size(1) == 0
