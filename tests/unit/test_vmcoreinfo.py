"""VMCOREINFO: grammar, bases of the numbers, and what is missing."""

from __future__ import annotations

import pytest

from dumpfs.errors import VmcoreinfoError
from dumpfs.vmcoreinfo import Vmcoreinfo

TEXT = b"""OSRELEASE=6.1.0-56-cloud-amd64
BUILD-ID=3b43fad500112233445566778899aabbccddeeff
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff9a815b00
SIZE(list_head)=16
OFFSET(list_head.next)=0
LENGTH(zone.free_area)=11
NUMBER(phys_base)=-689963008
NUMBER(VA_BITS)=0x30
NUMBER(KERNELPACMASK)=0xffffff
KERNELOFFSET=18a00000
CRASHTIME=1700000000
CONFIG_PREEMPT=y
a line without a sign
=no key
"""


@pytest.fixture
def info() -> Vmcoreinfo:
    return Vmcoreinfo(TEXT)


def test_each_kind_of_line_has_its_base(info):
    assert info.symbol("init_uts_ns") == 0xFFFFFFFF9A815B00
    assert info.type_size("list_head") == 16
    assert info.offset("list_head.next") == 0
    assert info.length("zone.free_area") == 11
    assert info.number("phys_base") == -689963008
    assert info.number("VA_BITS") == 48
    assert info.config("PREEMPT") == "y"


def test_general_lines(info):
    assert info.release == "6.1.0-56-cloud-amd64"
    assert info.build_id == "3b43fad500112233445566778899aabbccddeeff"
    assert info.page_size == 4096
    assert info.kaslr_offset == 0x18A00000
    assert info.crash_time == 1700000000


def test_missing_lines_are_none(info):
    assert info.symbol("prb") is None
    assert info.get("NOTHING") is None
    assert Vmcoreinfo(b"").page_size is None
    assert Vmcoreinfo(b"").build_id == ""


def test_a_needed_line_that_is_missing_is_named(info):
    with pytest.raises(VmcoreinfoError, match=r"SYMBOL\(prb\): not in VMCOREINFO"):
        info.need_symbol("prb")


def test_text_in_place_of_a_number_is_an_error():
    with pytest.raises(VmcoreinfoError, match=r"SIZE\(page\): 'many' is not a .*number"):
        Vmcoreinfo(b"SIZE(page)=many").type_size("page")


def test_malformed_lines_are_skipped(info):
    assert "" not in info
    assert len(info) == 13


def test_text_ends_at_the_first_nul():
    assert list(Vmcoreinfo(b"A=1\nB=2\0C=3\n")) == ["A", "B"]


@pytest.mark.parametrize("size", ["0", "-4096", "4095", "1048576", "4097"])
def test_an_impossible_page_size_is_not_believed(size):
    assert Vmcoreinfo(f"PAGESIZE={size}".encode()).page_size is None


@pytest.mark.parametrize("text", ["", "12", "xyz0123456789abcdef0123", "0000000000000000", "abc"])
def test_garbage_in_place_of_a_build_id_is_not_believed(text):
    assert Vmcoreinfo(f"BUILD-ID={text}".encode()).build_id == ""


def test_any_bytes_are_accepted():
    assert Vmcoreinfo(bytes(range(1, 256)) * 10) is not None


def test_text_beyond_a_megabyte_is_not_looked_at():
    info = Vmcoreinfo(b"A=1\n" * (1 << 18) + b"B=2\n")
    assert (len(info), len(info.raw)) == (1, 1 << 20)
