"""A dump opened lazily."""

from __future__ import annotations

import pytest

from dumpfs.bitmap import Bitmap
from dumpfs.errors import PageError, SourceError, VmcoreinfoError
from dumpfs.memory.physical import HolePolicy
from dumpfs.ranges import RangeSet, last_stop
from dumpfs.units import PageState
from dumpfs.vfs.context import Dump, LocalCounters, OpenOptions
from tests.unit.vfs.fakes import PAGE, FakeImage, S, fake_dump, fake_kernel

TEXT = b"OSRELEASE=6.1\nPAGESIZE=4096\nCRASHTIME=1700000000\n"


@pytest.fixture
def opened(monkeypatch):
    """Makes `Dump.open` find a fake image, and tells whether the image was closed."""
    import dumpfs.formats

    images = []

    def open_image(paths, format=None, pieces=()):
        images.append(FakeImage({0: S}, vmcoreinfo=TEXT))
        return images[-1]

    monkeypatch.setattr(dumpfs.formats, "open_image", open_image)
    return images


def test_opening_finds_nothing_out(opened):
    dump = Dump.open(["a", "b"])
    assert not {"kernel", "phys", "stop_pfn", "tree"} & vars(dump).keys()
    assert all(path.startswith("/") for path in dump.paths)


def test_closing_closes_the_image(opened):
    with Dump.open(["a"]):
        pass
    assert opened[0].closed


def test_file_that_is_no_vmcoreinfo_is_refused(opened, tmp_path):
    for name, data in (("elf", b"\x7fELF=..."), ("binary", b"\0" * 100), ("huge", b"A=1\n" * (1 << 18) + b"B=")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match="not a VMCOREINFO"):
            Dump.open(["a"], OpenOptions(vmcoreinfo=str(tmp_path / name)))
    with pytest.raises(SourceError, match="No such file"):
        Dump.open(["a"], OpenOptions(vmcoreinfo=str(tmp_path / "none")))
    assert not opened


def test_useless_vmcoreinfo_is_told_at_once_and_the_dump_closed(opened, tmp_path):
    (tmp_path / "info").write_bytes(b"A=1\n")
    with pytest.raises(VmcoreinfoError):
        Dump.open(["a"], OpenOptions(vmcoreinfo=str(tmp_path / "info")))
    assert opened[0].closed


def test_given_vmcoreinfo_comes_before_the_dumps_own(opened, tmp_path):
    (tmp_path / "info").write_bytes(b"OSRELEASE=mine\n")
    dump = Dump.open(["a"], OpenOptions(vmcoreinfo=str(tmp_path / "info")))
    assert dump.vmcoreinfo_text == b"OSRELEASE=mine\n"
    assert dump.tree.lookup_path("vmcoreinfo").read(0, 100) == b"OSRELEASE=mine\n"


def test_vmcoreinfo_ends_at_its_first_nul():
    assert fake_dump(FakeImage({0: S}, vmcoreinfo=TEXT + bytes(100))).header_vmcoreinfo == TEXT


@pytest.mark.parametrize("text", [b"", b"\0\0", None])
def test_empty_vmcoreinfo_is_none(text):
    assert fake_dump(FakeImage({0: S}, vmcoreinfo=text)).vmcoreinfo_text is None


@pytest.mark.parametrize(
    ("text", "timestamp", "expected"),
    [
        (TEXT, 5.0, 1_700_000_000),
        (b"CRASHTIME=rubbish\n", 5.0, 5),
        (b"A=1\n", 5.0, 5),
        (None, 5.0, 5),
        (b"CRASHTIME=99999999999999\n", None, 0),
    ],
)
def test_crash_time(text, timestamp, expected):
    assert fake_dump(FakeImage({0: S}, vmcoreinfo=text, timestamp=timestamp)).crash_time_ns == expected * 10**9


def test_crash_time_falls_back_on_the_files(tmp_path):
    (tmp_path / "dump").write_bytes(b"")
    dump = Dump(FakeImage({0: S}), paths=["/gone", str(tmp_path / "dump")])
    assert dump.crash_time_ns == (tmp_path / "dump").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("block", "text", "kernel_says", "expected"),
    [
        (4096, None, 4096, 4096),
        (65536, b"PAGESIZE=4096\n", 65536, 4096),
        (65536, None, 4096, 4096),
        (65536, b"PAGESIZE=rubbish\n", 65536, 65536),
        (4096, b"PAGESIZE=65536\n", 65536, 4096),
    ],
)
def test_page_size(block, text, kernel_says, expected):
    image = FakeImage({0: S}, block_size=block, vmcoreinfo=text)
    assert fake_dump(image, fake_kernel(page_size=kernel_says)).phys.page_size == expected


def test_strict_memory_knows_no_holes():
    dump = fake_dump(FakeImage({0: S, 1: PageState.EXCLUDED}))
    assert dump.phys.read(PAGE, 4) == bytes(4)
    assert dump.strict.policy is HolePolicy.ERROR
    with pytest.raises(PageError):
        dump.strict.read(PAGE, 4)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (RangeSet(), 0),
        (RangeSet([(5, 7)]), 7),
        (Bitmap.from_bytes(bytes(100_000)), 0),
        (Bitmap.from_bytes(b"\x05" + bytes(100_000)), 3),
        (Bitmap.from_bytes(bytes(100_000) + b"\x80" + bytes(7)), 800_008),
        (Bitmap.from_bytes(b"\xff" * 100, 333), 333),
    ],
)
def test_last_member(members, expected):
    assert last_stop(members) == expected


def test_memory_ends_with_the_last_ram_page_and_not_with_the_bitmap():
    image = FakeImage({0: S})
    image.ram = Bitmap.from_bytes(b"\x07" + bytes(1000))
    dump = fake_dump(image)
    assert dump.memory_size == 3 * PAGE
    assert dump.tree.lookup_path("hmem").size() == 3 * PAGE


def test_stored_bytes_of_a_large_dump_are_an_estimate():
    image = FakeImage({0: S})
    image.ram = RangeSet([(0, 1 << 28)])
    image.stored = Bitmap.from_bytes(b"\x0f\0\0\0" * (1 << 23))
    assert fake_dump(image).stored_bytes == (1 << 25) * PAGE


def test_counters_name_each_bad_page_once():
    counters = LocalCounters()
    errors = [PageError(p, PageState.CORRUPT, why) for p, why in ((5, "x"), (6, "x"), (8, "x"), (7, "y"))]
    assert [counters.bad_page(e) for e in errors] == [True] * 4
    assert not counters.bad_page(errors[0])
    assert counters.bad_runs() == [(5, 7, "x"), (7, 8, "y"), (8, 9, "x")]


def test_counters_are_bounded(monkeypatch):
    monkeypatch.setattr(LocalCounters, "MAX_RUNS", 2)
    counters = LocalCounters()
    for pfn in range(5):
        counters.bad_page(PageError(pfn, PageState.LOST))
    assert counters.values() == {"bad_pages_not_named": 3}


def test_pages_left_out_on_purpose_are_not_bad():
    counters = LocalCounters()
    assert not counters.bad_page(PageError(1, PageState.EXCLUDED))
    assert counters.bad_runs() == []
