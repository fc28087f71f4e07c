"""Kernel virtual memory of the dumped machine.

Linear maps (kernel image, direct map) answer without reading anything; page tables answer the rest. Whoever builds an
`AddressSpace` has checked its linear maps against the tables, so that a wrong guess costs speed and never gives wrong
bytes. Any thread may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dumpfs.errors import DumpfsError, TranslationError
from dumpfs.memory.physical import PhysMemory
from dumpfs.structs import ByteOrder
from dumpfs.units import zeros

_MAX_TRANSLATIONS = 4096
"""Page translations remembered; a few hundred bytes each."""
_MIN_PAGE = 0x1000
_CSTRING_STEP = 256
_TRUSTED_PIECES = 256
"""Pieces of a range (a megabyte of single pages) that are read without looking where they lie: page tables of which
every entry leads to the same page make gigabytes of nothing, and no table of a kernel has the same page twice."""


class LinearMap(NamedTuple):
    """Virtual memory that maps physical memory one to one."""

    name: str
    """'text', 'direct map' ..."""
    vaddr: int
    size: int
    """Bytes."""
    paddr: int


class Area(NamedTuple):
    """Virtually contiguous memory."""

    vaddr: int
    size: int
    """Bytes."""
    runs: tuple[tuple[int, int], ...]
    """(paddr, bytes) of the physically contiguous pieces, in virtual order."""


@dataclass(slots=True)
class WalkReport:
    """What a listing of areas met; filled while it goes on."""

    tables: int = 0
    """Tables visited."""
    unreadable: int = 0
    """Tables that are not in the dump; what they map is missing from the listing."""
    repeated: int = 0
    """Table entries not followed because their table had been listed often enough."""
    truncated: bool = False
    """Whether the limit of tables ended the listing."""
    visits: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    """How often each (level, table) was listed."""


class Mapping(Protocol):
    """Page tables; see `arch.walk.PageTables`."""

    def translate(self, vaddr: int) -> tuple[int, int]:
        """Physical address, and bytes to the end of its page."""

    def areas(
        self, first: int | None = None, stop: int | None = None, report: WalkReport | None = None
    ) -> Iterator[Area]:
        """Everything mapped in `[first, stop)`, ascending."""


class AddressSpace:
    """Bytes by kernel virtual address.

    Args:
        phys: physical memory; policy ERROR for kernel structures.
        byteorder: the kernel's.
        word_size: bytes of the kernel's `long` and pointers.
        linear: checked linear maps, asked in order.
        tables: page tables, or None when they were not found.
    """

    def __init__(
        self,
        phys: PhysMemory,
        byteorder: ByteOrder,
        word_size: int,
        linear: Sequence[LinearMap] = (),
        tables: Mapping | None = None,
    ) -> None:
        self.phys = phys
        self.byteorder: ByteOrder = byteorder
        self.word_size = word_size
        self.linear = tuple(linear)
        self.tables = tables
        self._vaddr_mask = (1 << (8 * word_size)) - 1
        self._known: dict[int, int] = {}

    def translate_run(self, vaddr: int) -> tuple[int, int]:
        """Physical address of `vaddr`, and how many bytes from there on are physically contiguous for sure.

        Raises:
            TranslationError: nothing is mapped there.
            PageError: a page table is not in the dump.
        """
        for rule in self.linear:
            inside = vaddr - rule.vaddr
            if 0 <= inside < rule.size:
                return rule.paddr + inside, rule.size - inside
        if self.tables is None:
            raise TranslationError(vaddr, "in no linear map, and the dump's page tables were not found")
        page = vaddr & -_MIN_PAGE
        paddr = self._known.get(page)
        if paddr is not None:
            return paddr + vaddr - page, page + _MIN_PAGE - vaddr
        paddr, size = self.tables.translate(vaddr)
        if len(self._known) >= _MAX_TRANSLATIONS:
            self._known.clear()
        self._known[page] = paddr - (vaddr - page)
        return paddr, size

    def translate(self, vaddr: int) -> int:
        """Physical address of `vaddr`.

        Raises:
            TranslationError: nothing is mapped there.
            PageError: a page table is not in the dump.
        """
        return self.translate_run(vaddr & self._vaddr_mask)[0]

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes at `vaddr`; the range may cross pages and maps.

        Raises:
            TranslationError: part of it is not mapped, or a large range maps the same memory again and again.
            PageError: part of it, or a page table on the way, is not in the dump.
        """
        vaddr &= self._vaddr_mask
        pieces: list[bytes] = []
        seen: set[int] = set()
        while size > 0:
            paddr, run = self.translate_run(vaddr)
            run = min(run, size)
            if len(pieces) >= _TRUSTED_PIECES:
                if paddr in seen:
                    raise TranslationError(vaddr, f"the same memory as before, at {paddr:#x}: no table lies like that")
                seen.add(paddr)
            pieces.append(self.phys.read(paddr, run))
            vaddr += run
            size -= run
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_int(self, vaddr: int, size: int, *, signed: bool = False) -> int:
        """The `size`-byte integer at `vaddr`, in the kernel's byte order; errors as `read`."""
        return int.from_bytes(self.read(vaddr, size), self.byteorder, signed=signed)

    def read_u8(self, vaddr: int) -> int:
        """The u8 at `vaddr`; errors as `read`."""
        return self.read(vaddr, 1)[0]

    def read_u16(self, vaddr: int) -> int:
        """The u16 at `vaddr`; errors as `read`."""
        return self.read_int(vaddr, 2)

    def read_u32(self, vaddr: int) -> int:
        """The u32 at `vaddr`; errors as `read`."""
        return self.read_int(vaddr, 4)

    def read_u64(self, vaddr: int) -> int:
        """The u64 at `vaddr`; errors as `read`."""
        return self.read_int(vaddr, 8)

    def read_word(self, vaddr: int) -> int:
        """The `unsigned long` or pointer at `vaddr`; errors as `read`."""
        return self.read_int(vaddr, self.word_size)

    def read_cstring(self, vaddr: int, limit: int) -> bytes:
        """The bytes before the first NUL at `vaddr`, at most `limit`.

        Unreadable memory behind the string does no harm; errors as `read` when it begins before the NUL is found.
        """
        out = bytearray()
        while len(out) < limit:
            here = vaddr + len(out)
            step = min(_CSTRING_STEP, limit - len(out), _MIN_PAGE - here % _MIN_PAGE)
            piece = self.read(here, step)
            end = piece.find(b"\0")
            if end >= 0:
                return bytes(out + piece[:end])
            out += piece
        return bytes(out)

    def areas(
        self, first: int | None = None, stop: int | None = None, report: WalkReport | None = None
    ) -> Iterator[Area]:
        """Every mapped range in `[first, stop)`, ascending: from the page tables, without them the linear maps.

        A listing is bounded, see `arch.walk`; `report` tells what it left out.
        """
        if self.tables is not None:
            yield from self.tables.areas(first, stop, report)
            return
        for rule in sorted(self.linear, key=lambda r: r.vaddr):
            low = rule.vaddr if first is None else max(first, rule.vaddr)
            high = rule.vaddr + rule.size if stop is None else min(stop, rule.vaddr + rule.size)
            if low < high:
                yield Area(low, high - low, ((rule.paddr + low - rule.vaddr, high - low),))

    def runs(self, vaddr: int, size: int) -> Iterator[tuple[int, int]]:
        """(paddr, bytes) of the physical pieces behind `[vaddr, vaddr + size)`, neighbours joined; errors as `read`."""
        start = end = -1
        while size > 0:
            paddr, run = self.translate_run(vaddr)
            run = min(run, size)
            if paddr == end:
                end += run
            else:
                if start >= 0:
                    yield start, end - start
                start, end = paddr, paddr + run
            vaddr += run
            size -= run
        if start >= 0:
            yield start, end - start


    def stored_ranges(self, vaddr: int, size: int) -> Iterator[tuple[int, int]]:
        """`[first, stop)` of the parts of a range that lead to stored pages, ascending; nothing is read but tables.

        What cannot be translated is left out, too. Edges are those of the range, or of pages.
        """
        vaddr &= self._vaddr_mask
        end = vaddr + size
        while vaddr < end:
            try:
                paddr, run = self.translate_run(vaddr)
            except DumpfsError:
                vaddr = (vaddr & -_MIN_PAGE) + _MIN_PAGE
                continue
            stop = min(vaddr + run, end)
            shift, page = self.phys.page_shift, vaddr - paddr
            for first, last in self.phys.stored.runs(paddr >> shift, -(-(stop - page) >> shift)):
                yield max((first << shift) + page, vaddr), min((last << shift) + page, stop)
            vaddr = stop


