"""The rank bitmap: chunk borders, reading lazily, the end."""

from __future__ import annotations

import pytest

from dumpfs.bitmap import CHUNK_BYTES, CHUNK_PFNS, Bitmap
from dumpfs.errors import SourceError


def bitmap(*pfns: int, stop: int) -> Bitmap:
    data = bytearray((stop + 7) // 8)
    for pfn in pfns:
        data[pfn >> 3] |= 1 << (pfn & 7)
    return Bitmap.from_bytes(bytes(data), stop)


def test_empty_bitmap():
    empty = Bitmap.from_bytes(b"")
    assert (empty.stop, empty.count(), empty.rank(5), list(empty.runs())) == (0, 0, 0, [])


def test_least_significant_bit_comes_first():
    assert list(Bitmap.from_bytes(b"\x01\x80").members()) == [0, 15]


@pytest.mark.parametrize("pfn", [0, CHUNK_PFNS - 1, CHUNK_PFNS, 3 * CHUNK_PFNS + 17])
def test_one_member_anywhere(pfn):
    pages = bitmap(pfn, stop=4 * CHUNK_PFNS)
    assert list(pages.runs()) == [(pfn, pfn + 1)]
    assert pfn in pages
    assert (pages.find(pfn), pages.find(pfn + 1)) == (0, -1)
    assert (pages.rank(pfn), pages.rank(pfn + 1)) == (0, 1)


def test_a_run_may_cross_chunks():
    first, stop = CHUNK_PFNS - 3, 3 * CHUNK_PFNS + 5
    pages = bitmap(*range(first, stop), stop=4 * CHUNK_PFNS)
    assert list(pages.runs()) == [(first, stop)]
    assert list(pages.runs(CHUNK_PFNS, 2 * CHUNK_PFNS)) == [(CHUNK_PFNS, 2 * CHUNK_PFNS)]


def test_bits_at_and_above_the_end_are_ignored():
    pages = Bitmap.from_bytes(b"\xff\xff", 11)
    assert pages.count() == 11
    assert 11 not in pages
    assert list(pages.runs()) == [(0, 11)]
    assert pages.read_bits(0, 99) == b"\xff\x07"
    assert pages.rank(1 << 40) == 11


def test_a_bitmap_that_ends_early_reads_as_clear():
    pages = Bitmap(lambda offset, size: b"\xff"[offset : offset + size], 3 * CHUNK_PFNS)
    assert pages.count() == 8
    assert list(pages.runs()) == [(0, 8)]
    assert pages.read_bits(0, 4) == b"\xff\0\0\0"


def test_select_is_the_inverse_of_rank():
    members = (3, 4, CHUNK_PFNS, 2 * CHUNK_PFNS - 1)
    pages = bitmap(*members, stop=3 * CHUNK_PFNS)
    assert [pages.select(i) for i in range(5)] == [*members, 3 * CHUNK_PFNS]


def test_membership_reads_one_chunk_only():
    asked = []

    def read(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return b"\x01" + bytes(size - 1)

    pages = Bitmap(read, 1 << 30)
    assert 5 * CHUNK_PFNS in pages
    assert 5 * CHUNK_PFNS + 1 not in pages
    assert asked == [(5 * CHUNK_BYTES, CHUNK_BYTES)]


def test_members_may_start_anywhere():
    pages = bitmap(1, 2, 9, 4097, stop=8192)
    assert list(pages.members(2)) == [2, 9, 4097]


@pytest.mark.parametrize("other", [-1, "1", None], ids=repr)
def test_only_page_numbers_are_members(other):
    assert other not in Bitmap.from_bytes(b"\xff")


def test_a_listing_reads_ahead_and_a_bad_sector_there_costs_only_itself():
    data = bytearray(512 * 300)
    data[0] = data[-1] = 0x81
    asked: list[tuple[int, int]] = []
    bad = range(0)

    def read(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        if offset < bad.stop and offset + size > bad.start:
            raise SourceError("dump", "reading failed")
        return bytes(data[offset : offset + size])

    last = 8 * len(data)
    wanted = [(0, 1), (7, 8), (last - 8, last - 7), (last - 1, last)]
    assert list(Bitmap(read, last).runs()) == wanted
    assert len(asked) < 16
    assert asked[0] == (0, 512)
    bad = range(512 * 250, 512 * 251)
    runs = Bitmap(read, last).runs(0, 8 * 512 * 260)
    assert [next(runs), next(runs)] == wanted[:2]
    with pytest.raises(SourceError):
        next(runs)
    assert list(Bitmap(read, last).runs(0, 8 * bad.start)) == wanted[:2]
