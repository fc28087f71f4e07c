"""LiME images read as the ranges they hold."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import CorruptDumpError, DumpfsError, UnsupportedFeatureError
from dumpfs.formats.lime import open_lime, probe
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState
from tests.build.lime import build_lime

PAGE = 4096
SPAN = 6 * PAGE
MEMORY = random.Random(2).randbytes(SPAN)
RANGES = st.lists(st.tuples(st.integers(0, SPAN - 1), st.integers(1, SPAN)), min_size=1, max_size=5)


def opened(data: bytes):
    return open_lime([MemorySource(data, "image")])


def header(first: int, last: int, magic: int = 0x4C694D45, version: int = 1, order: str = "<") -> bytes:
    return struct.pack(order + "IIQQ8x", magic, version, first, last)


@given(RANGES)
def test_any_ranges_read_as_the_memory_they_hold(ranges):
    image = opened(build_lime([(a, MEMORY[a : a + n]) for a, n in ranges]))
    there = bytearray(SPAN)
    for first, size in ranges:
        there[first : first + size] = b"\1" * (min(first + size, SPAN) - first)
    data, states = image.read_run(0, 6)
    assert data == bytes(b * t for b, t in zip(MEMORY, there, strict=True))
    for pfn in range(6):
        part = there[pfn * PAGE : (pfn + 1) * PAGE]
        if not any(part):
            assert states[pfn] == PageState.ABSENT
        elif part[0] and part[-1]:
            assert states[pfn] == PageState.STORED
        else:
            assert states[pfn] == PageState.PARTIAL
            assert image.partial[pfn] == (part.index(1), part.rindex(1) + 1)
    assert image.meta.complete


def test_big_endian_headers_are_read():
    image = opened(header(0, PAGE - 1, order=">") + MEMORY[:PAGE])
    assert image.meta.byteorder == "big"
    assert image.read_page(0)[0] == MEMORY[:PAGE]


def test_end_of_a_cut_last_range_is_lost():
    built = build_lime([(0, MEMORY[:PAGE]), (PAGE, MEMORY[PAGE : 4 * PAGE])])
    image = opened(built[: -PAGE - 10])
    assert image.read_run(0, 4)[1] == bytes([0, 0, PageState.LOST, PageState.LOST])
    assert not image.meta.complete
    assert "last range reaches to" in image.meta.incomplete_reason


@pytest.mark.parametrize(
    ("tail", "complaint"),
    [
        (b"\0" * 31 + b"\1", "magic 0x0"),
        (b"EMiL", "inside a range header"),
        (header(5, 4), "impossible range"),
        (header(0, (1 << 64) - 1), "impossible range"),
    ],
)
def test_what_precedes_a_bad_range_is_served(tail, complaint):
    image = opened(build_lime([(0, MEMORY[:PAGE])]) + tail)
    assert image.read_page(0)[0] == MEMORY[:PAGE]
    assert complaint in image.meta.incomplete_reason


@pytest.mark.parametrize("data", [b"EMiL", header(5, 4) + b"x", header(0, 1, magic=7)])
def test_bad_first_range_is_corrupt(data):
    with pytest.raises(CorruptDumpError):
        opened(data)


def test_other_versions_are_refused():
    with pytest.raises(UnsupportedFeatureError, match="version 2"):
        opened(header(0, 0, version=2) + b"x")


def test_every_cut_gives_an_image_or_an_error():
    built = build_lime([(0, b"x" * 40), (100, b"y" * 40)])
    for cut in range(len(built) + 1):
        try:
            image = opened(built[:cut])
        except DumpfsError:
            assert cut < 32
        else:
            assert image.meta.complete == (cut in (72, 144))


@pytest.mark.parametrize(("head", "answer"), [(b"EMiL", True), (b"LiME", True), (b"EMi", False), (b"", False)])
def test_probe_never_raises(head, answer):
    assert probe(head) is answer


@pytest.mark.parametrize("padding", [1, 31, 32, 4096, 3 << 20])
def test_zeros_behind_the_last_range_are_padding(padding):
    image = opened(build_lime([(0, MEMORY[:PAGE])]) + bytes(padding))
    assert image.meta.complete
    assert image.stored.count() == 1


def test_more_than_zeros_behind_the_last_range_is_a_complaint():
    image = opened(build_lime([(0, MEMORY[:PAGE])]) + bytes(4096) + b"x")
    assert not image.meta.complete