class SparseReader:
    """An array in kernel memory read on demand, of which parts may be missing from the dump; for one thread.

    Args:
        space: where to read.
        vaddr: start of the array.
        size: its bytes; nothing is allocated for it.
    """

    CHUNK = 1 << 16

    def __init__(self, space: AddressSpace, vaddr: int, size: int) -> None:
        self.space = space
        self.vaddr = vaddr
        self.size = size
        self.missing: dict[int, DumpfsError] = {}
        """Page address to why it cannot be read, for pages that were asked for."""
        self._chunk = -1
        self._data = b""
        self._holes: tuple[tuple[int, int], ...] = ()

    def read(self, offset: int, size: int) -> bytes | None:
        """Bytes `[offset, offset + size)` of the array, or None when some are outside of it or not in the dump."""
        if offset < 0 or size < 0 or offset + size > self.size:
            return None
        chunk, inside = divmod(offset, self.CHUNK)
        if inside + size <= self.CHUNK:
            if chunk != self._chunk:
                self._load(chunk)
            if self._holes and any(a < inside + size and inside < b for a, b in self._holes):
                return None
            return self._data[inside : inside + size]
        pieces = []
        while size > 0:
            step = min(self.CHUNK - offset % self.CHUNK, size)
            piece = self.read(offset, step)
            if piece is None:
                return None
            pieces.append(piece)
            offset += step
            size -= step
        return b"".join(pieces)

    def why(self, offset: int, size: int) -> str:
        """Why `read` returned None: what is wrong with the first page of the range that cannot be read, or ''."""
        for page in range(self.vaddr + offset & -_MIN_PAGE, self.vaddr + offset + size, _MIN_PAGE):
            if page in self.missing:
                return self.missing[page].message
        return ""

    def _load(self, chunk: int) -> None:
        start = chunk * self.CHUNK
        size = min(self.CHUNK, self.size - start)
        self._holes = ()
        try:
            self._data = self.space.read(self.vaddr + start, size)
        except DumpfsError:
            self._data = self._load_pages(start, size)
        self._chunk = chunk

    def _load_pages(self, start: int, size: int) -> bytes:
        """Page by page, so that one missing page costs only itself."""
        pieces = []
        holes = []
        position = 0
        while position < size:
            vaddr = self.vaddr + start + position
            step = min(_MIN_PAGE - vaddr % _MIN_PAGE, size - position)
            try:
                pieces.append(self.space.read(vaddr, step))
            except DumpfsError as exc:
                if len(self.missing) < _MAX_TRANSLATIONS:
                    self.missing.setdefault(vaddr & -_MIN_PAGE, exc)
                holes.append((position, position + step))
                pieces.append(zeros(step))
            position += step
        self._holes = tuple(holes)
        return b"".join(pieces)
