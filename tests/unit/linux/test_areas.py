"""The list of what page tables map, and reading it."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.arch import aarch64, x86_64
from dumpfs.arch.walk import MAX_VISITS
from dumpfs.errors import PageError, TranslationError
from dumpfs.linux.areas import AreaLister, MappedMemory, find_areas, pack_tables, unpack_tables
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState
from tests.unit.linux.guest import PAGE, Guest
from tests.work import bounded_work

MB, GB = 1 << 20, 1 << 30
TOP = 1 << 64
DIRECT = 0xFFFF888000000000
VMALLOC = 0xFFFFC90000000000
TEXT = 0xFFFFFFFF81000000
PRESENT = 0x63


class Machine:
    """A guest and its root table."""

    def __init__(self, pages: int = 256, depth: int = 4) -> None:
        self.guest = Guest(pages)
        self.root = self.guest.table()
        self.depth = depth

    def map(self, vaddr: int, paddr: int = 0x5000, level: int = 1) -> None:
        self.guest.map_x86(self.root, vaddr, paddr, level, self.depth)

    @property
    def tables(self) -> x86_64.PageTables:
        return x86_64.page_tables(self.guest.phys(), self.root, self.depth)

    def kernel(self, **facts: object) -> SimpleNamespace:
        kernel = SimpleNamespace(
            space=SimpleNamespace(tables=self.tables),
            machine="x86_64",
            page_offset=DIRECT,
            text=(TEXT, 0x10000, 0x4000),
            phys=self.guest.phys(),
            page_size=PAGE,
        )
        vars(kernel).update(facts)
        return kernel

    def find(self, limit: int = 100, **facts: object) -> list[tuple[int, int]]:
        return list(find_areas(self.kernel(**facts), limit).ranges)


def test_direct_map_and_image_are_left_to_others():
    machine = Machine()
    machine.map(DIRECT, 0, 3)
    for page in range(6):
        machine.map(TEXT + page * PAGE, 0x10000 + page * PAGE)
    machine.map(VMALLOC)
    machine.map(TOP - 2 * PAGE)
    assert machine.find() == [(VMALLOC, PAGE), (TEXT + 0x4000, 2 * PAGE), (TOP - 2 * PAGE, PAGE)]


def test_neighbours_in_any_page_size_are_one_range():
    machine = Machine()
    machine.map(VMALLOC + 2 * MB - PAGE)
    machine.map(VMALLOC + 2 * MB, 0, 2)
    machine.map(VMALLOC + 4 * MB, 0x9000)
    assert machine.find() == [(VMALLOC + 2 * MB - PAGE, 2 * MB + 2 * PAGE)]


def test_a_range_may_end_at_the_end_of_memory():
    machine = Machine()
    machine.map(TOP - PAGE)
    assert machine.find() == [(TOP - PAGE, PAGE)]


@given(
    st.sampled_from([4, 5]),
    st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([1, 1, 1, 2, 3])), min_size=1, max_size=25),
)
def test_listing_agrees_with_a_walk_entry_by_entry(depth: int, places: list[tuple[int, int]]):
    machine = Machine(512, depth)
    for number, level in places:
        size = 1 << 12 + 9 * (level - 1)
        vaddr = VMALLOC + level * 512 * GB + number * PAGE // size * size
        machine.map(vaddr, 0 if level > 1 else 0x3000, level)
    lister = AreaLister(machine.tables)
    assert lister.find() == [(a.vaddr, a.vaddr + a.size) for a in machine.tables.areas()]


def test_large_pages_of_devices_are_no_memory():
    machine = Machine()
    machine.map(VMALLOC, 4 * GB, 2)
    machine.map(VMALLOC + 2 * MB, 0, 2)
    assert machine.find() == [(VMALLOC + 2 * MB, 2 * MB)]


def test_too_many_ranges_are_joined_across_small_gaps():
    machine = Machine()
    for page in (0, 2, 4, 64):
        machine.map(VMALLOC + page * PAGE)
    areas = find_areas(machine.kernel(), 2)
    assert areas.ranges == ((VMALLOC, 5 * PAGE), (VMALLOC + 64 * PAGE, PAGE))
    assert "4 KiB apart share a segment" in areas.notices[0]


def test_ranges_too_far_apart_are_left_out_from_the_low_end():
    machine = Machine()
    for number in range(4):
        machine.map(VMALLOC + number * 64 * MB)
    areas = find_areas(machine.kernel(), 2)
    assert [start for start, _ in areas.ranges] == [VMALLOC + 128 * MB, VMALLOC + 192 * MB]
    assert f"2 ranges of vmalloc memory ({2 * PAGE} bytes) are left out" in areas.notices


def test_no_more_is_listed_than_a_sane_kernel_maps():
    machine = Machine()
    for number in range(20):
        machine.map(VMALLOC + number * 2 * GB, 0, 3)
    areas = find_areas(machine.kernel(), 100)
    assert areas.ranges == ((VMALLOC + 38 * GB, GB),)
    assert any("19 ranges" in notice for notice in areas.notices)


def test_a_table_in_many_slots_is_listed_a_few_times():
    machine = Machine()
    machine.map(VMALLOC)
    guest = machine.guest
    entry = guest.get(machine.root + 8 * (VMALLOC >> 39 & 511))
    for slot in range(410, 440):
        guest.put(machine.root + 8 * slot, entry)
    assert len(machine.find()) == MAX_VISITS


@pytest.mark.parametrize("depth", [4, 5])
def test_tables_that_lead_to_themselves_end(depth: int):
    machine = Machine(16, depth)
    for slot in range(512):
        machine.guest.put(machine.root + 8 * slot, machine.root | PRESENT)
    with bounded_work(500_000):  # measured: at most 83,000
        areas = find_areas(machine.kernel(), 100)
    assert len(areas.ranges) <= 100


def test_any_tables_are_listed_with_bounded_work():
    noise = random.Random(3)
    machine = Machine(512)
    pages = [noise.randrange(512) * PAGE for _ in range(512)]
    for page in range(512):
        entries = [noise.choice(pages) | noise.choice((0, PRESENT, PRESENT, PRESENT | 0x80)) for _ in range(512)]
        machine.guest.put(page * PAGE, b"".join(e.to_bytes(8, "little") for e in entries))
    with bounded_work(20_000_000):  # measured: at most 5.4 million
        areas = find_areas(machine.kernel(page_offset=0xFFFF800000000000), 1000)
    assert len(areas.ranges) <= 1000
    assert all(a[0] + a[1] < b[0] for a, b in zip(areas.ranges, areas.ranges[1:], strict=False))


def test_a_missing_table_is_told():
    machine = Machine()
    machine.map(VMALLOC)
    machine.map(VMALLOC + GB)
    machine.guest.lost_pages.add(machine.guest.get(table_of(machine, VMALLOC + GB)) // PAGE)
    areas = find_areas(machine.kernel(), 100)
    assert areas.ranges == ((VMALLOC, PAGE),)
    assert "what 1 page tables map is left out, for they are not in the dump" in areas.notices


def table_of(machine: Machine, vaddr: int) -> int:
    """Slot of the second-level entry that covers an address."""
    table = machine.root
    for shift in (39, 30):
        table = machine.guest.get(table + 8 * (vaddr >> shift & 511)) & -PAGE
    return table + 8 * (vaddr >> 21 & 511)


@pytest.mark.parametrize(
    "facts", [{"machine": "s390x"}, {"space": None}, {"space": SimpleNamespace(tables=None)}], ids=str
)
def test_kernels_without_known_tables_have_no_areas(facts: dict[str, object]):
    machine = Machine()
    machine.map(VMALLOC)
    assert machine.find(**facts) == []


def test_without_a_direct_map_nothing_can_be_told_apart():
    areas = find_areas(Machine().kernel(page_offset=None), 100)
    assert areas.ranges == ()
    assert "direct map was not found" in areas.notices[0]


@pytest.mark.parametrize(("granule", "bits"), [(0x1000, 39), (0x1000, 48), (0x4000, 47), (0x10000, 52)])
def test_aarch64_tables_of_every_granule(granule: int, bits: int):
    guest = Guest(0x200000 // PAGE)
    shift = granule.bit_length() - 1
    count = -((shift - bits) // (shift - 3))
    vaddr = TOP - (1 << bits - 1) + 5 * granule
    tables = [(i + 1) * 0x20000 for i in range(count)]
    for i, table in enumerate(tables):
        low = shift + (shift - 3) * (count - 1 - i)
        width = min(shift - 3, bits - low)
        following = tables[i + 1] | 3 if i + 1 < count else 0x10000 | 3
        guest.put(table + 8 * (vaddr >> low & (1 << width) - 1), following)
    found = AreaLister(aarch64.page_tables(guest.phys(), tables[0], granule, bits)).find()
    assert found == [(vaddr, vaddr + granule)]


# -- reading


def memory(machine: Machine, policy: HolePolicy = HolePolicy.ZERO) -> MappedMemory:
    phys = PhysMemory(machine.guest, PAGE, policy)
    return MappedMemory(machine.tables, phys, strict=policy is HolePolicy.ERROR)


def two_pages() -> Machine:
    machine = Machine()
    machine.map(VMALLOC, 0x7000)
    machine.map(VMALLOC + PAGE, 0x3000)
    machine.guest.put(0x7000, b"a" * PAGE)
    machine.guest.put(0x3000, b"b" * PAGE)
    return machine


def test_reading_follows_the_tables_from_page_to_page():
    reader = memory(two_pages())
    for _ in range(2):  # the second time by what is remembered
        assert reader.read(VMALLOC + PAGE - 3, 6) == b"aaabbb"
        assert reader.read(VMALLOC + 5, 3) == b"aaa"


def test_what_is_not_mapped_between_reads_as_zeros():
    assert memory(two_pages()).read(VMALLOC + 2 * PAGE - 2, 4) == b"bb\0\0"


def test_what_is_not_mapped_is_an_error_where_holes_are():
    with pytest.raises(TranslationError):
        memory(two_pages(), HolePolicy.ERROR).read(VMALLOC + 2 * PAGE - 2, 4)


def test_a_lost_page_is_never_zeros():
    machine = two_pages()
    machine.guest.lost_pages.add(3)
    with pytest.raises(PageError):
        memory(machine).read(VMALLOC, 2 * PAGE)


def test_a_lost_table_is_never_zeros():
    machine = two_pages()
    machine.guest.lost_pages.add(machine.guest.get(table_of(machine, VMALLOC)) // PAGE)
    with pytest.raises(PageError):
        memory(machine).read(VMALLOC, 8)


def test_device_memory_reads_as_zeros():
    machine = Machine()
    machine.map(VMALLOC, 0xFED00000)
    assert memory(machine).read(VMALLOC, 8) == bytes(8)


def test_memory_left_out_follows_the_policy():
    machine = two_pages()
    guest = machine.guest
    guest.stored = RangeSet([(0, 3), (4, 256)])
    plain = guest.state
    guest.state = lambda pfn: PageState.EXCLUDED if pfn == 3 else plain(pfn)
    assert memory(machine).read(VMALLOC + PAGE, 4) == bytes(4)
    with pytest.raises(PageError):
        memory(machine, HolePolicy.ERROR).read(VMALLOC + PAGE, 4)


def test_tables_travel_between_processes():
    machine = two_pages()
    packed = json.loads(json.dumps(pack_tables(machine.tables)))
    tables = unpack_tables(machine.guest.phys(), packed)
    assert tables.translate(VMALLOC + 4) == machine.tables.translate(VMALLOC + 4)
    assert list(tables.areas()) == list(machine.tables.areas())
