"""The files that are damaged, and where in them damage says most.

Small ones are built (`tests.property.samples`): nearly all of such a file is headers, and opening one takes a
millisecond. Real ones bring a kernel to look into.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.corpus import CORPUS, DATA, find
from tests.fuzz.places import read_by_views
from tests.property import samples

_DESCRIPTOR = 24
_PROGRAM_HEADER = 56
_SHOWN_RECORDS = 300


@dataclass(frozen=True)
class Zone:
    """A stretch of a file worth damaging."""

    name: str
    first: int
    stop: int
    widths: tuple[int, ...] = (4, 8)
    """Bytes of the numbers that stand there."""
    big: bool = False
    weight: int = 1
    kind: str = "numbers"
    """numbers; text (lines of KEY=value); memory (words of a kernel, many of them addresses); names."""


@dataclass(frozen=True)
class Base:
    """A file and its zones."""

    name: str
    data: bytes
    zones: tuple[Zone, ...]
    pointers: tuple[int, ...] = ()
    """Kernel addresses that occur in it."""
    seldom: bool = False
    """Whether a case costs much: a real kernel is looked into."""


def _kdump_zones(data: bytes) -> list[Zone]:
    """Of a little-endian 64-bit kdump."""
    block, sub, bitmaps = struct.unpack_from("<3I", data, 428)
    bitmap = block * (1 + sub)
    table = bitmap + block * bitmaps
    info, info_size, notes, notes_size, erase, erase_size = struct.unpack_from("<6Q", data, block + 32)
    zones = [
        Zone("main header", 0, 464, weight=3),
        Zone("sub header", block, block + 104, (4, 8), weight=4),
        Zone("bitmap", bitmap, table, (1, 8)),
        Zone("descriptors", table, min(table + _DESCRIPTOR * 4000, len(data)), (4, 8), weight=2),
        Zone("pages", table, len(data), (1,)),
    ]
    if info_size:
        zones.append(Zone("VMCOREINFO", info, info + info_size, kind="text", weight=5))
    if notes_size:
        zones.append(Zone("notes", notes, notes + notes_size, (4, 8), weight=2))
    if erase_size:
        zones.append(Zone("erase info", erase, erase + erase_size, (1,)))
    return zones


def _sample_zones(name: str, data: bytes) -> list[Zone]:
    if name.startswith("flat"):
        return _flat_zones(data)
    if name.startswith("lime"):
        return [Zone("first range", 0, 32, weight=2), Zone("second range", 32 + 0x5000, 64 + 0x5000, weight=2)]
    built = (samples.elf if name.startswith("elf") else samples.kdump)(name.partition("-")[2])
    big = name.endswith(("s390x", "ppc"))
    places = built.places
    if name.startswith("elf"):
        headers = places["phdrs"]
        zones = [
            Zone("ELF header", 0, 64, (1, 2, 4, 8), big, weight=3),
            Zone("program headers", headers, headers + 6 * _PROGRAM_HEADER, (4, 8), big, weight=4),
            Zone("everything", 0, len(data), (1, 4)),
        ]
    else:
        zones = [
            Zone("main header", 8, 464, (4, 8), big, weight=3),
            Zone("sub header", places["sub"], places["sub"] + 104, (4, 8), big, weight=4),
            Zone("notes", places["notes"], places["notes_end"], (4, 8), big, weight=2),
            Zone("bitmaps", places["bitmap1"], places["bitmap2"] + 530, (1, 8), big),
            Zone("descriptors", places["descriptors"], places["descriptors_end"], (4, 8), big, weight=4),
            Zone("pages", places["pages"], len(data), (1, 4)),
        ]
    at = data.find(b"OSRELEASE=")
    if at >= 0:
        zones.append(Zone("VMCOREINFO", at, data.index(b"\0", at), kind="text", weight=3))
    return zones


def _flat_zones(data: bytes) -> list[Zone]:
    zones = [Zone("flat header", 0, 32, (1, 8), big=True)]
    at = 4096
    while at + 16 <= len(data) and len(zones) < _SHOWN_RECORDS:
        offset, size = struct.unpack_from(">qq", data, at)
        zones.append(Zone("record", at, at + 16, (8,), big=True))
        if offset < 0 or size <= 0:
            break
        if offset < 1 << 14:  # headers of what is inside
            zones.append(Zone("first blocks", at + 16, at + 16 + min(size, 4096), (4, 8), weight=20))
        at += 16 + size
    return zones


def _elf_zones(data: bytes) -> list[Zone]:
    """Of a little-endian 64-bit core."""
    headers, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    zones = [
        Zone("ELF header", 0, 64, (1, 2, 4, 8), weight=2),
        Zone("program headers", headers, headers + _PROGRAM_HEADER * count, (4, 8), weight=4),
    ]
    for i in range(count):
        kind, offset, size = (
            struct.unpack_from("<I", data, headers + _PROGRAM_HEADER * i)[0],
            *struct.unpack_from("<Q16xQ", data, headers + _PROGRAM_HEADER * i + 8),
        )
        if kind == 4:
            zones.append(Zone("notes", offset, offset + size, (4, 8), weight=3))
            at = data.find(b"OSRELEASE=", offset, offset + size)
            if at >= 0:
                zones.append(Zone("VMCOREINFO", at, data.index(b"\0", at), kind="text", weight=4))
    return zones


def _sample(name: str) -> Base:
    data = samples.everything()[name]
    return Base(name, data, tuple(_sample_zones(name, data)))


def _real(name: str, file: str, zones: Callable[[bytes], list[Zone]]) -> Base | None:
    path = _find(file)
    if path is None:
        return None
    data = path.read_bytes()
    return Base(name, data, tuple(zones(data)), seldom=True)


def _memory(name: str, file: str) -> Base | None:
    """Only what the views read of the kernel's memory is damaged."""
    path = _find(file)
    if path is None:
        return None
    data = path.read_bytes()
    places, names = read_by_views(path)
    zones = [Zone("memory", first, stop, (1, 2, 4, 8), kind="memory", weight=2) for first, stop in places]
    zones += [Zone("names", first, stop, (1,), kind="names", weight=1) for first, stop in names]
    pointers = set()
    for first, stop in places:
        for at in range(first + -first % 8, min(stop, first + 256) - 7, 8):
            word = int.from_bytes(data[at : at + 8], "little")
            if word >> 47 == 0x1FFFF:
                pointers.add(word)
    return Base(name, data, tuple(zones), tuple(sorted(pointers)), seldom=True)


