"""Batches that the loop in C encodes are what the Python code would have made of them, or decode to the same pages."""

from __future__ import annotations

import random
from array import array

import pytest

from dumpfs.codecs.registry import CODEC_FLAGS, codec
from dumpfs.native import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")

PAGE = 4096
LOST, ZERO = 2, 1


def pages_of_all_kinds() -> list[bytes]:
    rng = random.Random(7)
    kinds = [b"text %d " * 600, rng.randbytes(PAGE), bytes(PAGE), bytes(PAGE - 1) + b"\1", b"\1" + bytes(PAGE - 1)]
    kinds += [bytes(PAGE // 2 - 1) + b"\1" + bytes(PAGE // 2), rng.randbytes(PAGE - 900) + bytes(900)]
    return [rng.choice(kinds)[:PAGE] for _ in range(120)]


def encode(flag: int, pages: list[bytes], kinds: bytearray, zero_kind: int) -> list[bytes]:
    """The stored form of each page; b'' where none is."""
    from dumpfs.native.loops import encode

    blob, sizes, flags = encode(flag, b"".join(pages), PAGE, kinds, zero_kind)
    stored, position = [], 0
    for size, used in zip(array("I", sizes), array("I", flags), strict=True):
        assert used == (flag if 0 < size < PAGE else 0)
        stored.append(bytes(blob[position : position + size]))
        position += size
    assert position == len(blob)
    return stored


def decoded(flag: int, stored: bytes) -> bytes:
    return stored if len(stored) == PAGE else codec(flag).decode_page(stored, PAGE)


@pytest.mark.parametrize("flag", CODEC_FLAGS)
def test_pages_decode_to_what_they_were(flag):
    pages = pages_of_all_kinds()
    kinds = bytearray(len(pages))
    for page, stored in zip(pages, encode(flag, pages, kinds, 0), strict=True):
        assert decoded(flag, stored) == page
    assert not any(kinds)


@pytest.mark.parametrize("flag", CODEC_FLAGS)
def test_zero_pages_may_share_a_copy_and_lost_ones_have_nothing(flag):
    pages = pages_of_all_kinds()
    kinds = bytearray(LOST if i % 11 == 0 else 0 for i in range(len(pages)))
    stored = encode(flag, pages, kinds, ZERO)
    for i, page in enumerate(pages):
        wanted = LOST if i % 11 == 0 else ZERO if not any(page) else 0
        assert kinds[i] == wanted
        assert (decoded(flag, stored[i]) == page) if not wanted else not stored[i]


def test_a_codec_without_library_and_odd_data_are_refused():
    from dumpfs.native.loops import encode, has_codec

    assert not has_codec(0x8)
    for arguments in (
        (0x8, bytes(PAGE), PAGE, bytearray(1), 0),
        (1, bytes(PAGE), PAGE, bytearray(2), 0),
        (1, bytes(PAGE - 1), PAGE, bytearray(1), 0),
        (1, bytes(PAGE), 0, bytearray(1), 0),
        (1, bytes(1 << 17), 1 << 17, bytearray(1), 0),
    ):
        with pytest.raises(ValueError):
            encode(*arguments)
    with pytest.raises((TypeError, BufferError)):
        encode(1, bytes(PAGE), PAGE, b"\0", 0)
    assert encode(1, b"", PAGE, bytearray(), 0)[1:] == (b"", b"")
