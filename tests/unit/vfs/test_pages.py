"""/pages: names, listing, attributes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.bitmap import Bitmap
from dumpfs.ranges import RangeSet
from dumpfs.vfs.node import make_ino
from dumpfs.vfs.views import pages
from tests.unit.vfs.fakes import PAGE, E, FakeImage, L, S, fake_dump


def folder(states: dict, **options: object) -> pages.PagesDir:
    return fake_dump(FakeImage(states), **options).tree.lookup_path("pages")


@pytest.mark.parametrize("name", ["5", "0x5", "0X5", "0x0005"])
def test_name_of_a_page(name):
    assert folder({5: S}).lookup(name).pfn == 5


@pytest.mark.parametrize(
    "name", ["", "05", "+5", " 5", "5 ", "5_0", "0x", "0x_5", "0b1", "５", "-5", "x5", "5.0", "9" * 40]
)
def test_name_of_no_page(name):
    assert folder({5: S, 50: S}).lookup(name) is None


def test_hexadecimal_name_is_the_same_file():
    d = folder({0x1F: S})
    assert d.lookup("0x1f").ino == d.lookup("31").ino


def test_only_stored_pages_are_listed():
    assert [e[1] for e in folder({1: S, 2: E, 3: L, 9: S}).entries(0)] == [b"1", b"9"]


def listing(members: set[int], cookie: int = 0) -> list:
    bits = bytearray(max(members, default=0) // 8 + 1)
    for m in members:
        bits[m // 8] |= 1 << m % 8
    image = FakeImage({0: S})
    image.stored = Bitmap.from_bytes(bytes(bits))
    return list(fake_dump(image).tree.lookup_path("pages").entries(cookie))


def expected(members: set[int], cookie: int = 0) -> list:
    return [(m + 1, b"%d" % m, make_ino(pages.SPACE, m)) for m in sorted(members) if m + 1 > cookie]


RANDOM = random.Random(5)
SETS = {
    "none": set(),
    "one": {4095},
    "all of a window": set(range(4096, 8192)),
    "every second": set(range(0, 20000, 2)),
    "dense": {p for p in range(20000) if RANDOM.random() < 0.8},
    "sparse": {RANDOM.randrange(10**6) for _ in range(300)},
    "short runs over window ends": {p for e in range(4096, 40960, 4096) for p in range(e - 3, e + 3)},
    "long runs": {p for a in range(0, 50000, 5000) for p in range(a, a + 1000)},
}


@pytest.mark.parametrize("members", SETS.values(), ids=SETS.keys())
def test_listing_is_the_set(members):
    assert listing(members) == expected(members)


@pytest.mark.parametrize("members", SETS.values(), ids=SETS.keys())
def test_listing_resumes_anywhere(members):
    for cookie in (1, 2, 63, 64, 4095, 4096, 4097, 5000, 30001):
        assert listing(members, cookie) == expected(members, cookie)


@given(st.sets(st.integers(0, 30000), max_size=200), st.integers(0, 31000))
def test_any_listing_resumes_anywhere(members, cookie):
    assert listing(members, cookie) == expected(members, cookie)


@pytest.mark.parametrize(("mode", "limit", "listed"), [("auto", 2, True), ("auto", 1, False), ("list", 1, True)])
def test_long_listing_depends_on_the_option(monkeypatch, mode, limit, listed):
    monkeypatch.setattr(pages, "MAX_LISTED", limit)
    d = folder({1: S, 2: S}, pages=mode)
    assert bool(list(d.entries(0))) is listed
    assert d.lookup("2") is not None


def test_unlisted_pages_are_explained_in_status():
    dump = fake_dump(FakeImage({1: S}), pages="open")
    assert list(dump.tree.lookup_path("pages").entries(0)) == []
    assert "/pages: its files can be opened by name, but are not listed (pages=open" in status(dump)


def status(dump) -> str:
    return dump.tree.lookup_path("status").read(0, 1 << 20).decode()


def test_attributes_of_a_stored_page():
    assert folder({5: S}).lookup("5").xattrs() == {
        "user.dumpfs.state": b"stored",
        "user.dumpfs.codec": b"zlib",
        "user.dumpfs.offset": b"500",
        "user.dumpfs.size": b"99",
        "user.dumpfs.flags": b"0x1",
    }


def test_attributes_say_why_a_page_is_lost():
    assert folder({5: L}).lookup("5").xattrs()["user.dumpfs.detail"] == b"cut short"


def test_part_of_a_page_is_read():
    node = folder({5: S}).lookup("5")
    whole = node.read(0, PAGE)
    assert node.read(10, 20) == whole[10:30]
    assert node.read(4000, 4096) == whole[4000:]
    assert node.read(0, 1 << 20) == whole
    assert node.size() == PAGE


def test_pages_are_the_kernels_where_the_dumps_blocks_are_larger():
    image = FakeImage({1: S}, block_size=65536, vmcoreinfo=b"OSRELEASE=6.1\nPAGESIZE=4096\n")
    dump = fake_dump(image)
    d = dump.tree.lookup_path("pages")
    assert [e[1] for e in d.entries(0)] == [b"%d" % p for p in range(16, 32)]
    assert d.lookup("17").read(0, PAGE) == image.content(1)[PAGE : 2 * PAGE]
    assert d.lookup("32") is None


def test_range_set_is_listed_too():
    image = FakeImage({0: S})
    image.stored = RangeSet([(1 << 40, (1 << 40) + 3), (1 << 44, (1 << 44) + 70)])
    entries = list(fake_dump(image).tree.lookup_path("pages").entries(0))
    assert len(entries) == 73
    assert entries[3][1] == b"%d" % (1 << 44)
