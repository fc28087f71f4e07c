"""What memory itself says of where a kernel is, without page tables."""

from __future__ import annotations

import re

from dumpfs.errors import DumpfsError
from dumpfs.memory.physical import PhysMemory
from dumpfs.vmcoreinfo import Vmcoreinfo

_FIELD = 65
"""Bytes of a field of `struct new_utsname`: sysname, nodename, release ..."""
_UNTOLD_OFFSETS = (4, 0, 8)
"""Of `name` in `struct uts_namespace`, which VMCOREINFO does not tell before 5.10: 4, behind a kref, up to 5.9."""
_MAX_READS = 1 << 15
"""Pages looked at in a search: 64 GiB of memory in steps of 2 MiB, a second of decoding at worst."""
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,4})(?:\.(\d{1,6}))?")


def kernel_version(release: str) -> tuple[int, int, int] | None:
    """(version, patch level, sublevel) at the start of a release, or None when it does not begin with them."""
    match = _VERSION.match(release)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


def has_utsname(phys: PhysMemory, info: Vmcoreinfo, shift: int) -> bool | None:
    """Whether the kernel's name and release are where `init_uts_ns` would be, if the image lay `shift` bytes from it.

    Args:
        phys: physical memory.
        info: tells the symbol and the release.
        shift: physical minus virtual address of the image, bytes.

    Returns:
        None when the symbol is not known, or its page is not in the dump.
    """
    symbol = info.symbol("init_uts_ns")
    if symbol is None:
        return None
    found: bool | None = None
    for offset in _offsets(info):
        paddr = symbol + offset + shift
        if not 0 <= paddr < phys.size:
            return False if phys.image.meta.complete else None
        try:
            name = phys.read(paddr, 3 * _FIELD)
        except DumpfsError:
            continue
        found = found or _is_name(name, info.release)
    return found


def find_by_utsname(phys: PhysMemory, info: Vmcoreinfo, link_base: int, step: int) -> int | None:
    """How far from its link address the kernel image was loaded, by a search for its name; None when it is nowhere.

    Args:
        phys: physical memory; only what is stored of it is looked at.
        info: tells the symbol and the release.
        link_base: virtual address that is linked to physical 0.
        step: bytes by which the image can be moved.
    """
    symbol = info.symbol("init_uts_ns")
    if symbol is None or not info.release:
        return None
    reads = 0
    every = step >> phys.page_shift
    for offset in _offsets(info):
        linked = symbol + offset - link_base
        wanted = (linked >> phys.page_shift) % every
        for first, stop in phys.stored.runs():
            for pfn in range(first + (wanted - first) % every, stop, every):
                reads += 1
                if reads > _MAX_READS:
                    return None
                phys_base = (pfn << phys.page_shift) + (linked & ((1 << phys.page_shift) - 1)) - linked
                try:
                    name = phys.read(linked + phys_base, 3 * _FIELD)
                except DumpfsError:
                    continue
                if _is_name(name, info.release):
                    return phys_base
    return None


def _offsets(info: Vmcoreinfo) -> tuple[int, ...]:
    told = info.offset("uts_namespace.name")
    return _UNTOLD_OFFSETS if told is None else (told,)


def _is_name(data: bytes, release: str) -> bool:
    fields = [data[i : i + _FIELD].split(b"\0", 1)[0] for i in range(0, len(data), _FIELD)]
    return fields[0] == b"Linux" and fields[2].decode("utf-8", "replace") == release
