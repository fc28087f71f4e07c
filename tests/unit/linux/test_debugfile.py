"""Symbols from a vmlinux, and files that are none."""

from __future__ import annotations

import struct

import pytest

from dumpfs.errors import DumpfsError, SourceError, UnknownFormatError
from dumpfs.linux.debugfile import DebugFile

TEXT = 0xFFFFFFFF81000000


def build_elf() -> bytes:
    """A vmlinux of five sections and six symbols."""
    names = b"\0.text\0.data\0.percpu\0.symtab\0.strtab\0.shstrtab\0"
    strings = b"\0start\0local\0weak\0var\0pcpu\0gone\0"
    symbols = [
        (0, 0, 0, 0, 0),
        (1, 0x12, 1, TEXT, 0),
        (7, 0x02, 1, TEXT + 0x10, 0),
        (13, 0x22, 1, TEXT + 0x20, 0),
        (18, 0x11, 2, TEXT + 0x1000, 0),
        (22, 0x11, 3, 0x40, 0),
        (27, 0x10, 0, 0, 0),
    ]
    table = b"".join(struct.pack("<IBBHQQ", n, info, 0, s, v, z) for n, info, s, v, z in symbols)
    body = bytes(64)
    sections = [(0, 0, 0, 0, 0, 0, 0, 0)]

    def section(name: bytes, kind: int, flags: int, vaddr: int, data: bytes, link: int = 0, entry: int = 0) -> None:
        nonlocal body
        sections.append((names.index(name), kind, flags, vaddr, len(body), len(data), link, entry))
        body += data

    section(b".text", 1, 6, TEXT, b"")
    section(b".data", 1, 3, TEXT + 0x1000, b"")
    section(b".percpu", 1, 3, 0, b"")
    section(b".symtab", 2, 0, 0, table, 5, 24)
    section(b".strtab", 3, 0, 0, strings)
    section(b".shstrtab", 3, 0, 0, names)
    offset = len(body)
    for name, kind, flags, vaddr, place, size, link, entry in sections:
        body += struct.pack("<IIQQQQIIQQ", name, kind, flags, vaddr, place, size, link, 0, 1, entry)
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, offset, 0, 64, 56, 0, 64, 7, 6)
    return head + body[64:]


@pytest.fixture
def vmlinux(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(build_elf())
    return path


def test_symbols_have_nms_letters_and_move_with_the_kernel(vmlinux):
    assert list(DebugFile(str(vmlinux)).read_symbols(0x1000000)) == [
        (0x40, "A", "pcpu"),
        (TEXT + 0x1000000, "T", "start"),
        (TEXT + 0x1000010, "t", "local"),
        (TEXT + 0x1000020, "W", "weak"),
        (TEXT + 0x1001000, "D", "var"),
    ]


def test_file_may_go_once_it_is_open(vmlinux):
    debug = DebugFile(str(vmlinux))
    vmlinux.unlink()
    assert len(debug.read_symbols(0)) == 5


def test_file_without_types_says_so(vmlinux):
    with pytest.raises(UnknownFormatError, match="neither BTF nor DWARF"):
        DebugFile(str(vmlinux)).read_types(8)


def test_missing_file_is_told(tmp_path):
    with pytest.raises(SourceError):
        DebugFile(str(tmp_path / "nothing"))


def test_text_is_no_vmlinux(tmp_path):
    path = tmp_path / "README"
    path.write_text("hello")
    with pytest.raises(UnknownFormatError, match="not an ELF"):
        DebugFile(str(path))


@pytest.mark.parametrize("size", range(4, 1100, 61))
def test_cut_file_is_an_error_or_lacks_symbols(vmlinux, size):
    vmlinux.write_bytes(build_elf()[:size])
    try:
        DebugFile(str(vmlinux)).read_symbols(0)
    except DumpfsError as exc:
        assert str(vmlinux) in str(exc)  # noqa: PT017  # complete files may pass


@pytest.mark.parametrize("offset", [40, 58, 60, 62])
@pytest.mark.parametrize("value", [0, 1, 0xFF, 0xFFFF])
def test_damaged_header_is_an_error_and_no_crash(vmlinux, offset, value):
    data = bytearray(build_elf())
    data[offset : offset + 2] = value.to_bytes(2, "little")
    vmlinux.write_bytes(bytes(data))
    try:
        DebugFile(str(vmlinux)).read_symbols(0)
    except DumpfsError as exc:
        assert str(vmlinux) in str(exc)  # noqa: PT017  # a few damages do no harm
