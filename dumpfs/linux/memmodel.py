"""Where the kernel keeps the `struct page` of a page frame: FLATMEM, DISCONTIGMEM and both kinds of SPARSEMEM.

The array is read by virtual address only: vmemmap is contiguous in no other sense, and the hugetlb vmemmap optimisation
(5.14) maps many struct pages onto one physical page.

Sources: Linux include/linux/mmzone.h and mm/sparse.c (mem_section and its coding), makedumpfile's get_mem_type (order
of detection); Documentation/admin-guide/kdump/vmcoreinfo.rst (keys).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from dumpfs.errors import CorruptDumpError, DumpfsError, ExcludedPageError, VmcoreinfoError
from dumpfs.linux.kernel import Kernel
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import Pfn
from dumpfs.vmcoreinfo import Vmcoreinfo

_SECTION_SIZE_BITS = {
    "x86_64": 27,
    "aarch64": 27,
    "ppc64": 24,
    "ppc64le": 24,
    "s390x": 28,
    "riscv64": 27,
    "loongarch64": 29,
    "i686": 29,
    "arm": 28,
}
"""For kernels before 5.8, which do not export NUMBER(SECTION_SIZE_BITS)."""
_MAX_PHYSMEM_BITS = {
    "x86_64": 46,
    "aarch64": 48,
    "ppc64": 46,
    "ppc64le": 46,
    "s390x": 46,
    "riscv64": 56,
    "loongarch64": 48,
    "i686": 36,
    "arm": 36,
}
_PRESENT, _HAS_MAP = 1, 2
_FLAG_BITS = 6
"""Low bits of section_mem_map that may be flags: three at first, six since 6.x; struct pages are 64-byte aligned."""
_MAX_ROOTS = 1 << 20
_MAX_NODES = 1024
_MIN_PAGE = 4096


class MapPiece(NamedTuple):
    """Page frames `[first, stop)` whose struct pages are contiguous from `vaddr` on."""

    first: Pfn
    stop: Pfn
    vaddr: int


class MemoryModel(Protocol):
    """Where struct pages are."""

    def pieces(self, first: Pfn, stop: Pfn) -> Iterator[MapPiece]:
        """The struct pages of `[first, stop)`, ascending; frames without one are passed over.

        Raises:
            DumpfsError: the tables cannot be read.
        """


class FlatModel:
    """One array for all of memory."""

    def __init__(self, mem_map: int, first_pfn: Pfn, page_struct: int) -> None:
        self._mem_map, self._first, self._size = mem_map, first_pfn, page_struct

    def pieces(self, first: Pfn, stop: Pfn) -> Iterator[MapPiece]:
        """See `MemoryModel.pieces`."""
        first = max(first, self._first)
        if first < stop:
            yield MapPiece(first, stop, self._mem_map + (first - self._first) * self._size)


class NodeModel:
    """One array for each memory node (DISCONTIGMEM)."""

    def __init__(self, nodes: list[tuple[Pfn, Pfn, int]], page_struct: int) -> None:
        self._nodes = sorted(nodes)
        self._size = page_struct

    def pieces(self, first: Pfn, stop: Pfn) -> Iterator[MapPiece]:
        """See `MemoryModel.pieces`."""
        for start, end, mem_map in self._nodes:
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield MapPiece(low, high, mem_map + (low - start) * self._size)


class SparseModel:
    """An array for each section of memory, found through the table of sections.

    Args:
        space: kernel memory.
        roots: addresses of the tables' roots, or the one table's own address.
        per_root: sections of a root.
        entry_size: bytes of struct mem_section.
        map_offset: of section_mem_map in it.
        section_shift: log2 of the page frames of a section.
        page_struct: bytes of struct page.
    """

    def __init__(
        self,
        space: AddressSpace,
        roots: list[int],
        per_root: int,
        entry_size: int,
        map_offset: int,
        section_shift: int,
        page_struct: int,
    ) -> None:
        self._space = space
        self._roots = roots
        self._per_root = per_root
        self._entry_size, self._map_offset = entry_size, map_offset
        self._shift, self._page_struct = section_shift, page_struct
        self._tables: dict[int, bytes] = {}

    def coded_map(self, section: int) -> int:
        """section_mem_map of a section, 0 when it has none."""
        root, inside = divmod(section, self._per_root)
        if root >= len(self._roots) or not self._roots[root]:
            return 0
        word = self._space.word_size
        if self._per_root > _MAX_ROOTS:  # static table: too large to be read at once
            return self._space.read_word(self._roots[root] + inside * self._entry_size + self._map_offset)
        table = self._tables.get(root)
        if table is None:
            table = _read_table(self._space, self._roots[root], self._per_root * self._entry_size)
            self._tables[root] = table
        offset = inside * self._entry_size + self._map_offset
        return int.from_bytes(table[offset : offset + word], self._space.byteorder)

    def pieces(self, first: Pfn, stop: Pfn) -> Iterator[MapPiece]:
        """See `MemoryModel.pieces`."""
        held: MapPiece | None = None
        for section in range(first >> self._shift, (stop - 1 >> self._shift) + 1 if stop > first else 0):
            coded = self.coded_map(section)
            if coded & (_PRESENT | _HAS_MAP) != _PRESENT | _HAS_MAP:
                continue
            low, high = max(first, section << self._shift), min(stop, (section + 1) << self._shift)
            vaddr = (coded >> _FLAG_BITS << _FLAG_BITS) + low * self._page_struct
            vaddr &= (1 << 8 * self._space.word_size) - 1
            if held is not None and held.stop == low and held.vaddr + (low - held.first) * self._page_struct == vaddr:
                held = MapPiece(held.first, high, held.vaddr)
                continue
            if held is not None:
                yield held
            held = MapPiece(low, high, vaddr)
        if held is not None:
            yield held


def find_memory_model(kernel: Kernel) -> MemoryModel:
    """The memory model of `kernel`, proven by reading the struct page of a page that is RAM.

    Raises:
        VmcoreinfoError: VMCOREINFO lacks the keys of every model; the message names one.
        CorruptDumpError: what they say leads nowhere.
    """
    info, space = kernel.vmcoreinfo, kernel.space
    if info is None:
        raise VmcoreinfoError(
            "VMCOREINFO", "the dump carries none", hint="give it with -i FILE, or the kernel's vmlinux with -x FILE"
        )
    if space is None:
        raise CorruptDumpError(
            "the dumped kernel", "its virtual memory cannot be translated", hint="; ".join(kernel.problems)
        )
    page_struct = info.need_size("page")
    if page_struct <= 0 or page_struct > kernel.page_size:
        raise VmcoreinfoError("SIZE(page)", f"{page_struct} is no size of a struct page")
    if (length := info.length("node_data") or info.length("pgdat_list")) and info.offset("pglist_data.node_mem_map"):
        return _node_model(info, space, length, page_struct)
    if info.symbol("mem_section") is not None and info.type_size("mem_section"):
        return _sparse_model(kernel, info, space, page_struct)
    mem_map = info.symbol("mem_map")
    if mem_map is None:
        raise VmcoreinfoError(
            "SYMBOL(mem_section)", hint="give the kernel's vmlinux with -x, or its VMCOREINFO with -i"
        )
    first = kernel.image.meta.first_paddr // kernel.page_size
    if kernel.machine in ("arm", "riscv64") and kernel.phys_base:
        first = kernel.phys_base // kernel.page_size
    return FlatModel(space.read_word(mem_map), first, page_struct)


def _node_model(info: Vmcoreinfo, space: AddressSpace, length: int, page_struct: int) -> NodeModel:
    table = info.symbol("node_data")
    if table is None:
        table = info.need_symbol("pgdat_list")
    offsets = [info.need_offset(f"pglist_data.{n}") for n in ("node_start_pfn", "node_spanned_pages", "node_mem_map")]
    nodes = []
    for i in range(min(length, _MAX_NODES)):
        pglist = space.read_word(table + i * space.word_size)
        if not pglist:
            continue
        start, pages, mem_map = (space.read_word(pglist + offset) for offset in offsets)
        if mem_map:
            nodes.append((start, start + pages, mem_map))
    return NodeModel(nodes, page_struct)


def _sparse_model(kernel: Kernel, info: Vmcoreinfo, space: AddressSpace, page_struct: int) -> SparseModel:
    entry_size = info.need_size("mem_section")
    map_offset = info.need_offset("mem_section.section_mem_map")
    bits = info.number("SECTION_SIZE_BITS") or _SECTION_SIZE_BITS.get(kernel.machine)
    if bits is None:
        raise VmcoreinfoError("NUMBER(SECTION_SIZE_BITS)")
    physical = info.number("MAX_PHYSMEM_BITS") or _MAX_PHYSMEM_BITS.get(kernel.machine, 52)
    page_shift = kernel.page_size.bit_length() - 1
    if not page_shift < bits < physical <= 64 or not 0 < entry_size <= kernel.page_size:
        raise VmcoreinfoError("NUMBER(SECTION_SIZE_BITS)", f"{bits} of {physical} bits make no sense")
    sections = 1 << (physical - bits)
    per_root = kernel.page_size // entry_size
    length = info.length("mem_section") or 0
    symbol = info.need_symbol("mem_section")
    extreme = length not in (0, sections) or -(-sections // per_root) == length
    tried: list[DumpfsError] = []
    for table in (symbol, None):
        # SYMBOL(mem_section) is the table of roots where the kernel wrote it (4.15 and later: the value of the
        # pointer); made from a vmlinux it is the address of the pointer to it.
        try:
            start = space.read_word(symbol) if table is None else table
            roots = _read_roots(space, start, min(length, _MAX_ROOTS)) if extreme else [start]
            model = SparseModel(
                space, roots, per_root if extreme else sections, entry_size, map_offset, bits - page_shift, page_struct
            )
            if _leads_somewhere(kernel, space, model, page_struct):
                return model
        except DumpfsError as exc:
            tried.append(exc)
    reason = f" ({tried[0].message})" if tried else ""
    raise CorruptDumpError("SYMBOL(mem_section)", f"no struct page is found through it{reason}")


def _read_roots(space: AddressSpace, start: int, length: int) -> list[int]:
    word = space.word_size
    data = _read_table(space, start, length * word)
    return [int.from_bytes(data[i : i + word], space.byteorder) for i in range(0, len(data), word)]


def _read_table(space: AddressSpace, vaddr: int, size: int) -> bytes:
    """A table of which pages may be left out as zero pages, as ELF cores of level 1 do; those are zeros.

    No page of such a table can be left out for another reason: they are the kernel's own.
    """
    try:
        return space.read(vaddr, size)
    except ExcludedPageError:
        step = min(_MIN_PAGE - vaddr % _MIN_PAGE, size)
        if step == size:
            return bytes(size)
        return _read_table(space, vaddr, step) + _read_table_rest(space, vaddr + step, size - step)


def _read_table_rest(space: AddressSpace, vaddr: int, size: int) -> bytes:
    pieces = []
    while size:
        step = min(_MIN_PAGE - vaddr % _MIN_PAGE, size)
        pieces.append(_read_table(space, vaddr, step))
        vaddr += step
        size -= step
    return b"".join(pieces)


def _leads_somewhere(kernel: Kernel, space: AddressSpace, model: SparseModel, page_struct: int) -> bool:
    """Whether a struct page of RAM can be read through the model."""
    for number, (first, stop) in enumerate(kernel.phys.ram.runs()):
        for piece in model.pieces(first, min(stop, first + 1)):
            try:
                space.read(piece.vaddr, page_struct)
            except DumpfsError:
                continue
            return True
        if number >= 64:
            break
    return False
