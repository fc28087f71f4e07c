"""Page tables of each architecture, built by hand."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.arch import aarch64, s390x, x86_64
from dumpfs.arch.walk import MAX_VISITS, PageTables
from dumpfs.errors import PageError, TranslationError
from dumpfs.memory.virtual import Area, WalkReport
from tests.unit.linux.guest import PAGE, Guest
from tests.work import bounded_work

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
TOP = 1 << 64


def x86(depth: int = 4, sme_mask: int = 0, **maps: tuple[int, int, int]) -> tuple[Guest, PageTables]:
    """Tables that map `maps`: (vaddr, paddr, level)."""
    guest = Guest()
    root = guest.table()
    for vaddr, paddr, level in maps.values():
        guest.map_x86(root, vaddr, paddr | sme_mask, level, depth)
    return guest, x86_64.page_tables(guest.phys(), root, depth, sme_mask)


@pytest.mark.parametrize("depth", [4, 5])
@pytest.mark.parametrize(("level", "size"), [(1, 4 * KB), (2, 2 * MB), (3, GB)], ids=["4K", "2M", "1G"])
def test_x86_64_page_of_each_size(depth: int, level: int, size: int):
    vaddr = TOP - 8 * GB
    _, tables = x86(depth, page=(vaddr, 4 * GB, level))
    assert tables.translate(vaddr + 0x123) == (4 * GB + 0x123, size - 0x123)
    assert tables.translate(vaddr + size - 1) == (4 * GB + size - 1, 1)
    with pytest.raises(TranslationError):
        tables.translate(vaddr + size)


def test_x86_64_pat_bit_of_a_large_page_is_no_address_bit():
    _, tables = x86(page=(TOP - 2 * MB, 6 * MB | 1 << 12, 2))
    assert tables.translate(TOP - 2 * MB)[0] == 6 * MB


def test_x86_64_pat_bit_of_a_small_page_does_not_make_it_a_table():
    _, tables = x86(page=(TOP - PAGE, 0x5000 | 1 << 7, 1))
    assert tables.translate(TOP - PAGE)[0] == 0x5000


def test_x86_64_no_execute_and_other_flags_are_no_address_bits():
    _, tables = x86(page=(TOP - PAGE, 0x5000 | 1 << 63 | 0x0FF0 << 48, 1))
    assert tables.translate(TOP - PAGE)[0] == 0x5000


def test_encryption_bit_is_taken_out_of_addresses():
    _, tables = x86(sme_mask=1 << 47, page=(TOP - 2 * MB, 4 * MB, 2))
    assert tables.translate(TOP - 2 * MB)[0] == 4 * MB


def test_the_level_that_has_no_entry_is_named():
    _, tables = x86(page=(TOP - PAGE, 0x5000, 1))
    for vaddr, level in ((TOP - 2 * PAGE, 1), (TOP - 4 * MB, 2), (TOP - 2 * GB, 3), (TOP - (1 << 40), 4)):
        with pytest.raises(TranslationError) as caught:
            tables.translate(vaddr)
        assert (caught.value.level, caught.value.vaddr) == (level, vaddr)


@pytest.mark.parametrize("vaddr", [0, 0x7FFFFFFFF000, 1 << 47, TOP - (1 << 47) - 1, TOP])
def test_kernel_tables_answer_for_kernel_addresses_only(vaddr: int):
    _, tables = x86(page=(TOP - PAGE, 0x5000, 1))
    with pytest.raises(TranslationError):
        tables.translate(vaddr)


def test_user_half_is_translated_on_request():
    guest = Guest()
    root = guest.table()
    guest.map_x86(root, 0x400000, 0x7000)
    assert x86_64.page_tables(guest.phys(), root, 4, user=True).translate(0x400010)[0] == 0x7010


def test_a_missing_table_is_a_page_error():
    guest, tables = x86(page=(TOP - PAGE, 0x5000, 1))
    guest.lost_pages.add(tables.root // PAGE)
    with pytest.raises(PageError):
        tables.translate(TOP - PAGE)


def test_areas_join_what_is_virtually_contiguous():
    base = TOP - 2 * GB
    _, tables = x86(
        a=(base, 2 * MB, 2),
        b=(base + 2 * MB, 0x9000, 1),
        c=(base + 2 * MB + PAGE, 0xA000, 1),
        d=(base + 2 * MB + 3 * PAGE, 0xB000, 1),
    )
    assert list(tables.areas()) == [
        Area(base, 2 * MB + 2 * PAGE, ((2 * MB, 2 * MB), (0x9000, 2 * PAGE))),
        Area(base + 2 * MB + 3 * PAGE, PAGE, ((0xB000, PAGE),)),
    ]


def test_areas_are_cut_to_the_range_asked_for():
    base = TOP - 2 * GB
    _, tables = x86(a=(base, 2 * MB, 2))
    assert list(tables.areas(base + 0x3000, base + 0x5000)) == [
        Area(base + 0x3000, 0x2000, ((2 * MB + 0x3000, 0x2000),))
    ]


def test_first_mapped_is_the_lowest():
    base = TOP - 2 * GB
    _, tables = x86(b=(base + 6 * MB, 2 * MB, 2), a=(base + 5 * MB, 0x9000, 1))
    assert tables.first_mapped(base, TOP) == (base + 5 * MB, 0x9000)
    assert tables.first_mapped(base, base + MB) is None


def test_areas_step_over_missing_tables_and_count_them():
    base = TOP - 2 * GB
    guest, tables = x86(a=(base, 0x9000, 1), b=(base + 2 * MB, 0xA000, 1))
    pmd = guest.get((guest.get(tables.root + 8 * 511) & ~0xFFF) + 8 * 510) & ~0xFFF
    guest.lost_pages.add((guest.get(pmd) & ~0xFFF) // PAGE)
    report = WalkReport()
    assert [area.vaddr for area in tables.areas(report=report)] == [base + 2 * MB]
    assert report.unreadable == 1


def test_a_table_that_holds_itself_ends():
    guest = Guest()
    root = guest.table()
    for i in range(512):
        guest.put(root + 8 * i, root | 0x63)
    tables = x86_64.page_tables(guest.phys(), root, 4)
    report = WalkReport()
    areas = list(tables.areas(report=report))
    assert report.tables <= 4 * MAX_VISITS
    assert report.repeated
    assert sum(area.size for area in areas) <= 4 * MAX_VISITS * 512 * PAGE
    assert tables.translate(TOP - 1)[0] == root + PAGE - 1  # the mapping is odd, but it is one


def test_the_limit_of_tables_ends_a_listing_and_is_told():
    _, tables = x86(**{f"m{i}": (TOP - 2 * GB + i * 2 * MB, 0x9000, 1) for i in range(20)})
    report = WalkReport()
    assert len(list(tables.areas(report=report, max_tables=10))) < 20
    assert report.truncated


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["x86_64-4", "x86_64-5", "aarch64", "s390x"]))
def test_garbage_tables_end_soon(seed: int, kind: str):
    rng = random.Random(seed)
    guest = Guest(16, "big" if kind == "s390x" else "little")
    flags = (0x63, 0xE3, 3, 4, 8, 0xC)
    for page in range(16):
        some = [rng.choice([0, rng.getrandbits(64), rng.randrange(16) * PAGE | rng.choice(flags)]) for _ in range(64)]
        entries = struct.pack(f"{'>' if kind == 's390x' else '<'}512Q", *rng.choices(some, k=512))
        guest.put(page * PAGE, entries)
    phys = guest.phys()
    tables = {
        "x86_64-4": lambda: x86_64.page_tables(phys, 0, 4),
        "x86_64-5": lambda: x86_64.page_tables(phys, 0, 5),
        "aarch64": lambda: aarch64.page_tables(phys, 0, PAGE, 48),
        "s390x": lambda: s390x.page_tables(phys, 0, 3),
    }[kind]()
    report = WalkReport()
    end = -1
    with bounded_work(1_000_000):  # measured: at most 177,000
        for area in tables.areas(report=report, max_tables=200):
            assert area.vaddr >= end
            assert sum(size for _, size in area.runs) == area.size
            end = area.vaddr + area.size
    assert report.tables <= 200
    for _ in range(20):
        vaddr = tables.first + rng.getrandbits(50) % (tables.stop - tables.first)
        try:
            paddr, size = tables.translate(vaddr)
        except (TranslationError, PageError):
            continue
        assert paddr >= 0
        assert size > 0


GRANULES = [(4 * KB, 39), (4 * KB, 48), (4 * KB, 52), (16 * KB, 36), (16 * KB, 47), (16 * KB, 48), (16 * KB, 52)]
GRANULES += [(64 * KB, 42), (64 * KB, 48), (64 * KB, 52)]


class Arm:
    """aarch64 tables filled by the Arm ARM's rules, independent of the walker's."""

    def __init__(self, granule: int, bits: int) -> None:
        self.guest = Guest(1024)
        self.granule, self.bits = granule, bits
        self.next = 1024 * PAGE
        self.root = self.table()

    def table(self) -> int:
        self.next = (self.next - self.granule) // self.granule * self.granule
        return self.next

    def entry(self, paddr: int, kind: int) -> int:
        if self.granule == 64 * KB:
            return paddr & 0xFFFFFFFF0000 | (paddr >> 48 & 0xF) << 12 | kind
        if self.bits == 52:
            return paddr & (1 << 50) - 1 | (paddr >> 50 & 3) << 8 | kind
        return paddr | kind

    def map(self, vaddr: int, paddr: int, level: int = 3) -> None:
        """Map one page (level 3) or block at the Arm level `level`; -1 and 0 are the highest."""
        shift = self.granule.bit_length() - 1
        step = shift - 3
        levels = -(-(self.bits - shift) // step)
        table = self.root
        for arm_level in range(4 - levels, level + 1):
            low = shift + step * (3 - arm_level)
            index = vaddr >> low & (1 << min(step, self.bits - low)) - 1
            slot = table + 8 * index
            if arm_level == level:
                self.guest.put(slot, self.entry(paddr, 3 if level == 3 else 1))
                return
            if not self.guest.get(slot):
                self.guest.put(slot, self.entry(self.table(), 3))
            table = self.guest.get(slot) & 0xFFFFFFFFF000 & -self.granule

    def tables(self) -> PageTables:
        return aarch64.page_tables(self.guest.phys(), self.root, self.granule, self.bits)


@pytest.mark.parametrize(("granule", "bits"), GRANULES, ids=[f"{g >> 10}K-{b}" for g, b in GRANULES])
def test_aarch64_page(granule: int, bits: int):
    arm = Arm(granule, bits)
    vaddr = TOP - (1 << bits - 1) + 5 * granule
    arm.map(vaddr, 0x40000000 + granule)
    tables = arm.tables()
    assert tables.translate(vaddr + 8) == (0x40000000 + granule + 8, granule - 8)
    assert list(tables.areas()) == [Area(vaddr, granule, ((0x40000000 + granule, granule),))]
    for outside in (vaddr - 1, TOP - (1 << bits) - 1, 0x1000):
        with pytest.raises(TranslationError):
            tables.translate(outside)


@pytest.mark.parametrize(("granule", "size"), [(4 * KB, 2 * MB), (16 * KB, 32 * MB), (64 * KB, 512 * MB)])
def test_aarch64_block(granule: int, size: int):
    arm = Arm(granule, 48)
    vaddr = TOP - (1 << 48) + 3 * size
    arm.map(vaddr, 2 * size, level=2)
    assert arm.tables().translate(vaddr + 0x1234) == (2 * size + 0x1234, size - 0x1234)


@pytest.mark.parametrize("granule", [4 * KB, 16 * KB, 64 * KB])
def test_aarch64_52_bit_physical_addresses(granule: int):
    arm = Arm(granule, 52)
    arm.map(TOP - granule, 0xF << 48 | granule)
    assert arm.tables().translate(TOP - granule)[0] == 0xF << 48 | granule


def test_aarch64_last_level_entry_that_says_block_is_not_mapped():
    arm = Arm(4 * KB, 48)
    arm.map(TOP - 4 * KB, 0x1000)
    page_table = arm.next
    arm.guest.put(page_table + 8 * 511, 0x1000 | 1)
    with pytest.raises(TranslationError):
        arm.tables().translate(TOP - 4 * KB)


def s390() -> tuple[Guest, int, int, int]:
    """A region-third table, a segment table and a page table, empty as Linux makes them."""
    guest = Guest(64, "big")
    region, segment, page = 0x10000, 0x14000, 0x18000
    for i in range(2048):
        guest.put(region + 8 * i, 0x24)
        guest.put(segment + 8 * i, 0x20)
    for i in range(256):
        guest.put(page + 8 * i, 0x400)
    guest.put(region, segment | 4 | 3)
    guest.put(segment + 8, page)
    return guest, region, segment, page


def test_s390x_page_segment_and_region():
    guest, region, segment, page = s390()
    guest.put(page + 8 * 2, 0x5000)
    guest.put(segment + 8 * 2, 3 * MB | 0x400)
    guest.put(region + 8, 2 * GB * 3 | 0x400 | 4)
    tables = s390x.page_tables(guest.phys(), region, 1)
    assert tables.translate(MB + 2 * PAGE + 7) == (0x5007, PAGE - 7)
    assert tables.translate(2 * MB + 7) == (3 * MB + 7, MB - 7)
    assert tables.translate(2 * GB + 7) == (6 * GB + 7, 2 * GB - 7)
    assert [area.vaddr for area in tables.areas()] == [MB + 2 * PAGE, 2 * MB, 2 * GB]
    for vaddr in (0, MB, 4 * GB, 1 << 42):
        with pytest.raises(TranslationError):
            tables.translate(vaddr)


def test_s390x_entry_of_another_table_type_is_not_followed():
    guest, region, segment, _ = s390()
    guest.put(region, segment | 8 | 3)
    with pytest.raises(TranslationError):
        s390x.page_tables(guest.phys(), region, 1).translate(MB)
