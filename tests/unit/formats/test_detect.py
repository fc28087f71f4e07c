"""Every input is told apart: opened, or refused in one sentence with the remedy."""

import os
import struct
import subprocess
import sys

import pytest

from dumpfs.errors import (
    CorruptDumpError,
    DumpfsError,
    FormatError,
    SourceError,
    UnknownFormatError,
    UnsupportedFeatureError,
    UsageError,
)
from dumpfs.formats import open_image
from dumpfs.formats.detect import FORMAT_NAMES
from dumpfs.vfs.context import Dump
from tests.build.elf import ElfSpec, Segment, build_elf
from tests.build.flat import flatten, wrap
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.build.lime import build_lime
from tests.build.model import Memory, Page

ELF = build_elf([Segment(0, b"e" * 4096)]).data
LIME = build_lime([(0, b"l" * 4096)])
MEMORY = Memory(4096, 128, {pfn: Page(bytes([pfn]) * 4096) for pfn in range(128)})
KDUMP = build_kdump(MEMORY).data
PARTS = [part.data for part in split_parts(MEMORY, KdumpSpec(), [0, 64, 128])]


@pytest.fixture
def put(tmp_path):
    """Writes a file and returns its path."""

    def write(data: bytes, name: str = "vmcore") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    return write


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ELF, "elf"),
        (LIME, "lime"),
        (KDUMP, "kdump"),
        (flatten(ELF), "elf"),
        (flatten(LIME), "lime"),
        (flatten(KDUMP), "kdump"),
    ],
)
def test_format_is_found_out(put, data, name):
    image = open_image([put(data)])
    assert image.meta.format == name
    assert ("flattened" in image.meta.variant) == data.startswith(b"makedumpfile")
    assert image.read_page(0)[0] in (b"e" * 4096, b"l" * 4096, bytes(4096))
    image.close()


def test_flat_image_is_never_guessed(put):
    path = put(os.urandom(16) + bytes(5000))
    with pytest.raises(UnknownFormatError, match="not recognised") as caught:
        open_image([path])
    assert "-o format=raw" in caught.value.hint
    image = open_image([path], format="raw")
    assert image.meta.max_pfn == 2
    image.close()


def test_unknown_file_is_shown_in_hex(put):
    with pytest.raises(UnknownFormatError, match="begins with 00 01 02 ff"):
        open_image([put(b"\0\1\2\xff")])


def test_flat_image_is_not_unwrapped(put):
    image = open_image([put(flatten(ELF))], format="raw")
    assert image.read_page(0)[0].startswith(b"makedumpfile")
    image.close()


@pytest.mark.parametrize("name", [n for n in FORMAT_NAMES if n != "raw"])
def test_file_forced_into_a_format_it_is_not_is_an_error(put, name):
    with pytest.raises(FormatError):
        open_image([put(b"something else entirely" * 300)], format=name)


def test_unknown_format_name_lists_the_known_ones(put):
    with pytest.raises(UsageError) as caught:
        open_image([put(ELF)], format="vmcore")
    assert caught.value.hint == "one of kdump, elf, lime, raw"


