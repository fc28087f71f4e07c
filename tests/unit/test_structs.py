"""Layouts: offsets follow the C compiler's rules, and parsing undoes building."""

from __future__ import annotations

import struct

import pytest

from dumpfs.structs import BE64, LE64, Abi, Layout

RECORD = Layout("record", [("a", "u8"), ("b", "u64"), ("c", "ulong"), ("d", "char[3]"), ("e", "u16")])
I386 = Abi("little", 4, 4)
ARM = Abi("little", 4, 8)
PACKED = Abi("big", 4, 1)


@pytest.mark.parametrize(
    ("abi", "offsets", "size"),
    [
        pytest.param(LE64, (0, 8, 16, 24, 28), 32, id="x86_64"),
        pytest.param(BE64, (0, 8, 16, 24, 28), 32, id="s390x"),
        pytest.param(I386, (0, 4, 12, 16, 20), 24, id="i386"),
        pytest.param(ARM, (0, 8, 16, 20, 24), 32, id="arm"),
        pytest.param(PACKED, (0, 1, 9, 13, 16), 18, id="packed"),
    ],
)
def test_offsets_follow_the_abi(abi, offsets, size):
    assert tuple(RECORD.offset(abi, name) for name in "abcde") == offsets
    assert RECORD.size(abi) == size


@pytest.mark.parametrize("abi", [LE64, BE64, I386, ARM, PACKED], ids=repr)
def test_parse_undoes_build(abi):
    values = {"a": 0xFE, "b": 0x0123456789ABCDEF, "c": 0xDEADBEEF, "d": b"xyz", "e": 0x1234}
    data = RECORD.build(abi, values)
    assert len(data) == RECORD.size(abi)
    assert RECORD.parse(abi, data) == values


def test_integers_are_stored_in_the_byte_order_of_the_abi():
    word = Layout("word", [("value", "u32")])
    assert word.build(LE64, {"value": 1}) == b"\1\0\0\0"
    assert word.build(BE64, {"value": 1}) == b"\0\0\0\1"


def test_fields_that_are_not_given_are_zero():
    assert RECORD.build(LE64, {}) == bytes(32)


def test_signed_fields_keep_their_sign():
    signed = Layout("signed", [("a", "i16"), ("b", "i32"), ("c", "long"), ("d", "i64")])
    values = {"a": -1, "b": -2, "c": -3, "d": -4}
    assert signed.parse_ints(ARM, signed.build(ARM, values)) == values


def test_parse_takes_an_offset():
    data = b"junk" + RECORD.build(LE64, {"a": 7})
    assert RECORD.parse(LE64, data, 4)["a"] == 7


def test_parse_ints_leaves_out_text():
    assert "d" not in RECORD.parse_ints(LE64, bytes(32))


def test_short_data_is_refused():
    with pytest.raises(struct.error):
        RECORD.parse(LE64, bytes(31))


def test_tail_padding_can_be_left_out():
    fields = [("a", "u64"), ("b", "u8")]
    assert Layout("padded", fields).size(LE64) == 16
    assert Layout("bare", fields, tail_padding=False).size(LE64) == 9
