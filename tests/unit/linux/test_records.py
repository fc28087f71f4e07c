"""Searches of kernel memory, whose work is bounded by what the dump has."""

from __future__ import annotations

from dumpfs.linux.records import find_bytes, read_pieces
from dumpfs.memory.virtual import AddressSpace, LinearMap
from dumpfs.ranges import RangeSet
from tests.unit.linux.guest import PAGE, Guest
from tests.work import bounded_work

BASE = 0xFFFFFFFF80000000
IMAGE = 256 << 20


def few_pages_of_an_image(*runs: tuple[int, int]) -> tuple[Guest, AddressSpace]:
    """A kernel image of 256 MiB of which the dump has only `runs` of pages."""
    guest = Guest(64)
    guest.stored = guest.ram = RangeSet(runs)
    space = AddressSpace(guest.phys(), "little", 8, [LinearMap("text", BASE, IMAGE, 0)])
    return guest, space


def test_pages_that_the_dump_lacks_are_passed_over_at_once():
    guest, space = few_pages_of_an_image((3, 5), (9, 10))
    guest.put(4 * PAGE + 100, b"needle")
    with bounded_work(2000, "a search of 256 MiB of which three pages are there"):
        assert list(find_bytes(space, BASE, IMAGE, b"needle")) == [BASE + 4 * PAGE + 100]
        pieces = [(vaddr - BASE, len(data)) for vaddr, data in read_pieces(space, BASE, IMAGE)]
    assert pieces == [(3 * PAGE, 2 * PAGE), (9 * PAGE, PAGE)]


def test_edges_of_a_range_need_not_be_those_of_pages():
    guest, space = few_pages_of_an_image((3, 5))
    guest.put(3 * PAGE, bytes(range(256)) * 32)
    assert list(read_pieces(space, BASE + 3 * PAGE + 5, 7)) == [(BASE + 3 * PAGE + 5, bytes(range(5, 12)))]
    assert [len(data) for _, data in read_pieces(space, BASE + 3 * PAGE - 5, PAGE)] == [PAGE - 5]


def test_what_spans_two_pages_is_found_and_what_spans_a_gap_is_not():
    guest, space = few_pages_of_an_image((3, 5), (6, 7))
    guest.put(4 * PAGE - 3, b"needle")
    guest.put(5 * PAGE - 3, b"nee")
    guest.put(6 * PAGE, b"dle")
    assert list(find_bytes(space, BASE, IMAGE, b"needle")) == [BASE + 4 * PAGE - 3]


def test_a_page_that_turns_out_bad_costs_only_itself():
    guest, space = few_pages_of_an_image((3, 8))
    guest.lost_pages.add(5)
    pieces = [(vaddr - BASE, len(data)) for vaddr, data in read_pieces(space, BASE, IMAGE)]
    assert pieces == [(3 * PAGE, PAGE), (4 * PAGE, PAGE), (6 * PAGE, PAGE), (7 * PAGE, PAGE)]
