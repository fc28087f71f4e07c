"""A machine in memory: physical pages, x86_64 page tables, and kernel logs laid out by hand."""

from __future__ import annotations

import struct

from dumpfs.formats.base import Blob, DumpMeta, PageInfo
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.memory.virtual import AddressSpace, LinearMap
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState

PAGE = 4096
BASE = {4: 0xC0000000, 8: 0xFFFF888000000000}
"""Direct map of the guests, by word size."""


class Guest:
    """A `DumpImage` over one piece of RAM from physical 0 on."""

    def __init__(self, pages: int = 256, byteorder: str = "little", **meta: object) -> None:
        self.memory = bytearray(pages * PAGE)
        self.byteorder = byteorder
        self.lost_pages: set[int] = set()
        self.ram = self.stored = RangeSet([(0, pages)])
        self.lost = RangeSet()
        self.partial: dict[int, tuple[int, int]] = {}
        self.notices: tuple[str, ...] = ()
        self.note_bytes = b""
        self.text: bytes | None = None
        self.reads = 0
        facts: dict[str, object] = {"format": "elf", "block_size": PAGE, "word_size": 8, "machine": "x86_64"}
        self.meta = DumpMeta(**(facts | {"max_pfn": pages, "byteorder": byteorder} | meta))
        self._next_table = pages

    def put(self, paddr: int, data: bytes | int, size: int = 8) -> None:
        """Write bytes, or an integer of `size` bytes."""
        if isinstance(data, int):
            data = (data & (1 << 8 * size) - 1).to_bytes(size, self.byteorder)
        assert paddr + len(data) <= len(self.memory)
        self.memory[paddr : paddr + len(data)] = data

    def get(self, paddr: int, size: int = 8) -> int:
        return int.from_bytes(self.memory[paddr : paddr + size], self.byteorder)

    def table(self, pages: int = 1) -> int:
        """Physical address of fresh, zeroed table pages, taken from the top."""
        self._next_table -= pages
        return self._next_table * PAGE

    def map_x86(self, root: int, vaddr: int, paddr: int, level: int = 1, depth: int = 4, flags: int = 0) -> None:
        """Map one page of `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB)."""
        table = root
        for number in range(depth, level, -1):
            slot = table + 8 * (vaddr >> 12 + 9 * (number - 1) & 511)
            entry = self.get(slot)
            if not entry:
                entry = self.table() | 0x63
                self.put(slot, entry)
            table = entry & 0x000FFFFFFFFFF000
        large = 0x80 if level > 1 else 0
        self.put(table + 8 * (vaddr >> 12 + 9 * (level - 1) & 511), paddr | 0x63 | large | flags)

    def phys(self) -> PhysMemory:
        return PhysMemory(self, PAGE, HolePolicy.ERROR)

    def space(self, word: int = 8) -> AddressSpace:
        """The direct map only."""
        linear = [LinearMap("direct map", BASE[word], len(self.memory), 0)]
        return AddressSpace(self.phys(), self.byteorder, word, linear)

    # -- DumpImage

    def state(self, pfn: int) -> PageState:
        if pfn in self.lost_pages:
            return PageState.LOST
        return PageState.STORED if pfn in self.ram else PageState.ABSENT

    def info(self, pfn: int) -> PageInfo:
        return PageInfo(self.state(pfn), "raw", 0, PAGE, 0, "guest")

    def read_page(self, pfn: int) -> tuple[bytes, PageState, str]:
        self.reads += 1
        state = self.state(pfn)
        return bytes(self.memory[pfn * PAGE : (pfn + 1) * PAGE]) if state is PageState.STORED else b"", state, ""

    def read_run(self, first: int, count: int) -> tuple[bytes, bytes]:
        pages = [self.read_page(pfn) for pfn in range(first, first + count)]
        return b"".join(p[0].ljust(PAGE, b"\0") for p in pages), bytes(p[1] for p in pages)

    def stored_blobs(self, first: int, count: int) -> list[Blob]:
        raise NotImplementedError

    def notes(self) -> bytes:
        return self.note_bytes

    def vmcoreinfo_text(self) -> bytes | None:
        return self.text

    def eraseinfo(self) -> bytes:
        return b""

    def changes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class Ring:
    """A printk ring in a guest's memory; descriptors, infos, text and head where the arguments say.

    Records are put by id with `add`, whose text lands where the kernel would put it.
    """

    def __init__(self, guest: Guest, word: int = 8, count_bits: int = 4, data_bits: int = 9, at: int = 0x10000) -> None:
        self.guest, self.word, self.count, self.data_bits = guest, word, 1 << count_bits, data_bits
        self.base = BASE[word]
        self.mask = (1 << 8 * word) - 1
        self.id_mask = self.mask >> 2
        self.desc_size, self.info_size = 3 * word, 24 + 64
        self.prb, self.rb, self.descs = at, at + 0x100, at + 0x1000
        self.infos = -(-(self.descs + self.count * self.desc_size) // PAGE) * PAGE
        self.data = -(-(self.infos + self.count * self.info_size) // PAGE) * PAGE
        self.lpos = 0
        self.head = self.tail = (-self.count) & self.id_mask
        put = guest.put
        put(self.prb, self.base + self.rb, word)
        put(self.rb, count_bits, 4)
        put(self.rb + word, self.base + self.descs, word)
        put(self.rb + 2 * word, self.base + self.infos, word)
        put(self.rb + 8 * word, data_bits, 4)
        put(self.rb + 9 * word, self.base + self.data, word)
        self.set_head(self.tail, self.head)

    def set_head(self, tail: int, head: int) -> None:
        self.tail, self.head = tail, head
        self.guest.put(self.rb + 3 * self.word, head, self.word)
        self.guest.put(self.rb + 4 * self.word, tail, self.word)

    def vmcoreinfo(self) -> bytes:
        w = self.word
        values = {
            "SYMBOL(prb)": f"{self.base + self.prb:x}",
            "SIZE(printk_ringbuffer)": 12 * w,
            "OFFSET(printk_ringbuffer.desc_ring)": 0,
            "OFFSET(printk_ringbuffer.text_data_ring)": 8 * w,
            "OFFSET(prb_desc_ring.count_bits)": 0,
            "OFFSET(prb_desc_ring.descs)": w,
            "OFFSET(prb_desc_ring.infos)": 2 * w,
            "OFFSET(prb_desc_ring.head_id)": 3 * w,
            "OFFSET(prb_desc_ring.tail_id)": 4 * w,
            "SIZE(prb_desc)": self.desc_size,
            "OFFSET(prb_desc.state_var)": 0,
            "OFFSET(prb_desc.text_blk_lpos)": w,
            "OFFSET(prb_data_blk_lpos.begin)": 0,
            "OFFSET(prb_data_blk_lpos.next)": w,
            "SIZE(printk_info)": self.info_size,
            "OFFSET(printk_info.seq)": 0,
            "OFFSET(printk_info.ts_nsec)": 8,
            "OFFSET(printk_info.text_len)": 16,
            "OFFSET(printk_info.caller_id)": 20,
            "OFFSET(printk_info.dev_info)": 24,
            "OFFSET(dev_printk_info.subsystem)": 0,
            "LENGTH(printk_info_subsystem)": 16,
            "OFFSET(dev_printk_info.device)": 16,
            "LENGTH(printk_info_device)": 48,
            "OFFSET(prb_data_ring.size_bits)": 0,
            "OFFSET(prb_data_ring.data)": w,
            "OFFSET(atomic_long_t.counter)": 0,
        }
        return b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n" + "".join(f"{k}={v}\n" for k, v in values.items()).encode()

    def put_desc(self, number: int, begin: int, next_: int, state: int = 2) -> None:
        at = self.descs + number % self.count * self.desc_size
        w = self.word
        self.guest.put(at, number & self.id_mask | state << (8 * w - 2), w)
        self.guest.put(at + w, begin, w)
        self.guest.put(at + 2 * w, next_, w)

    def put_info(
        self,
        number: int,
        ts: int,
        length: int,
        level: int = 6,
        facility: int = 0,
        caller: int = 1,
        seq: int | None = None,
    ) -> None:
        at = self.infos + number % self.count * self.info_size
        put = self.guest.put
        put(at, number + self.count & self.id_mask if seq is None else seq, 8)
        put(at + 8, ts, 8)
        put(at + 16, length, 2)
        put(at + 18, facility, 1)
        put(at + 19, level << 5 if self.guest.byteorder == "little" else level, 1)
        put(at + 20, caller, 4)
        put(at + 24, b"pci".ljust(16, b"\0") + b"+pci:0000:00:02.0".ljust(48, b"\0"))

    def put_block(self, offset: int, number: int, text: bytes) -> None:
        self.guest.put(self.data + offset, number, self.word)
        self.guest.put(self.data + offset + self.word, text)

    def add(self, text: bytes, ts: int = 0, *, in_place: bool = False, **info: int) -> int:
        """Append a finalized record; `in_place`: leave a block that ends at the ring's end there (since 2025)."""
        number = (self.head + 1) & self.id_mask
        size = self.word + -(-len(text) // self.word) * self.word
        room = 1 << self.data_bits
        begin = self.lpos
        next_ = begin + size
        last = next_ - 1 if in_place else next_
        if begin >> self.data_bits != last >> self.data_bits:
            offset = 0
            next_ = (last >> self.data_bits) * room + size
        else:
            offset = begin % room
        self.lpos = next_
        self.put_desc(number, begin & self.mask, next_ & self.mask)
        self.put_info(number, ts, len(text), **info)
        self.put_block(offset, number, text)
        tail = (
            self.tail if (number - self.tail & self.id_mask) < self.count else (number - self.count + 1) & self.id_mask
        )
        if self.head == self.tail and not self.used():
            tail = number
        self.set_head(tail, number)
        return number

    def used(self) -> bool:
        state = self.guest.get(self.descs + self.tail % self.count * self.desc_size, self.word)
        return state >> (8 * self.word - 2) == 2 and state & self.id_mask == self.tail


def log_record(
    text: bytes, ts: int, byteorder: str, dictionary: bytes = b"", level: int = 6, facility: int = 0
) -> bytes:
    """A record of 3.5 to 5.9 (`struct printk_log` without caller ids)."""
    length = -(-(16 + len(text) + len(dictionary)) // 8) * 8
    order = "<" if byteorder == "little" else ">"
    flags = level << 5 if byteorder == "little" else level
    head = struct.pack(order + "QHHHBB", ts, length, len(text), len(dictionary), facility, flags)
    return (head + text + dictionary).ljust(length, b"\0")
