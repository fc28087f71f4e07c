"""/vmlinux of a real dump: the symbols of /kallsyms, and a frame for every function that ran."""

from __future__ import annotations

import io
from bisect import bisect_right
from itertools import pairwise

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from dumpfs.elf import kernelfile
from dumpfs.elf.kernelfile import build_symbol_file
from dumpfs.errors import ViewError
from dumpfs.linux.inspect import Inspector
from dumpfs.vfs.context import Dump
from tests.unit.vfs.fakes import FakeImage, S


@pytest.fixture(scope="module")
def dump(data):
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        yield dump


@pytest.fixture(scope="module")
def elf(dump):
    node = dump.tree.lookup_path("vmlinux")
    return ELFFile(io.BytesIO(node.read(0, node.size())))


@pytest.fixture(scope="module")
def frames(elf):
    return sorted(
        (e.header.initial_location, e.header.initial_location + e.header.address_range)
        for e in elf.get_dwarf_info().CFI_entries()
        if isinstance(e, FDE)
    )


@pytest.fixture
def inspector(dump):
    return Inspector(dump.inspection.inspector.kernel)


def test_symbols_are_those_of_kallsyms(dump, elf):
    node = dump.tree.lookup_path("kallsyms")
    rows = [line.split()[:3] for line in node.read(0, node.size()).decode().splitlines()]
    wanted = sorted((int(address, 16), name) for address, _, name in rows)
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())[1:]
    assert sorted((s["st_value"], s.name) for s in symbols if s.name != "<user mode>") == wanted


def test_text_lies_where_the_kernel_ran(dump, elf):
    text = elf.get_section_by_name(".text")
    symbols = dump.inspection.inspector.kallsyms
    assert text["sh_addr"] == symbols.address("_text")
    assert text["sh_addr"] + text["sh_size"] == symbols.address("_etext")


def test_modules_have_sections_of_their_own(elf):
    section = elf.get_section_by_name("[loop]")
    assert (section["sh_addr"], section["sh_size"]) == (0xFFFFFFFFC0000000, 32768)


def test_build_id_is_the_kernels(dump, elf):
    (note,) = elf.get_section_by_name(".note.gnu.build-id").iter_notes()
    assert note["n_desc"] == dump.kernel.build_id


def test_frames_do_not_overlap(frames):
    assert all(stop <= start for (_, stop), (start, _) in pairwise(frames))


def test_every_function_on_a_stack_has_a_frame(dump, frames):
    inspector = dump.inspection.inspector
    for task in inspector.tasks:
        for frame in inspector.stack(task).frames:
            index = bisect_right(frames, (frame.lookup_pc, 1 << 64)) - 1
            assert frames[index][0] <= frame.lookup_pc < frames[index][1], hex(frame.pc)


def test_modules_and_frames_may_be_missing(inspector):
    for name in ("modules", "tasks", "types", "orc"):
        inspector.know(name, ViewError("unknown"))
    data = build_symbol_file(inspector, whole=True)
    elf = ELFFile(io.BytesIO(data))
    assert elf.get_section_by_name("[loop]") is None
    assert elf.get_section_by_name(".symtab").get_symbol_by_name("schedule")


def test_without_symbols_there_is_no_file(inspector):
    inspector.know("kallsyms", ViewError("no symbol table was found"))
    with pytest.raises(ViewError, match="no symbol table was found"):
        build_symbol_file(inspector, whole=True)


def test_too_many_symbols_are_refused(inspector, monkeypatch):
    monkeypatch.setattr(kernelfile, "MAX_SYMBOLS", 1000)
    with pytest.raises(ViewError, match="symbols cannot be"):
        build_symbol_file(inspector, whole=True)


def test_tables_that_are_too_long_are_left_out(inspector, monkeypatch):
    monkeypatch.setattr(kernelfile, "MAX_ORC_ENTRIES", 10)
    assert len(build_symbol_file(inspector, whole=False)) < 100_000


def test_a_dump_of_an_unknown_machine_does_not_offer_it():
    dump = Dump(FakeImage({0: S}, machine="vax"))
    assert dump.tree.lookup_path("vmlinux") is None
