"""What each page of the dumped machine was used for, from the kernel's array of struct page.

One decision, vectorised, for all who want to know: the dump level's filter and the kernel-only view are policies over
it. A page gets a bit for every dump level bit that would leave it out, so a level is a mask.

Pages are judged in blocks of 32768, aligned: a free block or a compound page is aligned to its size, so none that
begins in a block ends outside of it, but for gigantic hugetlb pages, whose head is looked up.

Sources: the order of the decisions is makedumpfile's (__exclude_unnecessary_pages); Linux include/linux/page-flags.h
(page types), mm_types.h, mm/page_alloc.c and kernel/vmcore_info.c (which keys there are, and since when).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from dumpfs.errors import DumpfsError, VmcoreinfoError
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.memmodel import MapPiece, MemoryModel, find_memory_model
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import Pfn
from dumpfs.vmcoreinfo import Vmcoreinfo

BLOCK_PFNS = 1 << 15
_MIN_READ = 4096
_HINT = "the filter does not know this kernel: give its VMCOREINFO with -i or its vmlinux with -x, or --keep-unknown"


class PageClass(IntFlag):
    """Why a page may be left out; 0 is a page that is always kept. The low bits are those of the dump level."""

    ZERO = 1
    """Never set here: it takes the page's content to know."""
    CACHE = 2
    """Page cache or swap cache without private data."""
    CACHE_PRIVATE = 4
    """The same with private data."""
    USER = 8
    """Anonymous memory of processes, and hugetlb pages."""
    FREE = 16
    """In the buddy allocator, or memory the guest has not accepted yet."""
    HWPOISON = 32
    """Broken memory: reading it may bring the machine down. Left out at every level."""
    OFFLINE = 64
    """Ballooned or logically offline. Left out at every level."""


ALWAYS_DROPPED = PageClass.HWPOISON | PageClass.OFFLINE

Classes = npt.NDArray[np.uint8]
"""One `PageClass` value per page."""
_Column = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]


def dropped_classes(level: int) -> int:
    """The classes that a dump level leaves out, as a mask; 4 means all of the cache, so it implies 2."""
    return level & 31 | int(ALWAYS_DROPPED) | (PageClass.CACHE if level & PageClass.CACHE_PRIVATE else 0)


def keep_mask(classes: Classes, level: int) -> _Mask:
    """Which pages a dump of that level stores, as far as their class decides (zero pages are left to the writer)."""
    mask: _Mask = (classes & np.uint8(dropped_classes(level) & ~1)) == 0
    return mask


def keep_bits(classes: Classes, level: int) -> bytes:
    """`keep_mask` as a bitmap, least significant bit first; b'' when it keeps none."""
    mask = keep_mask(classes, level)
    return np.packbits(mask, bitorder="little").tobytes() if mask.any() else b""


@dataclass(frozen=True, slots=True)
class _Keys:
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
    dtor_size: int
    order_size: int
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


def _find_keys(info: Vmcoreinfo, word_size: int) -> _Keys:
    """The keys; the first one that is missing stops.

    Raises:
        VmcoreinfoError: a key is missing without which pages would be judged wrongly.
    """
    try:
        return _read_keys(info, word_size)
    except VmcoreinfoError as exc:
        raise VmcoreinfoError(
            exc.key, "not in VMCOREINFO, and pages cannot be told apart without it", hint=_HINT
        ) from exc