def test_no_path_is_a_usage_error():
    with pytest.raises(UsageError):
        open_image([])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"DISKDUMP", "diskdump"),
        (struct.pack("<Q", 0xA8190173618F23ED), "LKCD"),
        (struct.pack(">Q", 0xA8190173618F23ED), "LKCD"),
        (struct.pack(">Q", 0xA8190173618F23FD), "s390 stand-alone"),
        (struct.pack("<II", 0x75646173, 0x706D), "sadump"),
        (struct.pack("<II", 0x4C4D5641, 2), "AVML"),
        (struct.pack("<I", 0xBED2BED2), "VMware"),
        (struct.pack("<I", 0xBED3BED3), "VMware"),
        (struct.pack("<I", 0xBAD1BAD1), "VMware"),
        (struct.pack(">I", 0x5145564D), "savevm"),
        (b"LibvirtQemudSave", "libvirt"),
        (b"PAGEDU64", "Windows"),
        (b"PAGEDUMP", "Windows"),
        (b"LinuxGuestRecord", "Xen"),
        (b"QFI\xfb", "qcow2"),
        (bytes(0x202) + b"HdrS", "bzImage"),
        (bytes(0x20) + b"\x0f" * 16 + bytes(0xFD0) + b"sadump\0\0", "sadump media"),
        (b"\xd0\xbe\xd2\xbe", "VMware"),
        (b"\xd0\xbe\xd0\xbe", "VMware"),
        (b"\xd2\xba\xd2\xba", "VMware"),
        (b"\xed\xeb\x0f\xf0", "Xen core"),
        (b"\xee\xeb\x0f\xf0", "Xen core"),
        (b"Xen saved domain, xl format", "Xen save"),
        (bytes(4086) + b"S1SUSPEND", "hibernation"),
        (bytes(4086) + b"SWAPSPACE2", "swap"),
        (b"MDMP\x93\xa7", "minidump"),
        (b"HPAK", "FastDump"),
        (b"ZDMP", "DumpIt"),
        (b"vhdxfile", "VHDX"),
        (b"-----BEGIN PGP MESSAGE-----", "PGP"),
        (b"\x85\x02\x0c\x03", "PGP"),
        (b"\x8c\x0d\x04\x09", "PGP"),
        (b"Salted__", "openssl"),
    ],
)
def test_kind_that_is_not_read_is_refused_by_name(put, data, what):
    with pytest.raises(UnsupportedFeatureError, match=what) as caught:
        open_image([put(data.ljust(5000, b"\x01"))])
    assert caught.value.hint
    assert "format=raw" not in caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("magic", "suffix", "command"),
    [
        (b"\x1f\x8b\x08", ".gz", "gzip -dk"),
        (b"\xfd7zXZ\0", ".xz", "xz -dk"),
        (b"\x28\xb5\x2f\xfd", ".zst", "zstd -d"),
        (b"BZh91AY", ".bz2", "bzip2 -dk"),
        (b"\x89LZO\0\r\n\x1a\n", ".lzo", "lzop -d"),
        (b"\x04\x22\x4d\x18", ".lz4", "lz4 -d"),
        (b"PK\x03\x04", ".zip", "unzip"),
        (b"7z\xbc\xaf\x27\x1c", ".7z", "7z x"),
        (bytes(257) + b"ustar\0", ".tar", "tar -xf"),
    ],
)
def test_packed_file_is_refused_with_the_command_to_run(put, magic, suffix, command):
    path = put(magic.ljust(1000, b"\x01"), "a dump" + suffix)
    with pytest.raises(UnsupportedFeatureError, match="is packed with") as caught:
        open_image([path])
    assert caught.value.hint == f"unpack it first: {command} '{path}'"


@pytest.mark.parametrize(("tool", "module"), [("gzip", "gzip"), ("xz", "lzma"), ("bzip2", "bz2")])
def test_command_for_a_packed_file_without_suffix_works(put, tool, module):
    import importlib

    path = put(importlib.import_module(module).compress(ELF))
    with pytest.raises(UnsupportedFeatureError, match=f"packed with {tool}") as caught:
        open_image([path])
    subprocess.run(caught.value.hint.removeprefix("unpack it first: "), shell=True, check=True)
    with open(path + ".unpacked", "rb") as unpacked:
        assert unpacked.read() == ELF


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (bytes(5000), "begins with zeros"),
        (b"[    0.000000] Linux version\n" * 40, "is a text file"),
    ],
)
def test_file_without_a_dump_says_what_it_is(put, data, problem):
    with pytest.raises(UnknownFormatError, match=problem) as caught:
        open_image([put(data)])
    assert caught.value.hint


def test_stream_cut_before_the_dumps_header_says_so(put):
    with pytest.raises(FormatError, match="own header never came"):
        open_image([put(wrap([(8192, bytes(100))], end_mark=False))])


@pytest.mark.parametrize("kind", [2, 3])
def test_vmlinux_is_refused_with_the_option_that_takes_it(put, kind):
    program = ELF[:16] + struct.pack("<H", kind) + ELF[18:]
    path = put(program, "vmlinux")
    dump = put(ELF)
    for paths in ([path], [path, dump], [dump, path]):
        with pytest.raises(UnsupportedFeatureError, match="is a vmlinux") as caught:
            open_image(paths)
        assert f"-o vmlinux={path}" in caught.value.hint


def test_several_files_must_be_parts_of_a_set(put):
    with pytest.raises(UsageError, match="only kdump dumps are split"):
        open_image([put(ELF, "a"), put(ELF, "b")])
    with pytest.raises(UsageError, match="a raw dump is one file"):
        open_image([put(ELF, "a"), put(ELF, "b")], format="raw")


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=str)
def test_parts_of_a_set_make_one_dump_in_any_order(put, order):
    image = open_image([put(PARTS[i], f"part{i}") for i in order])
    assert image.meta.complete
    assert image.read_run(0, 128)[0] == b"".join(page.data for page in MEMORY.pages.values())
    image.close()


def test_folder_with_a_whole_split_set_stands_for_it(put, tmp_path):
    put(PARTS[0], "dump.1")
    put(flatten(PARTS[1]), "dump.2")
    image = open_image([tmp_path])
    assert image.meta.complete
    image.close()


