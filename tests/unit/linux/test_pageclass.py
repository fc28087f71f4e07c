"""What a page is called, for the kernels' several ways to say so."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dumpfs.errors import TranslationError, VmcoreinfoError
from dumpfs.linux.pageclass import BLOCK_PFNS, PageClass, PageClassifier, dropped_classes, keep_mask
from dumpfs.ranges import RangeSet
from dumpfs.vmcoreinfo import Vmcoreinfo

MEM_MAP = 0xFFFFEA0000000000
POINTER = 0xFFFFFFFF81000000
SIZE = 64
LRU, SLAB, PRIVATE, SWAPCACHE, HEAD, SWAPBACKED, HWPOISON = 4, 9, 13, 10, 16, 19, 22

COMMON = {
    "OSRELEASE": "6.1.0",
    "SYMBOL(mem_map)": f"{POINTER:x}",
    "SIZE(page)": "64",
    "OFFSET(page.flags)": "0",
    "OFFSET(page.compound_head)": "8",
    "OFFSET(page.mapping)": "24",
    "OFFSET(page.private)": "40",
    "OFFSET(page._mapcount)": "48",
    "NUMBER(PG_lru)": str(LRU),
    "NUMBER(PG_private)": str(PRIVATE),
    "NUMBER(PG_swapcache)": str(SWAPCACHE),
    "NUMBER(PG_swapbacked)": str(SWAPBACKED),
    "NUMBER(PG_head_mask)": str(1 << HEAD),
    "NUMBER(PG_hwpoison)": str(HWPOISON),
    "LENGTH(zone.free_area)": "11",
}
OLD = {
    "NUMBER(PG_slab)": str(SLAB),
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": "-129",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": "-257",
}
KERNELS = {
    "4.16 to 6.5": COMMON
    | OLD
    | {"OFFSET(page.compound_dtor)": "16", "OFFSET(page.compound_order)": "17", "NUMBER(HUGETLB_PAGE_DTOR)": "2"},
    "4.4 to 4.15": COMMON
    | OLD
    | {"OFFSET(page.compound_dtor)": "16", "OFFSET(page.compound_order)": "18", "NUMBER(HUGETLB_PAGE_DTOR)": "2"},
    "6.6 to 6.8": COMMON | OLD | {"NUMBER(PG_hugetlb)": "8"},
    "6.12": COMMON
    | {
        "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": str(0xF5 << 24),
        "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": str(0xF0 << 24),
        "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": str(0xF1 << 24),
        "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)": str(0xF4 << 24),
        "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)": str(0xF8 << 24),
    },
}
each_kernel = pytest.mark.parametrize("version", KERNELS)


class Pages:
    """An array of struct page for one of `KERNELS`, as kernel memory."""

    word_size = 8
    byteorder = "little"

    def __init__(self, version: str, count: int = BLOCK_PFNS) -> None:
        self.version = version
        self.data = bytearray(SIZE * count)
        self.count = count
        self.missing = range(0)
        for pfn in range(count):
            struct.pack_into("<i", self.data, pfn * SIZE + 48, -1)

    def put(self, pfn: int, flags: tuple[int, ...] = (), **fields: int) -> None:
        base = pfn * SIZE
        places = {"compound_head": 8, "mapping": 24, "private": 40}
        struct.pack_into("<Q", self.data, base, sum(1 << bit for bit in flags))
        for name, value in fields.items():
            if name == "mapcount":
                struct.pack_into("<I", self.data, base + 48, value & 0xFFFFFFFF)
            else:
                struct.pack_into("<Q", self.data, base + places[name], value)

    def compound(self, pfn: int, order: int, flags: tuple[int, ...] = (), hugetlb: bool = False, **fields: int) -> None:
        """A compound page of 2^order pages."""
        if hugetlb and self.version == "6.12":
            fields["mapcount"] = 0xF4 << 24
        self.put(pfn, (*flags, HEAD), **fields)
        for tail in range(pfn + 1, min(pfn + (1 << order), self.count)):
            self.put(tail, compound_head=MEM_MAP + pfn * SIZE + 1)
        base = (pfn + 1) * SIZE
        if self.version.startswith("6"):
            extra = 1 << 8 if hugetlb and self.version == "6.6 to 6.8" else 0
            struct.pack_into("<Q", self.data, base, order | extra)
        elif self.version == "4.4 to 4.15":
            struct.pack_into("<HH", self.data, base + 16, 2 if hugetlb else 1, order)
        else:
            struct.pack_into("<BB", self.data, base + 16, 2 if hugetlb else 1, order)

    def buddy(self, pfn: int, order: int) -> None:
        self.put(pfn, private=order, mapcount=0xF0 << 24 if self.version == "6.12" else -129)

    def read_word(self, vaddr: int) -> int:
        assert vaddr == POINTER
        return MEM_MAP

    def read(self, vaddr: int, size: int) -> bytes:
        start = vaddr - MEM_MAP
        if any(pfn in self.missing for pfn in (start // SIZE, (start + size - 1) // SIZE)) or (
            self.missing and start // SIZE < self.missing.start < (start + size) // SIZE
        ):
            raise TranslationError(vaddr, "missing")
        return bytes(self.data[start : start + size])

    def classes(self, first: int = 0, count: int | None = None) -> np.ndarray:
        return classifier(self).classify(first, self.count - first if count is None else count)


def classifier(pages: Pages, keys: dict[str, str] | None = None) -> PageClassifier:
    keys = KERNELS[pages.version] if keys is None else keys
    text = "".join(f"{key}={value}\n" for key, value in keys.items()).encode()
    kernel: Any = SimpleNamespace(
        vmcoreinfo=Vmcoreinfo(text),
        space=pages,
        page_size=4096,
        machine="x86_64",
        phys_base=0,
        problems=(),
        image=SimpleNamespace(meta=SimpleNamespace(first_paddr=0)),
        phys=SimpleNamespace(ram=RangeSet([(0, pages.count)])),
    )
    return PageClassifier(kernel)


@each_kernel
def test_page_without_a_use_that_can_be_left_out_is_kept(version):
    assert not Pages(version).classes().any()


@each_kernel
def test_free_block_is_free_in_all_its_pages(version):
    pages = Pages(version)
    pages.buddy(64, 5)
    assert np.flatnonzero(pages.classes() == PageClass.FREE).tolist() == list(range(64, 96))


@each_kernel
def test_free_block_of_an_impossible_order_is_kept(version):
    pages = Pages(version)
    pages.buddy(64, 11)
    judge = classifier(pages)
    assert not judge.classify(0, 128).any()
    assert judge.odd_orders == 1


@each_kernel
@pytest.mark.parametrize(
    ("flags", "mapping", "expected"),
    [
        ((LRU,), 0x1000, PageClass.CACHE),
        ((LRU, PRIVATE), 0x1000, PageClass.CACHE_PRIVATE),
        ((LRU, SWAPBACKED), 0x1001, PageClass.USER),
        ((SWAPCACHE, SWAPBACKED), 0x1000, PageClass.CACHE),
        ((SWAPCACHE,), 0x1000, 0),
        ((SWAPCACHE, SWAPBACKED), 0x1001, PageClass.USER),
        ((PRIVATE,), 0x1000, 0),
        ((LRU, HWPOISON), 0x1000, PageClass.CACHE | PageClass.HWPOISON),
    ],
    ids=["cache", "private cache", "anon", "swap cache", "owner private", "anon swap cache", "other", "hwpoison"],
)
def test_single_page(version, flags, mapping, expected):
    pages = Pages(version)
    pages.put(7, flags, mapping=mapping)
    assert pages.classes(0, 16)[7] == expected


@each_kernel
def test_slab_page_is_kept_whatever_its_mapping_says(version):
    pages = Pages(version)
    if version == "6.12":
        pages.put(7, mapping=1, mapcount=0xF5 << 24)
    else:
        pages.put(7, (SLAB,), mapping=1, mapcount=-129)
    assert pages.classes(0, 16)[7] == 0


@each_kernel
def test_compound_page_is_left_out_whole(version):
    pages = Pages(version)
    pages.compound(512, 9, (LRU, SWAPBACKED), mapping=0x1001)
    assert np.flatnonzero(pages.classes() == PageClass.USER).tolist() == list(range(512, 1024))


@each_kernel
def test_hugetlb_page_is_user_memory(version):
    pages = Pages(version)
    pages.compound(512, 9, hugetlb=True, mapping=0x1000)
    assert np.flatnonzero(pages.classes() == PageClass.USER).tolist() == list(range(512, 1024))


@each_kernel
def test_order_of_an_unaligned_head_is_not_believed(version):
    pages = Pages(version)
    pages.compound(513, 9, (LRU,), mapping=0x1001)
    assert np.flatnonzero(pages.classes()).tolist() == [513]


@each_kernel
def test_gigantic_page_reaches_into_later_blocks(version):
    pages = Pages(version, 2 * BLOCK_PFNS)
    pages.compound(0, 16, hugetlb=True, mapping=0x1000)
    assert (pages.classes(BLOCK_PFNS, 100) == PageClass.USER).all()


@each_kernel
def test_offline_page_is_left_out_at_every_level(version):
    pages = Pages(version)
    pages.put(3, mapcount=0xF1 << 24 if version == "6.12" else -257)
    assert keep_mask(pages.classes(0, 8), 0).tolist() == [True] * 3 + [False] + [True] * 4


def test_unaccepted_memory_is_free_in_blocks_of_the_highest_order():
    pages = Pages("6.12")
    pages.put(1024, mapcount=0xF8 << 24)
    assert np.flatnonzero(pages.classes() == PageClass.FREE).tolist() == list(range(1024, 2048))


@each_kernel
def test_part_of_a_block_is_judged_like_the_whole(version):
    pages = Pages(version)
    pages.buddy(64, 5)
    assert pages.classes(70, 40).tolist() == pages.classes()[70:110].tolist()


def test_missing_struct_pages_are_counted_and_kept():
    pages = Pages("6.12")
    pages.buddy(0, 3)
    pages.missing = range(1000, 1001)
    judge = classifier(pages)
    classes = judge.classify(0, BLOCK_PFNS)
    assert (classes[:8] == PageClass.FREE).all()
    assert 1 <= judge.unreadable <= 64


@each_kernel
@pytest.mark.parametrize("key", [key for key in COMMON if key.startswith(("OFFSET", "LENGTH")) or "PG_l" in key])
def test_missing_key_is_named(version, key):
    keys = {name: value for name, value in KERNELS[version].items() if name != key}
    with pytest.raises(VmcoreinfoError) as caught:
        classifier(Pages(version, 64), keys)
    assert caught.value.key == key


@pytest.mark.parametrize("value", ["-1", "64", "999999999999"])
def test_offset_outside_of_the_struct_is_refused(value):
    with pytest.raises(VmcoreinfoError, match="outside"):
        classifier(Pages("6.12", 64), KERNELS["6.12"] | {"OFFSET(page.flags)": value})


def refused(version: str, key: str, value: str, word_size: int = 8) -> str:
    """Why a value of VMCOREINFO is refused."""
    pages = Pages(version, 64)
    pages.word_size = word_size
    with pytest.raises(VmcoreinfoError) as caught:
        classifier(pages, KERNELS[version] | {key: value})
    assert caught.value.key == key
    assert "-i or its vmlinux" in caught.value.hint
    return caught.value.message


FLAGS = ["PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison", "PG_hugetlb"]


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize(("value", "word_size"), [("-1", 8), ("64", 8), ("32", 4)])
def test_flag_that_no_word_has_is_refused(key, value, word_size):
    said = refused("6.6 to 6.8", f"NUMBER({key})", value, word_size)
    assert f"{value} cannot be, it is 0 to {8 * word_size - 1}" in said


@pytest.mark.parametrize(
    ("key", "value", "word_size"),
    [
        ("PG_head_mask", "-65536", 8),
        ("PG_head_mask", "0", 8),
        ("PG_head_mask", str(1 << 32), 4),
        ("HUGETLB_PAGE_DTOR", "-2", 8),
        ("HUGETLB_PAGE_DTOR", "256", 8),
        *((f"PAGE_{name}_MAPCOUNT_VALUE", "-1", 8) for name in ("BUDDY", "OFFLINE", "UNACCEPTED", "SLAB", "HUGETLB")),
        *((f"PAGE_{name}_MAPCOUNT_VALUE", "0", 8) for name in ("BUDDY", "OFFLINE", "UNACCEPTED", "SLAB", "HUGETLB")),
        ("PAGE_BUDDY_MAPCOUNT_VALUE", str((1 << 31) - 1), 8),
    ],
)
def test_value_that_its_field_cannot_have_is_refused(key, value, word_size):
    assert "cannot be, it is " in refused("4.16 to 6.5", f"NUMBER({key})", value, word_size)


@pytest.mark.parametrize(
    ("key", "value", "word_size"),
    [
        ("SIZE(page)", "65", 8),
        ("OFFSET(page.flags)", "1", 8),
        ("OFFSET(page.mapping)", "20", 8),
        ("OFFSET(page.private)", "42", 4),
        ("OFFSET(page.compound_head)", "9", 8),
        ("OFFSET(page._mapcount)", "50", 8),
    ],
)
def test_field_that_is_not_aligned_is_refused(key, value, word_size):
    assert "is no multiple of" in refused("6.12", key, value, word_size)


@each_kernel
def test_tail_page_is_not_judged_by_its_own_fields(version):
    pages = Pages(version)
    pages.compound(64, 2)
    pages.put(66, flags=(LRU,), mapping=0x1, compound_head=MEM_MAP + 64 * SIZE + 1)
    assert not pages.classes()[64:68].any()


def test_order_that_ends_outside_of_the_struct_is_refused():
    for field in ("compound_order", "compound_dtor"):
        assert "outside" in refused("4.4 to 4.15", f"OFFSET(page.{field})", "63")


@pytest.mark.parametrize(
    ("level", "dropped"),
    [
        (0, 0),
        (2, PageClass.CACHE),
        (4, PageClass.CACHE | PageClass.CACHE_PRIVATE),
        (8, PageClass.USER),
        (16, PageClass.FREE),
    ],
)
def test_level_leaves_out_its_classes_and_always_the_broken(level, dropped):
    assert dropped_classes(level) == dropped | PageClass.HWPOISON | PageClass.OFFLINE