def _read_keys(info: Vmcoreinfo, word_size: int) -> _Keys:
    number = info.number
    slab_bit, slab_type = number("PG_slab"), _type_value(info, "PAGE_SLAB_MAPCOUNT_VALUE")
    if slab_bit is None and slab_type is None:
        raise VmcoreinfoError("NUMBER(PG_slab)")
    order = info.offset("page.compound_order")
    dtor = info.offset("page.compound_dtor")
    # Both were pointers or words in the second page's lru before 4.4; unsigned short to 4.15, unsigned char since.
    adjacent = dtor is not None and order is not None and order - dtor == 1
    width = 1 if adjacent else 2
    buddy = _type_value(info, "PAGE_BUDDY_MAPCOUNT_VALUE")
    if buddy is None:
        raise VmcoreinfoError("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")
    length = info.length("zone.free_area")
    if length is None or not 0 < length < 64:
        raise VmcoreinfoError("LENGTH(zone.free_area)")
    return _Keys(
        size=info.need_size("page"),
        flags=info.need_offset("page.flags"),
        mapping=info.need_offset("page.mapping"),
        mapcount=info.need_offset("page._mapcount"),
        private=info.need_offset("page.private"),
        compound_head=info.need_offset("page.compound_head"),
        compound_order=order,
        compound_dtor=dtor,
        dtor_size=width,
        order_size=width,
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


class PageClassifier:
    """Judges the pages of one kernel; immutable but for counters, any process may use it.

    Args:
        kernel: the dumped kernel.

    Raises:
        VmcoreinfoError: a key is missing; the message names it.
        DumpfsError: the kernel's tables of struct pages cannot be found.
    """

    def __init__(self, kernel: Kernel) -> None:
        model = find_memory_model(kernel)
        assert kernel.vmcoreinfo is not None
        assert kernel.space is not None
        self._info: Vmcoreinfo = kernel.vmcoreinfo
        self._space: AddressSpace = kernel.space
        self._model: MemoryModel = model
        self._keys = _find_keys(self._info, self._space.word_size)
        self._check_keys()
        self.unreadable = 0
        """Pages whose struct page is not in the dump; they are kept."""
        self.odd_orders = 0
        """Free pages of an impossible order; they are kept."""

    def _check_keys(self) -> None:
        keys, word = self._keys, self._space.word_size
        for name, offset, size in (
            ("page.flags", keys.flags, word),
            ("page.mapping", keys.mapping, word),
            ("page._mapcount", keys.mapcount, 4),
            ("page.private", keys.private, word),
            ("page.compound_head", keys.compound_head, word),
            ("page.compound_order", keys.compound_order or 0, keys.order_size),
            ("page.compound_dtor", keys.compound_dtor or 0, keys.dtor_size),
        ):
            if not 0 <= offset <= keys.size - size:
                problem = f"{offset} is outside of struct page ({keys.size} bytes)"
                raise VmcoreinfoError(f"OFFSET({name})", problem, hint=_HINT)
        for name, number, end in (
            ("PG_lru", keys.lru, 8 * word),
            ("PG_private", keys.private_bit, 8 * word),
            ("PG_swapcache", keys.swapcache, 8 * word),
            ("PG_swapbacked", keys.swapbacked, 8 * word),
            ("PG_slab", keys.slab_bit, 8 * word),
            ("PG_hwpoison", keys.hwpoison, 8 * word),
            ("PG_hugetlb", keys.hugetlb_bit, 8 * word),
            ("PG_head_mask", keys.head_mask, 1 << 8 * word),
            ("HUGETLB_PAGE_DTOR", keys.hugetlb_dtor, 1 << 8 * keys.dtor_size),
        ):
            if number is not None and not 0 <= number < end:
                raise VmcoreinfoError(f"NUMBER({name})", f"{number} cannot be, it is 0 to {end - 1}", hint=_HINT)

    def classify(self, first: Pfn, count: int) -> Classes:
        """The classes of `count` pages from `first` on; 0 where there is no struct page or it is not in the dump.

        Raises:
            DumpfsError: the tables that lead to the struct pages cannot be read.
        """
        block = first - first % BLOCK_PFNS
        pieces = []
        while block < first + count:
            classes = self._classify_block(block)
            pieces.append(classes[max(first - block, 0) : first + count - block])
            block += BLOCK_PFNS
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _classify_block(self, block: Pfn) -> Classes:
        classes = np.zeros(BLOCK_PFNS, dtype=np.uint8)
        for piece in self._model.pieces(block, block + BLOCK_PFNS):
            for first, data in self._read_structs(piece):
                self._judge(block, classes, first, data)
        return classes

    def _read_structs(self, piece: MapPiece) -> list[tuple[Pfn, bytes]]:
        """(first pfn, whole struct pages) of the readable parts of a piece."""
        size = self._keys.size
        try:
            return [(piece.first, self._space.read(piece.vaddr, (piece.stop - piece.first) * size))]
        except DumpfsError:
            count = piece.stop - piece.first
            if count * size <= _MIN_READ or count < 2:
                self.unreadable += count
                return []
        middle = piece.first + count // 2
        return [
            *self._read_structs(MapPiece(piece.first, middle, piece.vaddr)),
            *self._read_structs(MapPiece(middle, piece.stop, piece.vaddr + (middle - piece.first) * size)),
        ]

    def _judge(self, block: Pfn, classes: Classes, first: Pfn, data: bytes) -> None:
        """Judge the struct pages in `data`, of page frames from `first` on, into the classes of their block."""
        columns = _Columns(data, self._keys, self._space)
        pfns = np.arange(first, first + columns.count, dtype=np.int64)
        own, orders = self._decide(columns, pfns)
        if columns.count and first == block and columns.tail[0]:
            self._add_gigantic(classes, block, int(columns.compound_head[0]) - 1)
        base = first - block
        classes[base : base + columns.count] |= _class_where(orders == 0, own)
        large = np.flatnonzero((orders > 0) & (own != 0))
        for bit in np.flatnonzero(np.bincount(own[large])).tolist():
            heads = large[own[large] == bit]
            _mark(classes, base + heads, np.int64(1) << orders[heads], bit)

    def _decide(self, columns: _Columns, pfns: npt.NDArray[np.int64]) -> tuple[Classes, npt.NDArray[np.int64]]:
        """Each page's own class, and the order of the block it stands for."""
        keys = self._keys
        slab = columns.slab
        orders, hugetlb = columns.compound(pfns)
        anon = (columns.mapping & np.uint64(1)).astype(np.bool_) & ~slab
        swap = columns.bit(keys.swapcache)
        if keys.swapbacked is not None:
            swap &= columns.bit(keys.swapbacked)
        cache = (columns.bit(keys.lru) | swap) & ~anon
        private = columns.bit(keys.private_bit)
        own = _class_where(columns.has_type(keys.offline_type) & ~slab, PageClass.OFFLINE)
        if keys.hwpoison is not None:
            own[np.flatnonzero(columns.bit(keys.hwpoison))] = PageClass.HWPOISON
        own |= _class_where(anon | hugetlb, PageClass.USER)
        own |= _class_where(cache & private, PageClass.CACHE_PRIVATE)
        own |= _class_where(cache & ~private, PageClass.CACHE)
        buddy = np.flatnonzero(columns.has_type(keys.buddy_type) & ~slab)
        sane = columns.private[buddy] < np.uint64(keys.max_orders)
        self.odd_orders += len(buddy) - int(sane.sum())
        free = buddy[sane]
        own[free] = PageClass.FREE
        orders[free] = columns.private[free].astype(np.int64)
        unaccepted = np.flatnonzero(columns.has_type(keys.unaccepted_type))
        own[unaccepted] = PageClass.FREE
        orders[unaccepted] = keys.max_orders - 1
        own = _class_where(~columns.tail, own)
        return own, orders

    def _add_gigantic(self, classes: Classes, block: Pfn, head_vaddr: int) -> None:
        """Add the class of a compound page whose head lies before the block."""
        try:
            data = self._space.read(head_vaddr, 2 * self._keys.size)
        except DumpfsError:
            return
        columns = _Columns(data, self._keys, self._space)
        if columns.tail[0]:
            return
        own, orders = self._decide(columns, np.zeros(2, dtype=np.int64))
        # The head's frame is unknown, but the page is aligned to its size: if it is larger than a block, and its head
        # is not in this block, its end is at the next multiple of its size.
        order = int(orders[0])
        if order > BLOCK_PFNS.bit_length() - 1 and own[0]:
            classes |= own[0]


def _class_where(mask: _Mask, value: int | Classes) -> Classes:
    """A class, or each page's own, where the mask is set; an index by the mask would take fifty times as long."""
    classes: Classes = mask.view(np.uint8) * (np.uint8(value) if isinstance(value, int) else value)
    return classes


class _Columns:
    """The fields of consecutive struct pages, each as an array; a view, nothing is copied."""

    def __init__(self, data: bytes, keys: _Keys, space: AddressSpace) -> None:
        self._data, self._keys = data, keys
        self._order = "<" if space.byteorder == "little" else ">"
        self._word = space.word_size
        self.count = len(data) // keys.size
        # Making a column dense costs as much as one look at it: for those that are looked at again and again.
        self.flags = self._column(keys.flags, self._word).astype(np.uint64)
        self.mapping = self._column(keys.mapping, self._word)
        self.private = self._column(keys.private, self._word)
        self.compound_head = self._column(keys.compound_head, self._word)
        self.mapcount = self._column(keys.mapcount, 4).astype(np.uint32)
        self.tail: _Mask = (self.compound_head & np.uint64(1)).astype(np.bool_)
        self.slab: _Mask = self.has_type(keys.slab_type) if keys.slab_type is not None else self.bit(keys.slab_bit or 0)

    def _column(self, offset: int, size: int) -> _Column:
        if not self.count:
            return np.zeros(0, dtype=np.uint64)
        column: _Column = np.ndarray(
            (self.count,), dtype=f"{self._order}u{size}", buffer=self._data, offset=offset, strides=(self._keys.size,)
        )
        return column

    def bit(self, number: int) -> _Mask:
        """Which pages have a flag."""
        mask: _Mask = (self.flags & np.uint64(1 << number)) != 0
        return mask

    def has_type(self, value: int | None) -> _Mask:
        """Which pages have a value of _mapcount."""
        if value is None:
            return np.zeros(self.count, dtype=np.bool_)
        mask: _Mask = self.mapcount == np.uint32(value)
        return mask

    def compound(self, pfns: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], _Mask]:
        """Order of each head page (0 for others), and which heads are hugetlb pages."""
        keys = self._keys
        orders = np.zeros(self.count, dtype=np.int64)
        hugetlb = np.zeros(self.count, dtype=np.bool_)
        heads = np.flatnonzero((self.flags & np.uint64(keys.head_mask)).astype(np.bool_))
        heads = heads[heads + 1 < self.count]
        if not len(heads):
            return orders, hugetlb
        if keys.compound_order is not None:
            found = self._column(keys.compound_order, keys.order_size)[heads + 1].astype(np.int64)
        else:  # 6.6: the low byte of the second page's flags
            found = (self.flags[heads + 1] & np.uint64(0xFF)).astype(np.int64)
        found[(found >= 8 * self._word) | (found > 40)] = 0
        found[(pfns[heads] & ((np.int64(1) << found) - 1)) != 0] = 0
        orders[heads] = found
        if keys.hugetlb_type is not None:
            hugetlb[heads] = self.mapcount[heads] == np.uint32(keys.hugetlb_type)
        elif keys.hugetlb_bit is not None:
            hugetlb[heads] = (self.flags[heads + 1] >> np.uint64(keys.hugetlb_bit) & np.uint64(1)).astype(np.bool_)
        elif keys.hugetlb_dtor is not None and keys.compound_dtor is not None:
            dtors = self._column(keys.compound_dtor, keys.dtor_size)[heads + 1]
            hugetlb[heads] = dtors == np.uint64(keys.hugetlb_dtor)
        return orders, hugetlb


def _mark(classes: Classes, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], bit: int) -> None:
    """Add `bit` to the classes of `counts` pages from each of `starts` on, as far as they lie in the block."""
    counts = np.minimum(counts, len(classes) - starts)
    ends = np.cumsum(counts)
    places = np.repeat(starts - (ends - counts), counts) + np.arange(int(ends[-1]), dtype=np.int64)
    classes[places] |= np.uint8(bit)
