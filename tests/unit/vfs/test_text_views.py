"""The views that are text: memmap, info.json, status, README, vmcoreinfo, dmesg; and the raw bitmaps."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.bitmap import Bitmap
from dumpfs.errors import PageError, ViewError
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.dmesg import DmesgFile
from dumpfs.vfs.views.memmap import render_memmap
from dumpfs.vfs.views.vmcore import VmcoreFile
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.unit.vfs.fakes import PAGE, C, E, FakeImage, L, P, S, fake_dump, fake_kernel

TEXT = b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(prb)=ffffffff81000000\n"
INFO = Vmcoreinfo(TEXT)


def text(dump: Dump, path: str) -> str:
    node = dump.tree.lookup_path(path)
    data = node.read(0, 1 << 20)
    assert node.size() == len(data)
    return data.decode()


# -- /bitmaps


@given(st.sets(st.integers(0, 100), min_size=1), st.integers(0, 20), st.integers(0, 20))
def test_bitmaps_are_the_sets(pfns, offset, size):
    image = FakeImage({p: (S, E, L)[p % 3] for p in pfns})
    dump = fake_dump(image)
    for path, members in (("ram", pfns), ("stored", {p for p in pfns if p % 3 == 0})):
        node = dump.tree.lookup_path(f"bitmaps/{path}")
        bits = sum(1 << p for p in members).to_bytes((max(pfns) + 8) // 8, "little")
        assert node.size() == len(bits)
        assert node.read(offset, size) == bits[offset : offset + size]


def test_bitmaps_count_kernel_pages_where_blocks_are_larger():
    dump = fake_dump(FakeImage({1: S, 2: E}, block_size=65536, vmcoreinfo=b"PAGESIZE=4096\n"))
    assert dump.tree.lookup_path("bitmaps/stored").read(0, 99) == b"\0\0\xff\xff\0\0"
    assert dump.tree.lookup_path("bitmaps/ram").read(0, 99) == b"\0\0\xff\xff\xff\xff"


# -- /memmap


def test_memmap_names_ranges_and_states():
    states = {0: S, 1: S, 2: E, 3: P, 8: E, 9: E}
    assert text(fake_dump(FakeImage(states, {3: (0, 1024)})), "memmap") == (
        "# RAM 24.0 KiB, stored 12.0 KiB, excluded 12.0 KiB; pages of 4096 bytes\n"
        "00000000-000033ff : System RAM (13.0 KiB)\n"
        "  00000000-00001fff : stored (8.0 KiB)\n"
        "  00002000-00002fff : excluded (4.0 KiB)\n"
        "  00003000-000033ff : stored (1.0 KiB)\n"
        "00008000-00009fff : System RAM (8.0 KiB)\n"
        "  00008000-00009fff : excluded (8.0 KiB)\n"
    )


def test_memmap_tells_lost_from_excluded():
    lines = text(fake_dump(FakeImage({0: S, 1: L, 2: S, 3: E, 4: S, 5: E, 6: L})), "memmap").splitlines()
    assert "lost 8.0 KiB" in lines[0]
    assert [line.split(" : ")[1].split(" (")[0] for line in lines[2:]] == [
        "stored",
        "lost",
        "stored",
        "excluded",
        "stored",
        "excluded",
        "lost",
    ]


def test_memmap_is_cut_short_and_says_so():
    dump = fake_dump(FakeImage({p: S if p % 2 else E for p in range(100)} | {200: S}))
    lines = render_memmap(dump, max_lines=10).splitlines()
    assert len(lines) <= 12
    assert "# cut short: from 0x8000 on only RAM is shown" in lines[-1]
    assert lines[-2].startswith("000c8000-000c8fff : System RAM")


def test_memmap_of_ram_in_too_many_pieces_joins_them_and_says_so():
    lines = render_memmap(fake_dump(FakeImage(dict.fromkeys(range(0, 100, 2), S))), max_lines=10).splitlines()
    assert "RAM is in more than 10 pieces" in lines[1]
    assert len(lines) <= 13


def test_memmap_of_high_memory_is_as_wide_as_it_needs():
    assert text(fake_dump(FakeImage({1 << 24: S})), "memmap").splitlines()[1].startswith("1000000000-1000000fff")


def test_memmap_of_no_memory_is_a_heading():
    assert text(fake_dump(FakeImage({})), "memmap") == "# RAM 0 B, stored 0 B; pages of 4096 bytes\n"


@pytest.mark.parametrize("path", ["memmap", "info.json", "vmcore"])
def test_large_dump_is_not_looked_through_while_a_request_waits(path):
    image = FakeImage({0: S}, max_pfn=1 << 28, vmcoreinfo=TEXT)
    assert not fake_dump(image, fake_kernel(vmcoreinfo=INFO)).tree.lookup_path(path).ready


# -- /info.json


def test_info_counts_pages_by_state():
    info = json.loads(text(fake_dump(FakeImage({0: S, 1: C, 2: E, 3: L, 4: P}, {4: (0, 8)})), "info.json"))
    assert info["schema"] == 1
    assert info["pages"] == {"ram": 5, "stored": 3, "partial": 1, "excluded": 1, "lost": 1}
    assert info["sizes"]["hmem"] == 5 * PAGE
    assert info["dump"]["complete"] is False


def test_info_has_header_and_kernel_facts_with_their_origins():
    image = FakeImage({0: S}, dump_level=31, header={"max_mapnr": 1, "signature": "KDUMP"}, nr_cpus=4)
    info = json.loads(text(fake_dump(image, fake_kernel(text=(1, 2, 3))), "info.json"))
    assert info["header"]["max_mapnr"] == 1
    assert info["dump"]["level_excludes"] == ["zero", "cache", "private cache", "user", "free"]
    assert info["dump"]["nr_cpus"] == 4
    assert info["kernel"]["page_offset"] == 0xFFFF888000000000
    assert info["kernel"]["origins"] == {"page_offset": "a guess"}
    assert info["kernel"]["text"] == {"vaddr": 1, "paddr": 2, "size": 3}


def test_info_without_a_kernel_says_why():
    dump = fake_dump(FakeImage({0: S}))
    dump.kernel, dump.kernel_error = None, ViewError("no idea", hint="look")
    assert json.loads(text(dump, "info.json"))["kernel"] == {"problems": ["no idea (look)"]}


# -- /status and /README


def test_status_tells_options_notices_changes_and_bad_pages():
    image = FakeImage({0: S})
    image.changed = ["dump: truncated from 5 to 3 bytes"]
    dump = fake_dump(image, kaslr=0x1000, pages="open")
    dump.counters.bad_page(PageError(7, PageState.CORRUPT, "bad checksum"))
    dump.counters.bad_page(PageError(8, PageState.CORRUPT, "bad checksum"))
    dump.failures = lambda: {dump.tree.lookup_path("memmap").ino: "no room"}
    status = text(dump, "status")
    for line in (
        "  pages=open",
        "  kaslr=0x1000",
        "  something odd",
        "  a problem",
        "  dump: truncated from 5 to 3 bytes",
        "  pfn 0x7-0x8 (2 pages): bad checksum",
        "  memmap: no room",
    ):
        assert f"{line}\n" in status


def test_status_is_told_anew_from_the_start_and_stays_while_it_is_read():
    dump = fake_dump(FakeImage({0: S}))
    node = dump.tree.lookup_path("status")
    before = node.read(0, 1 << 20)
    dump.counters.bad_page(PageError(7, PageState.CORRUPT, "bad checksum"))
    assert node.read(5, 1 << 20) == before[5:]
    assert b"bad checksum" in node.read(0, 1 << 20)


def test_status_does_not_look_for_the_kernel():
    dump = Dump(FakeImage({0: S}, vmcoreinfo=TEXT))
    others = (path for path in dump.tree.paths if path not in ("", "status"))
    dump.tree._nodes |= dict.fromkeys(others)  # the presence of some depends on the kernel
    assert b"notices:" in dump.tree.lookup_path("status").read(0, 1 << 20)
    assert "kernel" not in vars(dump)


def test_readme_explains_every_file():
    dump = fake_dump(FakeImage({0: S}, vmcoreinfo=TEXT), fake_kernel(vmcoreinfo=INFO))
    readme = text(dump, "README")
    for path, _, _ in dump.tree.views():
        assert f"\n  {path} " in readme
    assert "Not offered" not in readme
    assert max(map(len, readme.splitlines())) <= 100


# -- files that are built beside


def test_plan_of_the_core_travels_between_processes():
    ranges = RangeSet([(0, 5), (10, 20)])
    image = FakeImage(dict.fromkeys([p for a, b in ranges for p in range(a, b)], S))
    dump = fake_dump(image, fake_kernel(text=(0xFFFFFFFF81000000, 12 * PAGE, 2 * PAGE)))
    built = dump.tree.lookup_path("vmcore")
    adopted = VmcoreFile(built.ino, dump)
    assert not adopted.ready
    adopted.adopt(memoryview(built.build()))
    assert adopted.ready
    assert adopted.plan.extents == built.plan.extents
    assert adopted.plan.notices == built.plan.notices
    assert adopted.read(0, 1 << 20) == built.read(0, 1 << 20)


def test_core_without_a_known_kernel_is_offered_with_a_notice():
    dump = fake_dump(FakeImage({0: S}))
    dump.kernel = None
    assert dump.tree.lookup_path("vmcore").read(0, 4) == b"\x7fELF"
    assert "/vmcore: the direct map's address is unknown" in text(dump, "status")


@pytest.fixture
def log(monkeypatch):
    """A stand-in for the log's renderer; remembers what it was asked."""
    asked: list[dict] = []

    def render_dmesg(kernel, *, caller=False, device=False):
        asked.append({"caller": caller, "device": device})
        return SimpleNamespace(text=b"[    0.0] hello\n", notices=("3 records were overwritten",), gaps=2)

    monkeypatch.setitem(sys.modules, "dumpfs.linux.printk", SimpleNamespace(render_dmesg=render_dmesg))
    return asked


