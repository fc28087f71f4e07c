"""ELF notes: order, padding, and images that are not what they should be."""

from __future__ import annotations

import pytest

from dumpfs.notes import MAX_NOTES, build_note, find_note, parse_notes
from tests.build.notes import note, prstatus
from tests.work import bounded_work

ORDERS = ["little", "big"]


@pytest.mark.parametrize("order", ORDERS)
def test_notes_are_read_in_order(order):
    image = prstatus(1, order) + prstatus(2, order) + note(b"VMCOREINFO", 0, b"OSRELEASE=x\n", order)
    found = list(parse_notes(image, order))
    assert [(n.name, n.type, len(n.desc)) for n in found] == [
        (b"CORE", 1, 336),
        (b"CORE", 1, 336),
        (b"VMCOREINFO", 0, 12),
    ]
    last = found[-1]
    assert image[last.desc_offset :][:12] == b"OSRELEASE=x\n"
    assert last.desc_offset == last.offset + 24


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", range(6))
def test_a_built_note_is_what_others_build(order, size):
    assert build_note(b"CORE", 7, b"x" * size, order) == note(b"CORE", 7, b"x" * size, order)


def test_the_unused_end_of_a_cpu_buffer_is_stepped_over():
    image = note(b"CORE", 1, b"one", "little") + bytes(24) + note(b"CORE", 1, b"two", "little")
    assert [n.desc for n in parse_notes(image, "little")] == [b"one", b"two"]


def test_a_note_that_does_not_fit_ends_the_list():
    image = note(b"CORE", 1, b"one", "little") + note(b"CORE", 1, b"longer", "little")[:-3]
    assert [n.desc for n in parse_notes(image, "little")] == [b"one"]


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_cut_image_is_no_error(cut):
    image = note(b"CORE", 1, b"some data", "little") + note(b"CORE", 2, b"more", "little")
    assert len(list(parse_notes(image[:cut], "little"))) <= 2


def test_huge_sizes_are_no_loop_and_no_allocation():
    assert list(parse_notes(b"\xff" * 64, "little")) == []
    assert len(list(parse_notes(bytes(1 << 16), "little"))) == 0


def test_a_note_is_found_by_owner_and_type():
    image = (
        note(b"CORE", 1, b"no", "big") + note(b"VMCOREINFO", 1, b"no", "big") + note(b"VMCOREINFO", 0, b"yes", "big")
    )
    found = find_note(image, "big", b"VMCOREINFO")
    assert found is not None
    assert found.desc == b"yes"
    assert find_note(image, "big", b"QEMU") is None


def test_an_area_of_zeros_is_stepped_over_at_once():
    image = bytes(12 * 5_000_000) + build_note(b"CORE", 1, b"x", "little")
    with bounded_work(200):  # measured: at most 20
        assert [note.desc for note in parse_notes(image, "little")] == [b"x"]


def test_notes_have_an_end():
    image = build_note(b"", 1, b"", "little") * (MAX_NOTES + 1000)
    assert sum(1 for _ in parse_notes(image, "little")) == MAX_NOTES