def test_files_of_a_folder_are_named_one_by_one(put, tmp_path):
    put(PARTS[1], "dump.2")
    put(PARTS[0], "dump.1")
    with Dump.open([tmp_path]) as dump:
        assert dump.paths == (str(tmp_path / "dump.1"), str(tmp_path / "dump.2"))
        assert [status.st_size for status in dump.statuses] == [len(PARTS[0]), len(PARTS[1])]
        assert dump.name == str(tmp_path)


def test_folder_with_parts_and_another_dump_is_refused(put, tmp_path):
    put(PARTS[0], "dump.1")
    put(PARTS[1], "dump.2")
    put(KDUMP, "whole")
    with pytest.raises(FormatError, match="holds 3 dumps"):
        open_image([tmp_path])


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is a pipe"):
        open_image([tmp_path / "pipe"])


def test_missing_file_is_an_error_of_the_source(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        open_image([tmp_path / "none"])


@pytest.mark.parametrize("data", [b"?" * 100, b"KDUMP   " + bytes(5000), ELF[:70], flatten(b"x")[:4100]])
def test_failed_opening_leaves_no_descriptor(put, data):
    paths = [put(data, "a"), put(data, "b")]
    before = open_descriptors()
    for chosen in (paths[:1], paths):
        with pytest.raises(DumpfsError):
            open_image(chosen)
    assert open_descriptors() == before


def test_close_releases_the_file(put):
    before = open_descriptors()
    open_image([put(flatten(ELF))]).close()
    assert open_descriptors() == before


def test_folder_with_one_dump_stands_for_it(put, tmp_path):
    put(ELF)
    put(b"[ 0.0] a log\n", "vmcore-dmesg.txt")
    put(ELF[:16] + b"\2\0" + ELF[18:], "vmlinux")
    put(b"", "empty")
    put(ELF, ".hidden")
    (tmp_path / "folder").mkdir()
    before = open_descriptors()
    image = open_image([tmp_path])
    assert image.meta.format == "elf"
    image.close()
    assert open_descriptors() == before


def test_folder_with_two_dumps_lists_them(put, tmp_path):
    put(ELF, "first")
    put(LIME, "second")
    with pytest.raises(FormatError, match="holds 2 dumps: first, second") as caught:
        open_image([tmp_path])
    assert caught.value.hint == "name one of them"


def test_folder_of_folders_names_one(put, tmp_path):
    put(ELF, "202601010000/dump")
    with pytest.raises(FormatError, match="holds no dump") as caught:
        open_image([tmp_path])
    assert "202601010000" in caught.value.hint


def test_folder_with_a_packed_dump_says_how_to_unpack_it(put, tmp_path):
    put(b"\xfd7zXZ\0" + bytes(50), "vmcore.xz")
    put(b"text\n", "README")
    with pytest.raises(UnsupportedFeatureError, match="packed with xz"):
        open_image([tmp_path])


def test_folder_with_a_broken_stream_tells_its_trouble(put, tmp_path):
    put(flatten(b"x")[:4096])
    with pytest.raises(DumpfsError, match="ends in its header"):
        open_image([tmp_path])


def test_empty_folder_holds_no_dump(tmp_path):
    with pytest.raises(FormatError, match="holds no dump"):
        open_image([tmp_path])


def test_folder_of_thousands_of_files_is_not_searched(put, tmp_path):
    for i in range(1001):
        put(b"", f"f{i}")
    with pytest.raises(FormatError, match="more than 1000 files"):
        open_image([tmp_path])


def test_broken_kdump_says_what_is_wrong_with_it(put):
    with pytest.raises(CorruptDumpError):
        open_image([put(b"KDUMP   " + bytes(8192))])


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 15, 17, 40])
@pytest.mark.parametrize("data", [ELF, LIME[:31], b"KDUMP   ".ljust(300, b"\0"), flatten(ELF), bytes(range(200))])
def test_short_files_are_errors_not_crashes(put, data, cut):
    with pytest.raises(DumpfsError):
        open_image([put(data[:cut])])


def test_detection_imports_no_format():
    code = "import sys, dumpfs.formats; print([m for m in sys.modules if 'formats.kdump' in m or m.endswith('.elf')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(found) in ([], ["dumpfs.elf"])


def test_incomplete_flattened_elf_is_marked_incomplete(put):
    data = build_elf([Segment(0, b"e" * 8192)], ElfSpec()).data
    image = open_image([put(flatten(data, end_mark=False))])
    assert not image.meta.complete
    assert "no end mark" in image.meta.incomplete_reason
    image.close()