def log_dump(**options: object) -> Dump:
    return fake_dump(FakeImage({0: S}, vmcoreinfo=TEXT), fake_kernel(vmcoreinfo=INFO), **options)


def test_log_is_rendered_once_with_the_options(log):
    node = log_dump(caller=True).tree.lookup_path("dmesg")
    assert node.read(4, 6) == b" 0.0] "
    assert node.size() == 16
    assert log == [{"caller": True, "device": False}]


def test_log_travels_between_processes_with_its_notices(log):
    dump = log_dump()
    node = dump.tree.lookup_path("dmesg")
    assert not node.ready
    data = DmesgFile(node.ino, dump).build()
    node.adopt(memoryview(data))
    assert node.ready
    assert node.read(0, 99) == b"[    0.0] hello\n"
    assert "3 records were overwritten" in text(dump, "status")
    assert node.lack == "the log is not whole: something is missing in 2 places, marked with -- in the text"


def test_log_of_a_dump_without_vmcoreinfo_is_an_error_after_the_search(log):
    dump = fake_dump(FakeImage({0: S}), fake_kernel(deep=fake_kernel()))
    with pytest.raises(ViewError, match="none was found in its memory"):
        dump.tree.lookup_path("dmesg").size()
    assert "could not be built:\n  dmesg: dmesg: the dump carries no VMCOREINFO" in text(dump, "status")


