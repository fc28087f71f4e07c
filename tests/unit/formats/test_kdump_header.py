"""kdump headers: which byte order, word size and packing, and what the fields mean."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from dumpfs.errors import CorruptDumpError, TruncatedDumpError
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.sources.local import FileSource, MemorySource
from dumpfs.units import PageState
from tests.build import notes
from tests.build.kdump import KdumpSpec, build_kdump, poke
from tests.build.model import Kind, Memory, Page

LAYOUTS = ["64", "32packed", "32padded"]
CODECS = ["raw", "zero", "zlib", "lzo", "snappy", "zstd"]
PAGES = {
    pfn: Page(bytes(4096) if codec == "zero" else (b"%d " % pfn).ljust(4096, b"."), codec=codec)
    for pfn, codec in zip((3, 4, 9, 10, 11, 12), CODECS, strict=True)
}
MEMORY = Memory(4096, 20, PAGES | {5: Page(kind=Kind.EXCLUDED)})
INFO = notes.vmcoreinfo_text()


def open_kdump(*files: bytes) -> KdumpImage:
    return KdumpImage.open([MemorySource(data, f"file{i}") for i, data in enumerate(files)])


@pytest.mark.parametrize("version", range(7))
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_header_that_ever_was(layout, byteorder, version):
    spec = KdumpSpec(
        layout=layout,
        byteorder=byteorder,
        version=version,
        vmcoreinfo=INFO,
        notes=notes.prstatus(1, byteorder),
        dump_level=31,
        phys_base=-0x1000000,
    )
    image = open_kdump(build_kdump(MEMORY, spec).data)
    assert (image.meta.byteorder, image.meta.word_size, image.meta.version) == (byteorder, spec.word, version)
    assert image.meta.phys_base == -0x1000000
    assert image.meta.dump_level == (31 if version else None)
    assert image.vmcoreinfo_text() == (INFO if version >= 3 else None)
    assert bool(image.notes()) == (version >= 4)
    assert (bytes(image.read_run(0, 20)[0]), bytes(image.read_run(0, 20)[1])) == MEMORY.run(0, 20)
    assert image.notices == ()


@pytest.mark.parametrize("layout", ["32packed", "32padded"])
@pytest.mark.parametrize("version", [3, 4, 5, 6])
@pytest.mark.parametrize("with_notes", [False, True], ids=["without-notes", "with-notes"])
@pytest.mark.parametrize("with_info", [False, True], ids=["without-vmcoreinfo", "with-vmcoreinfo"])
def test_packed_and_padded_sub_headers_are_told_apart(layout, version, with_notes, with_info):
    spec = KdumpSpec(
        layout=layout,
        version=version,
        machine="arm",
        notes=notes.prstatus(1, "little") if with_notes else b"",
        vmcoreinfo=INFO if with_info else None,
        split=(0, 20) if version == 6 else None,
    )
    image = open_kdump(build_kdump(MEMORY, spec).data)
    assert image.vmcoreinfo_text() == (INFO if with_info else None)
    if version >= 4:
        assert image.notes().startswith(spec.notes)
    assert image.meta.complete
    assert image.read_page(12)[:2] == (MEMORY.content(12), PageState.STORED)


def test_every_header_field_is_shown_under_its_c_name():
    image = open_kdump(build_kdump(MEMORY, KdumpSpec(machine="x86_64", release="6.1.0", timestamp=1700000000)).data)
    header = json.loads(json.dumps(image.meta.header))
    assert header["main"]["max_mapnr"] == 20
    assert header["main"]["tv_sec"] == 1700000000
    assert header["sub"]["max_mapnr_64"] == 20
    assert header["utsname"]["release"] == "6.1.0"
    assert image.meta.timestamp == 1700000000
    assert image.meta.uts.release == "6.1.0"


@pytest.mark.parametrize(
    ("name", "byteorder", "machine"),
    [
        ("x86_64", "little", "x86_64"),
        ("Unknown", "little", ""),
        ("S390X", "big", "s390x"),
        ("i586", "little", "i686"),
        ("armv7l", "little", "arm"),
        ("ppc64", "little", "ppc64le"),
        ("ppc64", "big", "ppc64"),
        ("ppc64le", "little", "ppc64le"),
    ],
)
def test_machine_names_are_those_of_uname(name, byteorder, machine):
    assert open_kdump(build_kdump(MEMORY, KdumpSpec(byteorder=byteorder, machine=name)).data).meta.machine == machine


def test_the_machine_name_outweighs_a_header_that_could_be_either():
    """block_size 4096 in one byte order is 0x100000 in the other: never plausible both ways."""
    for byteorder in ("little", "big"):
        image = open_kdump(build_kdump(MEMORY, KdumpSpec(byteorder=byteorder, machine="mips")).data)
        assert image.meta.byteorder == byteorder


def test_makedumpfile_counts_arm_pages_from_the_start_of_ram():
    spec = KdumpSpec(layout="32padded", machine="armv7l", phys_base=0x40000000)
    image = open_kdump(build_kdump(MEMORY, spec).data)
    assert image.meta.first_paddr == 0x40000000


def test_qemu_counts_arm_pages_from_zero():
    base = 0x40000000 // 4096
    memory = replace(MEMORY, max_pfn=base + 20, pages={base + p: page for p, page in MEMORY.pages.items()})
    spec = KdumpSpec(layout="32packed", machine="Unknown", phys_base=0x40000000)
    image = open_kdump(build_kdump(memory, spec).data)
    assert image.meta.first_paddr == 0
    assert image.read_page(base + 9)[0] == memory.content(base + 9)


def test_a_newer_version_is_read_as_the_newest_known():
    spec = KdumpSpec()
    image = open_kdump(poke(build_kdump(MEMORY, spec), spec, "header_version", 7))
    assert image.read_page(9)[0] == MEMORY.content(9)
    assert "newer" in image.notices[0]


def test_max_mapnr_is_trusted_no_further_than_the_bitmap():
    spec = KdumpSpec(version=5)
    image = open_kdump(poke(build_kdump(MEMORY, spec), spec, "max_mapnr", 0xFFFFFFFF))
    assert image.meta.max_pfn == 8 * 2 * 4096  # both bitmaps, taken for a single one
    assert "room" in " ".join(image.notices)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("block_size", 0, "block_size 0"),
        ("block_size", 3000, "block_size 3000"),
        ("block_size", 0x80000000, "block_size"),
        ("sub_hdr_size", 0, "sub_hdr_size 0"),
        ("sub_hdr_size", 0x7FFFFFFF, "sub_hdr_size"),
        ("bitmap_blocks", 0, "bitmap_blocks 0"),
        ("header_version", 0x80000000, "header_version"),
    ],
)
def test_impossible_fields_are_named(field, value, words):
    spec = KdumpSpec(machine="x86_64")
    with pytest.raises(CorruptDumpError, match=words):
        open_kdump(poke(build_kdump(MEMORY, spec), spec, field, value))


@pytest.mark.parametrize("size", [8, 100, 463, 4096, 4100])
def test_a_file_that_ends_in_its_headers_is_truncated(size):
    with pytest.raises(TruncatedDumpError):
        open_kdump(build_kdump(MEMORY, KdumpSpec()).data[:size])


def test_notes_may_need_many_blocks():
    spec = KdumpSpec(notes=b"".join(notes.prstatus(i + 1, "little") for i in range(200)), vmcoreinfo=INFO)
    image = open_kdump(build_kdump(MEMORY, spec).data)
    assert image.meta.header["main"]["sub_hdr_size"] > 10
    assert image.notes().count(b"CORE\0") == 200
    assert image.vmcoreinfo_text() == INFO


def test_qemus_files_are_recognised_by_what_they_lack():
    image = open_kdump(build_kdump(MEMORY, KdumpSpec(machine="x86_64")).data)
    assert "QEMU" in image.meta.variant


@pytest.mark.slow
def test_more_than_four_billion_pages(tmp_path):
    """16 TiB and a bit: the main header's max_mapnr is clipped, the sub header's 64-bit one is not."""
    stop = (1 << 32) + 4096 * 8
    path = tmp_path / "huge"
    small = build_kdump(MEMORY, KdumpSpec(machine="x86_64"))
    one = stop // 8
    header = bytearray(small.data[: small.places["bitmap1"]])
    struct.pack_into("<II", header, 436, 2 * one // 4096, 0xFFFFFFFF)
    struct.pack_into("<Q", header, 4096 + 96, stop)
    page = b"the very last page".ljust(4096, b"\0")
    table = len(header) + 2 * one
    with path.open("wb") as file:
        file.write(header)
        file.truncate(table + 24 + 4096)
        for bitmap in (len(header), len(header) + one):
            os.pwrite(file.fileno(), b"\x80", bitmap + one - 1)
        os.pwrite(file.fileno(), struct.pack("<QIIQ", table + 24, 4096, 0, 0) + page, table)
    image = KdumpImage.open([FileSource(Path(path))])
    assert (image.meta.max_pfn, image.stored.count()) == (stop, 1)
    assert image.read_page(stop - 1)[:2] == (page, PageState.STORED)
    assert bytes(image.read_run(stop - 2, 3)[1]) == bytes((PageState.ABSENT, PageState.STORED, PageState.ABSENT))
    image.close()


@pytest.mark.parametrize(
    ("machine", "order", "long_size"), [("x86_64", "<", 8), ("i686", "<", 4), ("ppc64", ">", 8), ("s390x", ">", 8)]
)
def test_a_header_whose_writer_was_ended_early_is_blamed_for_what_it_lacks(machine, order, long_size):
    """No sub header, no bitmap, no page: the sentence names these, not what another byte order would make of them."""
    names = b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"node", b"6.1", b"#1", machine.encode(), b""))
    times = struct.pack(order + ("q" if long_size == 8 else "i") * 2, 0, 0)
    at = -(-(8 + 4 + len(names)) // long_size) * long_size
    head = (b"KDUMP   " + struct.pack(order + "i", 6) + names).ljust(at, b"\0") + times
    head += struct.pack(order + "IiiIIIIIIi", 0, 4096, 0, 0, 0, 0, 0, 0, 0, 1)
    with pytest.raises(CorruptDumpError, match=r"\(sub_hdr_size 0, bitmap_blocks 0\)"):
        open_kdump(head.ljust(4096 + 104, b"\0"))


def test_a_header_that_counts_its_bitmaps_wrongly_is_to_blame_and_not_the_end_of_the_file():
    memory = Memory(4096, 30, {pfn: Page(bytes([pfn + 1]) * 4096) for pfn in range(30)})
    spec = KdumpSpec()
    built = build_kdump(memory, spec)
    image = open_kdump(poke(built, spec, "bitmap_blocks", 1))
    assert not image.meta.complete
    assert "the header is wrong about where they are" in image.meta.incomplete_reason
    assert "cut short" not in image.meta.incomplete_reason
    assert image.state(0) is PageState.LOST
