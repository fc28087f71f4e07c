"""What VMCOREINFO tells of the kernel's struct page: where its fields lie, and what their values mean.

A key that is missing, or has a value that it cannot have, is refused by name: pages would be judged wrongly.

Sources: Linux kernel/vmcore_info.c (which keys there are, and since when), include/linux/page-flags.h, mm_types.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from dumpfs.errors import VmcoreinfoError
from dumpfs.vmcoreinfo import Vmcoreinfo

_HINT = "the filter does not know this kernel: give its VMCOREINFO with -i or its vmlinux with -x, or --keep-unknown"
_NO_TYPE = 0xFFFFFFFF
"""_mapcount of a page without a type that nobody has mapped."""
_LEAST_TYPE = 1 << 31
"""Types are negative: what is not is a number of mappings."""


@dataclass(frozen=True, slots=True)
class PageKeys:
    """Offsets, bits and values of this kernel; None where it has no such thing."""

    size: int
    flags: int
    mapping: int
    mapcount: int
    private: int
    compound_head: int
    compound_order: int | None
    """Offset in the second struct page of a compound one; None since 6.6, when it is the low byte of its flags."""
    compound_dtor: int | None
    compound_size: int
    """Bytes of either."""
    hugetlb_dtor: int | None
    hugetlb_type: int | None
    hugetlb_bit: int | None
    head_mask: int
    lru: int
    private_bit: int
    swapcache: int
    swapbacked: int | None
    slab_bit: int | None
    slab_type: int | None
    buddy_type: int
    unaccepted_type: int | None
    offline_type: int | None
    hwpoison: int | None
    max_orders: int


def find_keys(info: Vmcoreinfo, word_size: int) -> PageKeys:
    """The keys; the first one that is missing stops.

    Args:
        info: the kernel's VMCOREINFO.
        word_size: bytes of its unsigned long.

    Raises:
        VmcoreinfoError: a key is missing, or impossible, without which pages would be judged wrongly.
    """
    try:
        keys = _read_keys(info, word_size)
    except VmcoreinfoError as exc:
        raise VmcoreinfoError(
            exc.key, "not in VMCOREINFO, and pages cannot be told apart without it", hint=_HINT
        ) from exc
    _check_offsets(keys, word_size)
    _check_numbers(keys, word_size)
    return keys


def _read_keys(info: Vmcoreinfo, word_size: int) -> PageKeys:
    number = info.number
    slab_bit, slab_type = number("PG_slab"), _type_value(info, "PAGE_SLAB_MAPCOUNT_VALUE")
    if slab_bit is None and slab_type is None:
        raise VmcoreinfoError("NUMBER(PG_slab)")
    order = info.offset("page.compound_order")
    dtor = info.offset("page.compound_dtor")
    # Both were pointers or words in the second page's lru before 4.4; unsigned short to 4.15, unsigned char since.
    adjacent = dtor is not None and order is not None and order - dtor == 1
    buddy = _type_value(info, "PAGE_BUDDY_MAPCOUNT_VALUE")
    if buddy is None:
        raise VmcoreinfoError("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")
    length = info.length("zone.free_area")
    if length is None or not 0 < length < 64:
        raise VmcoreinfoError("LENGTH(zone.free_area)")
    return PageKeys(
        size=info.need_size("page"),
        flags=info.need_offset("page.flags"),
        mapping=info.need_offset("page.mapping"),
        mapcount=info.need_offset("page._mapcount"),
        private=info.need_offset("page.private"),
        compound_head=info.need_offset("page.compound_head"),
        compound_order=order,
        compound_dtor=dtor,
        compound_size=1 if adjacent else 2,
        hugetlb_dtor=number("HUGETLB_PAGE_DTOR"),
        hugetlb_type=_type_value(info, "PAGE_HUGETLB_MAPCOUNT_VALUE"),
        hugetlb_bit=number("PG_hugetlb"),
        head_mask=info.need_number("PG_head_mask"),
        lru=info.need_number("PG_lru"),
        private_bit=info.need_number("PG_private"),
        swapcache=info.need_number("PG_swapcache"),
        swapbacked=number("PG_swapbacked"),
        slab_bit=slab_bit,
        slab_type=slab_type,
        buddy_type=buddy,
        unaccepted_type=_type_value(info, "PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
        offline_type=_type_value(info, "PAGE_OFFLINE_MAPCOUNT_VALUE"),
        hwpoison=number("PG_hwpoison"),
        max_orders=length,
    )


def _type_value(info: Vmcoreinfo, name: str) -> int | None:
    """A value of the 32-bit _mapcount word: printed signed (-129) or, since 6.12, unsigned (0xf0000000)."""
    value = info.number(name)
    return None if value is None else value & 0xFFFFFFFF


def _check_offsets(keys: PageKeys, word: int) -> None:
    if keys.size % word:
        raise VmcoreinfoError("SIZE(page)", f"{keys.size} is no multiple of {word}", hint=_HINT)
    for name, offset, size, alignment in (
        ("page.flags", keys.flags, word, word),
        ("page.mapping", keys.mapping, word, word),
        ("page._mapcount", keys.mapcount, 4, 4),
        ("page.private", keys.private, word, word),
        ("page.compound_head", keys.compound_head, word, word),
        ("page.compound_order", keys.compound_order or 0, keys.compound_size, 1),
        ("page.compound_dtor", keys.compound_dtor or 0, keys.compound_size, 1),
    ):
        problem = ""
        if not 0 <= offset <= keys.size - size:
            problem = f"{offset} is outside of struct page ({keys.size} bytes)"
        elif offset % alignment:
            problem = f"{offset} is no multiple of {alignment}"
        if problem:
            raise VmcoreinfoError(f"OFFSET({name})", problem, hint=_HINT)


def _check_numbers(keys: PageKeys, word: int) -> None:
    bits = 8 * word
    for name, value, least, end in (
        ("PG_lru", keys.lru, 0, bits),
        ("PG_private", keys.private_bit, 0, bits),
        ("PG_swapcache", keys.swapcache, 0, bits),
        ("PG_swapbacked", keys.swapbacked, 0, bits),
        ("PG_slab", keys.slab_bit, 0, bits),
        ("PG_hwpoison", keys.hwpoison, 0, bits),
        ("PG_hugetlb", keys.hugetlb_bit, 0, bits),
        ("PG_head_mask", keys.head_mask, 1, 1 << bits),
        ("HUGETLB_PAGE_DTOR", keys.hugetlb_dtor, 0, 1 << 8 * keys.compound_size),
        ("PAGE_BUDDY_MAPCOUNT_VALUE", keys.buddy_type, _LEAST_TYPE, _NO_TYPE),
        ("PAGE_SLAB_MAPCOUNT_VALUE", keys.slab_type, _LEAST_TYPE, _NO_TYPE),
        ("PAGE_OFFLINE_MAPCOUNT_VALUE", keys.offline_type, _LEAST_TYPE, _NO_TYPE),
        ("PAGE_HUGETLB_MAPCOUNT_VALUE", keys.hugetlb_type, _LEAST_TYPE, _NO_TYPE),
        ("PAGE_UNACCEPTED_MAPCOUNT_VALUE", keys.unaccepted_type, _LEAST_TYPE, _NO_TYPE),
    ):
        if value is not None and not least <= value < end:
            problem = f"{value} cannot be, it is {least} to {end - 1}"
            raise VmcoreinfoError(f"NUMBER({name})", problem, hint=_HINT)