def test_vmcoreinfo_is_found_by_the_deep_search():
    dump = fake_dump(FakeImage({0: S}), fake_kernel(deep=fake_kernel(vmcoreinfo=INFO)))
    assert text(dump, "vmcoreinfo").encode() == TEXT


def test_bitmap_may_reach_beyond_the_last_page():
    image = FakeImage({0: S})
    image.ram = image.stored = Bitmap.from_bytes(b"\x03" + bytes(50))
    dump = fake_dump(image)
    assert dump.tree.lookup_path("bitmaps/ram").read(0, 99) == b"\x03"
    assert "00000000-00001fff : System RAM" in text(dump, "memmap")


def test_large_dump_is_not_searched_for_the_sake_of_the_core(monkeypatch):
    monkeypatch.setattr("dumpfs.vfs.views.vmcore._SEARCHED_BYTES", 0)
    dump = fake_dump(FakeImage({0: S}), fake_kernel(deep=None))
    assert dump.tree.lookup_path("vmcore").size() > PAGE
    assert "too large to be searched" in text(dump, "status")


@pytest.mark.parametrize("text_of", [None, TEXT])
def test_dump_without_any_page_still_shows_its_files(text_of):
    dump = fake_dump(FakeImage({}, vmcoreinfo=text_of, complete=False, incomplete_reason="nothing was written"))
    assert dump.tree.lookup_path("hmem").read(0, 100) == b""
    assert dump.tree.lookup_path("bitmaps/ram").read(0, 100) == b""
    assert list(dump.tree.lookup_path("pages").entries(0)) == []
    assert dump.tree.lookup_path("vmcore").read(0, 4) == b"\x7fELF"
    assert "incomplete: nothing was written" in text(dump, "status")
    assert json.loads(text(dump, "info.json"))["pages"]["ram"] == 0


def test_what_was_erased_is_told():
    image = FakeImage({0: S})
    rules = b"".join(b"erase secret_%d\x1b\n" % i for i in range(7))
    image.eraseinfo = lambda: rules + b"\0"
    dump = fake_dump(image)
    assert text(dump, "eraseinfo").splitlines() == [f"erase secret_{i}\\x1b" for i in range(7)]
    notice = "its writer has erased data from memory, see /eraseinfo: erase secret_0\\x1b; erase secret_1\\x1b; "
    assert notice in text(dump, "status")
    assert "erase secret_4\\x1b and 2 more" in text(dump, "status")
    assert any(notice in line for line in json.loads(text(dump, "info.json"))["notices"])


def test_nothing_erased_is_no_file():
    image = FakeImage({0: S})
    image.eraseinfo = lambda: b"\0\0"
    assert fake_dump(image).tree.lookup_path("eraseinfo") is None
