"""The plan of a core, read back by pyelftools and readelf."""

from __future__ import annotations

import io
import shutil
import subprocess
from bisect import bisect_right

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.elf.core_notes import CoreNotes
from dumpfs.elf.layout import Content, CorePlan, CoreTarget, Mapping, machine_number, plan_core
from dumpfs.elf.segments import RamRanges
from dumpfs.memory.physical import HolePolicy, PhysMemory
from tests.build.notes import note, prstatus
from tests.unit.vfs.fakes import PAGE, FakeImage, S

X86 = CoreTarget("x86_64", "little", 8, PAGE, 8)
NOTES = CoreNotes(prstatus(1, "little") + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n", "little"), ())
RAM = RamRanges([(0x1000, 0x9FC00), (0x100000, 0x180000)], 0)
BASE = 0xFFFF888000000000


def loads(plan: CorePlan) -> list:
    return [s for s in ELFFile(io.BytesIO(plan.headers)).iter_segments() if s["p_type"] == "PT_LOAD"]


TEXT, VMALLOC, TOP = 0xFFFFFFFF81000000, 0xFFFFC90000000000, 1 << 64


def test_notes_come_first_then_text_ram_virtual_ranges_and_the_last_byte_of_ram():
    plan = plan_core(X86, RAM, NOTES, BASE, [Mapping(TEXT, 0x110000, 0x20000)], [(VMALLOC, 0x3000)])
    rows = [(s["p_type"], s["p_vaddr"], s["p_paddr"]) for s in ELFFile(io.BytesIO(plan.headers)).iter_segments()]
    assert rows == [
        ("PT_NOTE", 0, 0),
        ("PT_LOAD", TEXT, 0x110000),
        ("PT_LOAD", BASE + 0x1000, 0x1000),
        ("PT_LOAD", BASE + 0x100000, 0x100000),
        ("PT_LOAD", VMALLOC, TOP - 0x3000),
        ("PT_LOAD", BASE + 0x17FFFF, 0x17FFFF),
    ]
    *_, ram, _, last = loads(plan)
    assert last["p_offset"] == ram["p_offset"] + 0x7FFFF
    assert last["p_filesz"] == last["p_memsz"] == 1


def test_further_pieces_of_the_text_are_virtual_ranges():
    plan = plan_core(X86, RAM, NOTES, BASE, [Mapping(TEXT, 0x90000, 0x80000)])
    text, low, high, more, last = loads(plan)
    assert (text["p_vaddr"], text["p_paddr"], text["p_filesz"]) == (TEXT, 0x90000, 0xFC00)
    assert (more["p_vaddr"], more["p_paddr"], more["p_filesz"]) == (TEXT + 0x70000, TOP - 0x10000, 0x10000)
    assert (more["p_offset"], last["p_paddr"]) == (high["p_offset"], 0x17FFFF)
    assert low["p_paddr"] < high["p_paddr"]


@given(
    cuts=st.lists(st.integers(1, 400), min_size=2, max_size=40, unique=True),
    text=st.tuples(st.integers(0, 400), st.integers(1, 100)),
    virtual=st.integers(0, 12),
    probes=st.lists(st.integers(0, 401 * PAGE), min_size=20, max_size=20),
)
def test_memory_is_found_by_a_bisection_that_does_not_sort(cuts, text, virtual, probes):
    # As volatility3 does it: segments that are whole in the file, in the file's order.
    cuts = sorted(cuts)
    ram = [(a * PAGE, b * PAGE) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    areas = [(VMALLOC + i * 0x10000, 0x3000 + i % 3 * PAGE) for i in range(virtual)]
    alias = [Mapping(TEXT, text[0] * PAGE, text[1] * PAGE)]
    found = [s for s in loads(plan_core(X86, RamRanges(ram, 0), NOTES, BASE, alias, areas)) if s["p_filesz"]]
    rows = [(s["p_paddr"], s["p_offset"], s["p_filesz"]) for s in found if s["p_filesz"] == s["p_memsz"]]
    by_range = {s["p_paddr"]: s["p_offset"] for s in found if s["p_filesz"] > 1}
    for paddr in [*probes, *(edge for a, b in ram for edge in (a, b - 1, b))]:
        expected = next((by_range[a] + paddr - a for a, b in ram if a <= paddr < b), None)
        i = bisect_right(rows, (paddr, 1 << 64))
        base, offset, size = rows[i - 1] if i else (0, 0, 0)
        got = offset + paddr - base if base <= paddr < base + size else None
        assert got == expected
    if ram:
        assert rows[-1][0] + rows[-1][2] == ram[-1][1]


def test_every_load_is_whole_unaligned_by_declaration_and_congruent_by_offset():
    plan = plan_core(X86, RAM, NOTES, BASE, [Mapping(0xFFFFFFFF81000000, 0x110800, 0x20000)])
    for segment in loads(plan):
        assert segment["p_filesz"] == segment["p_memsz"]
        assert segment["p_align"] == 0
        assert segment["p_offset"] % PAGE == segment["p_paddr"] % PAGE


def test_ram_is_described_to_the_byte():
    assert [s["p_filesz"] for s in loads(plan_core(X86, RAM, NOTES, BASE))] == [0x9EC00, 0x80000]


def test_text_shares_the_file_range_of_its_ram():
    text, _, ram = loads(plan_core(X86, RAM, NOTES, BASE, [Mapping(TEXT, 0x110000, 0x20000)]))
    assert text["p_offset"] - ram["p_offset"] == 0x10000


@pytest.mark.parametrize(
    ("paddr", "size", "parts"),
    [
        (0x90000, 0x1000, [(0x90000, 0x1000)]),
        (0x90000, 0x20000, [(0x90000, 0xFC00)]),
        (0x90000, 0x80000, [(0x90000, 0xFC00)]),
        (0xA0000, 0x1000, []),
        (0x200000, 0x1000, []),
        (0, 0x2000, [(0x1000, 0x1000)]),
    ],
)
def test_text_is_cut_to_what_is_ram(paddr, size, parts):
    plan = plan_core(X86, RAM, NOTES, BASE, [Mapping(0xFFFFFFFF81000000, paddr, size)])
    found = [s for s in loads(plan)[:1] if s["p_vaddr"] >= TEXT]
    assert [(s["p_paddr"], s["p_filesz"]) for s in found] == parts
    assert all(s["p_vaddr"] - 0xFFFFFFFF81000000 == s["p_paddr"] - paddr for s in found)
    assert ("kernel text's physical address is not RAM" in str(plan.notices)) is (not parts)


def test_unknown_direct_map_gives_physical_addresses():
    assert [s["p_vaddr"] for s in loads(plan_core(X86, RAM, NOTES))] == [0x1000, 0x100000]


def test_filler_is_told():
    assert "4096 bytes that are not RAM" in plan_core(X86, RamRanges(RAM.ranges, 4096), NOTES).notices[0]


@pytest.mark.parametrize(
    ("ranges", "elf_class"), [([(0, 1 << 28)], 32), ([(0, 1 << 32)], 64), ([(1 << 33, (1 << 33) + PAGE)], 64), ([], 32)]
)
def test_class_is_64_where_32_bits_do_not_do(ranges, elf_class):
    target = CoreTarget("arm", "little", 4, PAGE, 4)
    core = ELFFile(io.BytesIO(plan_core(target, RamRanges(ranges, 0), NOTES).headers))
    assert core.elfclass == elf_class


def test_high_memory_of_a_32_bit_kernel_has_no_address():
    ram = RamRanges([(0, 0x30000000), (0x50000000, 0x60000000)], 0)
    for word in (4, 8):
        core = plan_core(CoreTarget("i686", "little", word, PAGE, 4), ram, NOTES, 0xC0000000)
        assert [s["p_vaddr"] for s in loads(core)] == [0xC0000000, (1 << 8 * word) - 1]


def test_identity_mapped_machine_keeps_its_addresses():
    ram = RamRanges([(0, 1 << 40)], 0)
    assert loads(plan_core(CoreTarget("s390x", "big", 8, PAGE, 8), ram, CoreNotes(b"", ()), 0))[0]["p_vaddr"] == 0


@pytest.mark.parametrize(
    ("machine", "number"),
    {"x86_64": 62, "i686": 3, "i386": 3, "aarch64": 183, "armv7l": 40, "arm": 40, "arm64": 183, "s390x": 22}.items()
    | {"ppc64le": 21, "ppc64": 21, "riscv64": 243, "loongarch64": 258, "": 0, "vax": 0}.items(),
)
def test_machine_number(machine, number):
    assert machine_number(machine) == number


@pytest.mark.parametrize(("order", "word"), [("little", 8), ("big", 8), ("little", 4), ("big", 4)])
def test_header_fields(order, word):
    plan = plan_core(CoreTarget("ppc64" if word == 8 else "arm", order, word, PAGE, word), RAM, CoreNotes(b"", ()))
    core = ELFFile(io.BytesIO(plan.headers))
    assert (core.little_endian, core.elfclass) == (order == "little", 8 * word)
    assert core["e_type"] == "ET_CORE"
    assert (core["e_flags"], core["e_shnum"], core["e_ehsize"]) == (0, 0, 64 if word == 8 else 52)
    assert core["e_ident"]["EI_OSABI"] == "ELFOSABI_SYSV"


def test_too_many_segments_for_the_header_are_counted_in_a_section():
    ram = RamRanges([(i << 16, (i << 16) + 16) for i in range(70_000)], 0)
    core = ELFFile(io.BytesIO(plan_core(X86, ram, NOTES).headers))
    assert core["e_phnum"] == 0xFFFF
    assert core.get_section(0)["sh_info"] == 70_001 == core.num_segments()
    assert core.get_segment(70_000)["p_paddr"] == 69_999 << 16


@pytest.mark.tool
def test_readelf_finds_nothing_to_complain_about(tmp_path):
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (binutils)")
    plan = plan_core(X86, RAM, NOTES, BASE, [Mapping(0xFFFFFFFF81000000, 0x110000, 0x20000)])
    (tmp_path / "core").write_bytes(plan.headers + bytes(plan.size - len(plan.headers)))
    run = subprocess.run(["readelf", "-hlnW", tmp_path / "core"], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert "NT_PRSTATUS" in run.stdout
    assert run.stdout.count("LOAD") == 3


def image_of(ranges: list[tuple[int, int]]) -> FakeImage:
    pages: dict[int, int] = {}
    partial: dict[int, tuple[int, int]] = {}
    for start, stop in ranges:
        for pfn in range(start // PAGE, -(-stop // PAGE)):
            pages[pfn] = S
            low, high = max(start - pfn * PAGE, 0), min(stop - pfn * PAGE, PAGE)
            if (low, high) != (0, PAGE):
                partial[pfn] = (low, high)
    return FakeImage(pages, partial)


def test_reading_crosses_headers_ranges_and_gaps():
    plan = plan_core(X86, RamRanges([(PAGE, 2 * PAGE), (5 * PAGE, 5 * PAGE + 100)], 0), NOTES)
    image = image_of([(PAGE, 2 * PAGE), (5 * PAGE, 5 * PAGE + 100)])
    phys = PhysMemory(image, PAGE, HolePolicy.ERROR)
    whole = plan.read(phys, 0, plan.size + 5)
    assert whole == plan.headers + image.content(1) + image.content(5)
    for offset, size in ((0, 1), (PAGE - 1, 2), (len(plan.headers) - 5, 10), (plan.size - 1, 10), (plan.size, 1)):
        assert plan.read(phys, offset, size) == whole[offset : offset + size]


def test_virtual_ranges_are_read_through_their_reader():
    plan = plan_core(X86, RamRanges([(0, PAGE)], 0), NOTES, BASE, (), [(0xFFFFC90000000000, 2 * PAGE)])
    asked = []

    def read_virtual(vaddr: int, size: int) -> bytes:
        asked.append((vaddr, size))
        return b"v" * size

    extent = plan.extents[-1]
    assert extent.content is Content.VIRTUAL
    phys = PhysMemory(FakeImage({0: S}), PAGE, HolePolicy.ZERO)
    data = plan.read(phys, extent.offset - 10, 20, read_virtual)
    assert data[10:] == b"v" * 10
    assert asked == [(0xFFFFC90000000000, 10)]
    assert next(s for s in loads(plan) if s["p_vaddr"] == 0xFFFFC90000000000)["p_offset"] == extent.offset


BLOCKS = st.lists(st.integers(0, 200), min_size=2, max_size=12, unique=True).map(sorted)


@given(BLOCKS, st.integers(0, 3000), st.integers(0, 1 << 20), st.integers(0, 40_000))
def test_any_ram_map_reads_back_by_its_own_program_headers(edges, trim, offset, size):
    edges = edges[: len(edges) // 2 * 2]
    ranges = [(a * PAGE, b * PAGE - trim) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    image = image_of(ranges)
    plan = plan_core(X86, RamRanges(ranges, 0), NOTES, BASE)
    phys = PhysMemory(image, PAGE, HolePolicy.ERROR)
    whole = plan.read(phys, 0, plan.size)
    for segment, (start, stop) in zip(loads(plan), ranges, strict=True):
        content = b"".join(image.content(p) for p in range(start // PAGE, -(-stop // PAGE)))
        assert whole[segment["p_offset"] :][: segment["p_filesz"]] == content[: stop - start]
    assert plan.read(phys, offset, size) == whole[offset : offset + size]
