"""What each page of the dumped machine was used for, from the kernel's array of struct page.

One decision, vectorised, for all who want to know: the dump level's filter and the kernel-only view are policies over
it. A page gets a bit for every dump level bit that would leave it out, so a level is a mask.

Pages are judged in blocks of 32768, aligned: a free block or a compound page is aligned to its size, so none that
begins in a block ends outside of it, but for gigantic hugetlb pages, whose head is looked up.

Sources: the order of the decisions is makedumpfile's (__exclude_unnecessary_pages); Linux include/linux/page-flags.h
(page types), mm_types.h, mm/page_alloc.c and kernel/vmcore_info.c (which keys there are, and since when).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from dumpfs.errors import DumpfsError
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.memmodel import MapPiece, MemoryModel, find_memory_model
from dumpfs.linux.pagekeys import PageKeys, find_keys
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import Pfn

BLOCK_PFNS = 1 << 15
_MIN_READ = 4096


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
_Column = npt.NDArray[np.unsignedinteger[Any]]
"""A field, in the size and byte order it has in the dump."""
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
        self._space: AddressSpace = kernel.space
        self._model: MemoryModel = model
        self._keys = find_keys(kernel.vmcoreinfo, self._space.word_size)
        self.unreadable = 0
        """Pages whose struct page is not in the dump; they are kept."""
        self.odd_orders = 0
        """Free pages of an impossible order; they are kept."""

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
    """A class, or each page's own, where the mask is set; an index by a mask takes up to fifty times as long."""
    classes: Classes = mask.view(np.uint8) * (np.uint8(value) if isinstance(value, int) else value)
    return classes


class _Columns:
    """The fields of consecutive struct pages, each as an array."""

    def __init__(self, data: bytes, keys: PageKeys, space: AddressSpace) -> None:
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
            found = self._column(keys.compound_order, keys.compound_size)[heads + 1].astype(np.int64)
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
            dtors = self._column(keys.compound_dtor, keys.compound_size)[heads + 1]
            hugetlb[heads] = dtors == np.uint64(keys.hugetlb_dtor)
        return orders, hugetlb


def _mark(classes: Classes, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], bit: int) -> None:
    """Add `bit` to the classes of `counts` pages from each of `starts` on, as far as they lie in the block."""
    counts = np.minimum(counts, len(classes) - starts)
    ends = np.cumsum(counts)
    places = np.repeat(starts - (ends - counts), counts) + np.arange(int(ends[-1]), dtype=np.int64)
    classes[places] |= np.uint8(bit)
