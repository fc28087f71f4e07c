"""Configuration, command line and version out of kernel memory."""

from __future__ import annotations

import gzip
import zlib

import pytest

from dumpfs.errors import CorruptDumpError, DumpfsError, ViewError
from dumpfs.linux.ikconfig import find_version, read_cmdline, read_config, read_version
from dumpfs.linux.records import find_bytes, read_pieces
from tests.unit.linux.kernelmem import Memory

BASE = 0xFFFFFFFF81000000
CONFIG = b"CONFIG_IKCONFIG=y\n" * 4000


def packed(data: bytes = CONFIG) -> bytes:
    return b"IKCFG_ST" + gzip.compress(data, mtime=0) + b"IKCFG_ED"


@pytest.mark.parametrize("place", [0x100, 0xFFF9, 0xFFFF, 0x10000])
def test_configuration_is_found_by_its_magic(place):
    memory = Memory()
    memory.write(BASE, bytes(0x20000))
    memory.write(BASE + place, packed())
    assert read_config(memory.space, [(BASE, 0x20000)], None) == CONFIG


def test_configuration_at_its_symbol_needs_no_search():
    memory = Memory()
    memory.write(BASE, packed())
    assert read_config(memory.space, [], BASE + 8) == CONFIG


def test_magic_in_a_program_text_is_passed_over():
    memory = Memory()
    memory.write(BASE, b"IKCFG_ST is the magic".ljust(0x1000, b"\0"))
    memory.write(BASE + 0x1000, packed())
    assert read_config(memory.space, [(BASE, 0x3000)], None) == CONFIG


def test_kernel_without_configuration_says_so():
    memory = Memory()
    memory.write(BASE, bytes(0x1000))
    with pytest.raises(ViewError, match="CONFIG_IKCONFIG"):
        read_config(memory.space, [(BASE, 0x1000)], None)


def test_bomb_is_cut_off():
    memory = Memory()
    memory.write(BASE, packed(bytes(64 << 20)))
    with pytest.raises(CorruptDumpError, match="more than"):
        read_config(memory.space, [(BASE, 0x20000)], None)


@pytest.mark.parametrize("at", [10, 20, 40])
def test_damaged_data_is_an_error(at):
    data = bytearray(packed())
    data[at + 8 : at + 12] = b"\xff\xff\xff\xff"
    memory = Memory()
    memory.write(BASE, bytes(data))
    with pytest.raises(DumpfsError):
        read_config(memory.space, [(BASE, 0x10000)], None)


def test_endless_data_is_an_error():
    memory = Memory()
    head = zlib.compressobj(0, wbits=31)
    memory.write(BASE, (head.compress(bytes(5 << 20)) + head.flush(zlib.Z_SYNC_FLUSH)))
    with pytest.raises(CorruptDumpError, match="no end"):
        read_config(memory.space, [], BASE)


def test_command_line_has_its_line_feed():
    memory = Memory()
    memory.put(BASE, BASE + 0x100)
    memory.write(BASE + 0x100, b"console=ttyS0 quiet\0")
    assert read_cmdline(memory.space, BASE) == b"console=ttyS0 quiet\n"


def test_command_line_may_be_an_array():
    memory = Memory()
    memory.write(BASE, b"root=/dev/hda1\0")
    assert read_cmdline(memory.space, BASE) == b"root=/dev/hda1\n"


def test_command_line_that_is_not_in_the_dump_is_an_error():
    memory = Memory()
    memory.put(BASE, 0xFFFFFFFF99999000)
    with pytest.raises(DumpfsError):
        read_cmdline(memory.space, BASE)


def test_version_is_the_banner():
    memory = Memory()
    memory.write(BASE, b"Linux version 6.1 (a@b) (gcc) #1 SMP\n\0")
    assert read_version(memory.space, BASE) == b"Linux version 6.1 (a@b) (gcc) #1 SMP\n"


def test_anything_else_is_no_version():
    memory = Memory()
    memory.write(BASE, b"Minix\0")
    with pytest.raises(CorruptDumpError, match="no banner"):
        read_version(memory.space, BASE)


def test_gaps_are_left_out_page_by_page():
    memory = Memory()
    for page in (0, 2, 3):
        memory.write(BASE + 0x1000 * page, bytes([page]) * 0x1000)
    assert [(v - BASE, len(d)) for v, d in read_pieces(memory.space, BASE + 8, 0x4000)] == [
        (8, 0xFF8), (0x2000, 0x2000)
    ]  # fmt: skip


def test_bytes_across_a_gap_are_not_found():
    memory = Memory()
    memory.write(BASE + 0xFFE, b"ab")
    memory.write(BASE + 0x2000, b"cd")
    assert list(find_bytes(memory.space, BASE, 0x3000, b"abcd")) == []


def test_bytes_across_pieces_are_found():
    memory = Memory()
    memory.write(BASE, bytes(0x20000))
    memory.write(BASE + 0xFFFE, b"abcd")
    assert list(find_bytes(memory.space, BASE, 0x20000, b"abcd")) == [BASE + 0xFFFE]


def test_banner_of_the_release_is_searched_for():
    memory = Memory()
    memory.write(BASE, bytes(0x4000))
    memory.write(BASE + 0x100, b"Linux version 6.1 (a@b) (gcc) # SMP \n\0")
    memory.write(BASE + 0x200, b"Linux version 5.9 (a@b) (gcc) #1 SMP of some program, longer than all others\n\0")
    memory.write(BASE + 0xFFF, b"Linux version 6.1 (a@b) (gcc) #1 SMP today\n\0")
    found = find_version(memory.space, [(BASE, 0x4000)], "6.1")
    assert found == b"Linux version 6.1 (a@b) (gcc) #1 SMP today\n"


@pytest.mark.parametrize("release", ["", "6.1"])
def test_image_without_a_banner_says_so(release):
    memory = Memory()
    memory.write(BASE, bytes(0x1000))
    with pytest.raises(ViewError, match="no banner"):
        find_version(memory.space, [(BASE, 0x1000)], release)
