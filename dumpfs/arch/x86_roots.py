"""x86_64 page tables found by a search of memory, when neither VMCOREINFO nor a processor's cr3 tells where they are.

Every process has a root table, and the kernel's half is alike in all of them, so any will do that maps the kernel image
and, in it, the kernel's banner.

Sources: Linux arch/x86/include/asm/pgtable_types.h (flags of entries), init/version-timestamp.c (banner).
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.arch.walk import PageTables
from dumpfs.arch.x86_64 import DEFAULT_IMAGE_SIZE, kernel_entries, page_tables
from dumpfs.arch.x86_direct import DIRECT_MAP, START_KERNEL_MAP
from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.scan import plan_windows, written_runs

_PAGE = 0x1000
_LAST = 0xFF8
"""Offset of the root's last entry, which leads to the kernel image."""
_TABLE_FLAGS = bytes(1 if flags & ~0x24 == 0x43 or flags & ~0x24 == 0x03 else 0 for flags in range(256))
"""Which low bytes an entry that leads to a table has: present, writable; dirty, accessed and user may be set."""
_FLAGS = 0xFFF
_ENTRY = 8
_BANNER = b"Linux version "
_BANNER_RANGE = 64 << 20
"""Bytes of the image in which its read-only data begins."""
_STEP = 1 << 20
_MAX_BYTES = 32 << 30
"""Memory searched; a root is among the first gigabytes, for the kernel itself has one."""
_MAX_TRIED = 256
"""Roots looked into; each costs as much as reading the start of a kernel image."""
_ENOUGH_ALIKE = 8
"""Roots as full as the fullest after which no fuller one is to be expected."""


def find_root(phys: PhysMemory) -> tuple[int, int] | None:
    """(physical address, levels) of a root table of the kernel, or None.

    The fullest of them: the one that starts processors has the kernel's half as it was early.
    """
    best: tuple[int, int] | None = None
    most = alike = tried = 0
    for root in _candidates(phys):
        filled = kernel_entries(phys, root)
        alike += filled == most
        if alike >= _ENOUGH_ALIKE or tried >= _MAX_TRIED:
            break
        if filled <= most:
            continue
        tried += 1
        for depth in (4, 5):
            if _maps_a_kernel(phys, page_tables(phys, root, depth)):
                best, most, alike = (root, depth), filled, 0
                break
    return best


def _candidates(phys: PhysMemory) -> Iterator[int]:
    """Pages whose last entry may lead to a table of the kernel image, ascending."""
    if phys.image.meta.block_size != _PAGE:
        return
    left = _MAX_BYTES
    for first, count in plan_windows(written_runs(phys.image), _PAGE):
        left -= count * _PAGE
        if left < 0:
            return
        data, _ = phys.image.read_run(first, count)
        likely = data[_LAST::_PAGE].translate(_TABLE_FLAGS)
        at = likely.find(1)
        while at >= 0:
            start = at * _PAGE + _LAST
            entry = int.from_bytes(data[start : start + _ENTRY], "little")
            if 0 < entry & ~_FLAGS < phys.size:
                yield phys.image.meta.first_paddr + (first + at) * _PAGE
            at = likely.find(1, at + 1)


def _maps_a_kernel(phys: PhysMemory, tables: PageTables) -> bool:
    """Whether there is a direct map, and the kernel's banner where the tables have the kernel image.

    The second level of five maps the image as the first of four would, but no direct map.
    """
    low, high, _ = DIRECT_MAP[len(tables.levels)]
    if tables.first_mapped(low, high, max_tables=16) is None:
        return False
    found = tables.first_mapped(START_KERNEL_MAP, START_KERNEL_MAP + DEFAULT_IMAGE_SIZE, max_tables=16)
    if found is None or found[1] >= phys.size:
        return False
    tail = b""
    for paddr in range(found[1], min(found[1] + _BANNER_RANGE, phys.size), _STEP):
        try:
            piece = phys.read(paddr, _STEP)
        except DumpfsError:
            tail = b""
            continue
        if _BANNER in tail + piece:
            return True
        tail = piece[-len(_BANNER) :]
    return False