def _find(file: str) -> Path | None:
    """A file of tests/data or of the corpus, unpacked."""
    return find(DATA, file) or find(CORPUS, file)


_REAL: dict[str, tuple[Callable[..., Base | None], tuple[object, ...]]] = {
    "real-headers": (_real, ("mkd-raw-d31.kdump", _kdump_zones)),
    "real-memory": (_memory, ("mkd-raw-d31.kdump",)),
    "real-elf": (_real, ("mkd-incomplete-elf-d31.elf", _elf_zones)),
    "real-incomplete": (_real, ("mkd-incomplete-zlib-d31.kdump", _kdump_zones)),
    "corpus-flat": (_real, ("tiny/qemu-kaslr.kdump-zlib", _flat_zones)),
    "corpus-qemu-elf": (_real, ("tiny/qemu-kaslr.elf", _elf_zones)),
    "corpus-arm64": (_real, ("foreign/arm64/arm64.kdump-zlib", _flat_zones)),
    "corpus-s390x": (_real, ("foreign/s390x/s390x.kdump-zlib", _flat_zones)),
    "corpus-deb61-memory": (_memory, ("deb61/raw-d31.kdump",)),
    "corpus-deb61-headers": (_real, ("deb61/raw-d31.kdump", _kdump_zones)),
    "corpus-gen618-memory": (_memory, ("gen618/panic.raw-d17.kdump",)),
}


def names() -> list[str]:
    """Every base that may be there; those of the corpus begin with 'corpus-'."""
    return [*sorted(samples.everything()), *_REAL]


@cache
def load(name: str) -> Base | None:
    """A base by name, or None when its file is not there."""
    if name not in _REAL:
        return _sample(name)
    make, arguments = _REAL[name]
    return make(name, *arguments)
