"""VMCOREINFO made from a vmlinux (`dumpfs write -g`), for dumps that carry none or one that lacks keys.

Symbols come from the file's symbol table, sizes, offsets and flag numbers from its BTF, else its DWARF. What the kernel
prints from macros is worked out from its types where they tell, as said at each value. Addresses are link addresses.

Sources: Linux kernel/vmcore_info.c (which keys there are) and arch/x86/kernel/vmcore_info_64.c; include/linux/
page-flags.h (the page types' values); Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dumpfs.errors import DumpfsError, FormatError
from dumpfs.linux.debugfile import DebugFile
from dumpfs.linux.identity import read_identity
from dumpfs.linux.types import Types
from dumpfs.linux.vmlinux import read_vmlinux

_SYMBOLS = (
    "node_online_map",
    "vmap_area_list",
    "mem_map",
    "contig_page_data",
    "mem_section",
    "node_data",
    "pgdat_list",
    "phys_base",
    "vmemmap_base",
    "kimage_voffset",
)
_SIZES = ("page", "pglist_data", "zone", "free_area", "list_head", "nodemask_t", "mem_section")
_OFFSETS: Mapping[str, tuple[str, ...]] = {
    "page": (
        "flags",
        "_refcount",
        "mapping",
        "lru",
        "_mapcount",
        "private",
        "compound_dtor",
        "compound_order",
        "compound_head",
    ),
    "mem_section": ("section_mem_map",),
    "pglist_data": (
        "node_zones",
        "nr_zones",
        "node_mem_map",
        "node_start_pfn",
        "node_spanned_pages",
        "node_id",
    ),
    "zone": ("free_area", "vm_stat", "spanned_pages"),
    "free_area": ("free_list",),
    "list_head": ("next", "prev"),
    "vmap_area": ("va_start", "list"),
}
_LENGTHS = (("zone", "free_area"), ("free_area", "free_list"))
_FLAGS = ("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison", "PG_hugetlb")
_PAGE_TYPES = ("buddy", "slab", "hugetlb", "unaccepted", "offline")
_TYPE_SHIFT = 24
"""Since 6.12 a page type is the top byte of the 32-bit word it shares with _mapcount."""
_OLD_BUDDY, _OLDEST_BUDDY = -129, -128
"""~PG_buddy (0x80) since 4.18, when struct page got page_type; before, the constant of page-flags.h."""
_OLD_OFFLINE = -257
"""~PG_offline (0x100), 5.0 to 6.11."""
_BITS = {"x86_64": (27, 46), "aarch64": (27, 48), "s390x": (28, 46), "riscv64": (27, 56)}
"""SECTION_SIZE_BITS and MAX_PHYSMEM_BITS, macros that no type tells."""
_ELFCLASS64 = 2
_MACHINES = {62: "x86_64", 183: "aarch64", 22: "s390x", 243: "riscv64"}


def make_vmcoreinfo(path: str) -> bytes:
    """VMCOREINFO text of the vmlinux at `path`.

    Raises:
        SourceError: it cannot be read.
        FormatError: it has no symbols, or neither BTF nor DWARF.
    """
    text = read_vmlinux(path).decode().rstrip("\n")
    debug = DebugFile(path)
    identity = read_identity(path)
    symbols = debug.read_symbols(0)
    types = Types(debug.read_types(8 if _head(path)[4] == _ELFCLASS64 else 4))
    known = {line.partition("=")[0] for line in text.splitlines()}
    lines = [text]
    if not identity.release:
        raise FormatError(path, "does not tell which kernel release it is of")
    for line in _lines(path, symbols.address, types):
        if line.partition("=")[0] not in known:
            lines.append(line)
    return ("\n".join(lines) + "\n").encode()


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(20)


def _machine(path: str) -> str:
    head = _head(path)
    return _MACHINES.get(int.from_bytes(head[18:20], "little" if head[5] == 1 else "big"), "")


def _lines(path: str, address: Callable[[str], int | None], types: Types) -> Iterator[str]:
    yield "PAGESIZE=4096"
    for name in _SYMBOLS:
        value = address(name)
        if value is not None:
            yield f"SYMBOL({name})={value:x}"
    for struct in _SIZES:
        size = _size(types, struct)
        if size:
            yield f"SIZE({struct})={size}"
    for struct, members in _OFFSETS.items():
        for member in members:
            found = types.find(struct, member) if _size(types, struct) else None
            if found is not None:
                yield f"OFFSET({struct}.{member})={found.offset}"
    for struct, member in _LENGTHS:
        found = types.find(struct, member)
        if found is not None:
            yield f"LENGTH({struct}.{member})={found.length}"
    yield from _numbers(types)
    yield from _sections(path, types)


def _size(types: Types, struct: str) -> int:
    try:
        return types.size(struct)
    except DumpfsError:
        return 0


def _numbers(types: Types) -> Iterator[str]:
    flags = types.enumerators("PG_")
    for name in _FLAGS:
        if name in flags:
            yield f"NUMBER({name})={flags[name]}"
    if "PG_head" in flags:
        yield f"NUMBER(PG_head_mask)={1 << flags['PG_head']}"
    stats = types.enumerators("NR_FREE_PAGES")
    if "NR_FREE_PAGES" in stats:
        yield f"NUMBER(NR_FREE_PAGES)={stats['NR_FREE_PAGES']}"
    dtors = types.enumerators("HUGETLB_PAGE_DTOR")
    if "HUGETLB_PAGE_DTOR" in dtors:
        yield f"NUMBER(HUGETLB_PAGE_DTOR)={dtors['HUGETLB_PAGE_DTOR']}"
    kinds = types.enumerators("PGTY_")
    if kinds:
        for name in _PAGE_TYPES:
            if f"PGTY_{name}" in kinds:
                yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={kinds[f'PGTY_{name}'] << _TYPE_SHIFT}"
    elif types.find("page", "page_type") is not None:
        yield f"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)={_OLD_BUDDY}"
        yield f"NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)={_OLD_OFFLINE}"
    else:
        yield f"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)={_OLDEST_BUDDY}"


def _sections(path: str, types: Types) -> Iterator[str]:
    bits = _BITS.get(_machine(path))
    size = _size(types, "mem_section")
    if bits is None or not size:
        return
    section, physical = bits
    yield f"NUMBER(SECTION_SIZE_BITS)={section}"
    yield f"NUMBER(MAX_PHYSMEM_BITS)={physical}"
    yield f"LENGTH(mem_section)={-(-(1 << (physical - section)) // (4096 // size))}"
