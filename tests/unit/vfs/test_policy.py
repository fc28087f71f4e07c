"""The policy table: what each view gives for a page of each state, under both hole policies."""

from __future__ import annotations

import errno
import io

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import HolePolicy
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import FileNode
from tests.unit.vfs.fakes import PAGE, C, E, FakeImage, L, P, S, fake_dump

STORED, EXCLUDED, ABSENT, LOST, CORRUPT, PARTIAL = 1, 3, 5, 7, 9, 11
EDGE = 1536
"""Bytes of the partial page that are RAM."""


def image() -> FakeImage:
    """Pages 0 to 11, the one of interest always behind a stored neighbour; page 5 is not RAM."""
    states = {0: S, 1: S, 2: S, 3: E, 4: S, 6: S, 7: L, 8: S, 9: C, 10: S, 11: P}
    return FakeImage(states, partial={11: (0, EDGE)})


def outcome(read: object) -> object:
    """What a call returns, or the errno it fails with."""
    try:
        return read()
    except DumpfsError as error:
        return error.errno


def place(dump: Dump, view: str, pfn: int) -> int:
    """Offset of a page in a view of all memory; in the core, RAM above the gap is a range of its own."""
    if view == "hmem":
        return pfn * PAGE
    plan = dump.tree.lookup_path("vmcore").planned()
    loads = [e for e in plan.extents[1:] if e.start <= pfn * PAGE < e.start + e.size]
    return loads[0].offset + pfn * PAGE - loads[0].start


def full(pfn: int) -> bytes:
    return image().content(pfn)


ZEROS = bytes(PAGE)
TABLE = [
    # state, holes=zero, holes=error
    (STORED, full(STORED), full(STORED)),
    (EXCLUDED, ZEROS, errno.ENODATA),
    (LOST, errno.EIO, errno.EIO),
    (CORRUPT, errno.EIO, errno.EIO),
    (PARTIAL, full(PARTIAL), full(PARTIAL)),
]


@pytest.mark.parametrize("view", ["hmem", "vmcore"])
@pytest.mark.parametrize(("pfn", "zero", "error"), TABLE, ids=["stored", "excluded", "lost", "corrupt", "partial"])
@pytest.mark.parametrize("size", [PAGE, 100, 2 * PAGE], ids=["page", "inside", "two pages"])
def test_memory_views_follow_the_table(view, pfn, zero, error, size):
    for holes, expected in ((HolePolicy.ZERO, zero), (HolePolicy.ERROR, error)):
        dump = fake_dump(image(), holes=holes)
        node = dump.tree.lookup_path(view)
        first = pfn if size <= PAGE else pfn - 1
        got = outcome(lambda node=node, dump=dump, first=first: node.read(place(dump, view, first), size))
        if isinstance(expected, bytes):
            expected = expected[:size] if size <= PAGE else full(pfn - 1) + expected
        assert got == expected, holes


def test_absent_memory_of_hmem_reads_as_zeros():
    assert fake_dump(image()).tree.lookup_path("hmem").read(ABSENT * PAGE, PAGE) == ZEROS


def test_absent_memory_of_hmem_is_no_such_device_under_holes_error():
    node = fake_dump(image(), holes=HolePolicy.ERROR).tree.lookup_path("hmem")
    assert outcome(lambda: node.read(ABSENT * PAGE, PAGE)) == errno.ENXIO


def test_absent_memory_is_not_in_the_core():
    plan = fake_dump(image()).tree.lookup_path("vmcore").planned()
    assert not [e for e in plan.extents[1:] if e.start <= ABSENT * PAGE < e.start + e.size]


def test_partial_page_is_cut_to_the_byte_in_the_core():
    core = ELFFile(io.BytesIO(fake_dump(image()).tree.lookup_path("vmcore").planned().headers))
    last = list(core.iter_segments())[-1]
    assert last["p_paddr"] == 6 * PAGE
    assert last["p_filesz"] == last["p_memsz"] == 5 * PAGE + EDGE


def page(pfn: int | str, **options: object) -> FileNode | None:
    return fake_dump(image(), **options).tree.lookup_path(f"pages/{pfn}")


@pytest.mark.parametrize("holes", HolePolicy)
@pytest.mark.parametrize("pfn", [STORED, PARTIAL], ids=["stored", "partial"])
def test_page_with_content_is_read(pfn, holes):
    node = page(pfn, holes=holes)
    node.check_open()
    assert node.read(0, PAGE) == full(pfn)


@pytest.mark.parametrize("holes", HolePolicy)
def test_excluded_page_resolves_and_does_not_open(holes):
    node = page(EXCLUDED, holes=holes)
    assert outcome(node.check_open) == errno.ENODATA
    assert outcome(lambda: node.read(0, PAGE)) == errno.ENODATA


@pytest.mark.parametrize("holes", HolePolicy)
@pytest.mark.parametrize("pfn", [LOST, CORRUPT], ids=["lost", "corrupt"])
def test_lost_or_corrupt_page_opens_and_does_not_read(pfn, holes):
    node = page(pfn, holes=holes)
    node.check_open()
    assert outcome(lambda: node.read(0, PAGE)) == errno.EIO


@pytest.mark.parametrize("pfn", [ABSENT, 12, 1 << 40, 1 << 60])
def test_absent_page_is_not_found(pfn):
    assert page(pfn) is None


@pytest.mark.parametrize(
    ("pfn", "state"),
    [(STORED, b"stored"), (EXCLUDED, b"excluded"), (LOST, b"lost"), (PARTIAL, b"partial")],
)
def test_page_tells_its_state(pfn, state):
    assert page(pfn).xattrs()["user.dumpfs.state"] == state


@given(
    st.dictionaries(st.integers(0, 60), st.sampled_from([S, S, S, E, L, C, P])),
    st.lists(st.tuples(st.integers(0, PAGE - 1), st.integers(1, PAGE))),
    st.sampled_from(HolePolicy),
)
def test_any_memory_is_the_same_through_hmem_and_the_core(states, extents, holes):
    partial = {p: (0, PAGE) for p, s in states.items() if s is P}
    partial |= {p: (min(e), max(e)) for p, e in zip(partial, extents, strict=False) if min(e) < max(e)}
    dump = fake_dump(FakeImage(states, partial), holes=holes)
    hmem, core = dump.tree.lookup_path("hmem"), dump.tree.lookup_path("vmcore")
    seen = set()
    for load in ELFFile(io.BytesIO(core.planned().headers)).iter_segments():
        if load["p_type"] != "PT_LOAD":
            continue
        for paddr in range(load["p_paddr"], load["p_paddr"] + load["p_filesz"], 512):
            seen.add(paddr // PAGE)
            size = min(512 - paddr % 512, load["p_paddr"] + load["p_filesz"] - paddr)
            offset = load["p_offset"] + paddr - load["p_paddr"]
            ours = outcome(lambda paddr=paddr, size=size: hmem.read(paddr, size))
            assert outcome(lambda offset=offset, size=size: core.read(offset, size)) == ours
    assert seen == {p for p in states if p not in partial or partial[p][0] < partial[p][1]}
