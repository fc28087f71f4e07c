"""Kernel memory made of a few written places, for tests of what reads it."""

from __future__ import annotations

from itertools import pairwise

from dumpfs.errors import AbsentPageError
from dumpfs.linux.btf import Btf
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace, LinearMap
from dumpfs.ranges import RangeSet
from tests.build.btf import BtfBuilder

PAGE = 4096


class FakePhys:
    """Pages that exist once something is written to them."""

    page_shift = 12

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    @property
    def stored(self) -> RangeSet:
        return RangeSet((page, page + 1) for page in self.pages)

    def write(self, paddr: int, data: bytes) -> None:
        while data:
            page, inside = divmod(paddr, PAGE)
            step = min(PAGE - inside, len(data))
            self.pages.setdefault(page, bytearray(PAGE))[inside : inside + step] = data[:step]
            paddr, data = paddr + step, data[step:]

    def read(self, paddr: int, size: int) -> bytes:
        out = b""
        while size > 0:
            page, inside = divmod(paddr, PAGE)
            if page not in self.pages:
                raise AbsentPageError(page)
            step = min(PAGE - inside, size)
            out += self.pages[page][inside : inside + step]
            paddr, size = paddr + step, size - step
        return out


class Memory:
    """Writable kernel memory; `space` reads it."""

    def __init__(self, byteorder: str = "little", word: int = 8) -> None:
        self.byteorder = byteorder
        self.word = word
        self.phys = FakePhys()
        everything = LinearMap("all", 0, 1 << 8 * word, 0)
        self.space = AddressSpace(self.phys, byteorder, word, [everything])

    def write(self, vaddr: int, data: bytes) -> None:
        self.phys.write(vaddr, data)

    def put(self, vaddr: int, value: int, size: int | None = None) -> None:
        """Write an integer; a word unless told otherwise."""
        size = self.word if size is None else size
        self.write(vaddr, (value & (1 << 8 * size) - 1).to_bytes(size, self.byteorder))

    def put_list(self, head: int, nodes: list[int]) -> None:
        """A circular list through `head` and `nodes`."""
        ring = [head, *nodes, head]
        for here, there in pairwise(ring):
            self.put(here, there)
            self.put(there + self.word, here)


def make_types(structs: dict[str, tuple[int, dict[str, tuple[int, int]]]], byteorder: str = "little") -> Types:
    """Types of structures given as name: (size, {member: (offset, size)}); dots in a member's name make structures."""
    builder = BtfBuilder(byteorder)
    integers: dict[int, int] = {}

    def integer(size: int) -> int:
        if size not in integers:
            integers[size] = builder.integer(f"u{8 * size}", size) if size in (1, 2, 4, 8) else 0
            if not integers[size]:
                integers[size] = builder.array(integer(1), size)
        return integers[size]

    def build(name: str, size: int, members: dict[str, tuple[int, int]]) -> int:
        rows = []
        nested: dict[str, dict[str, tuple[int, int]]] = {}
        for path, (offset, width) in members.items():
            first, dot, rest = path.partition(".")
            if dot:
                nested.setdefault(first, {})[rest] = (offset, width)
            else:
                rows.append((first, integer(width), 8 * offset))
        for first, inner in nested.items():
            low = min(offset for offset, _ in inner.values())
            high = max(offset + width for offset, width in inner.values())
            moved = {path: (offset - low, width) for path, (offset, width) in inner.items()}
            rows.append((first, build("", high - low, moved), 8 * low))
        return builder.struct(name, size, rows)

    for name, (size, members) in structs.items():
        build(name, size, members)
    return Types(Btf(builder.build(), 8))
