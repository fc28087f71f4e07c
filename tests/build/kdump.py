"""kdump-compressed files of every header version, word size, byte order and sub header layout.

Sources: makedumpfile's IMPLEMENTATION and diskdump_mod.h, crash's diskdump.h, QEMU's dump.h (the packed sub header);
offsets are written out, so that nothing is shared with the reader under test.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.build.codecs import store
from tests.build.model import Built, Kind, Memory, Page
from tests.build.notes import note

_MAIN_TAIL = (
    ("status", "I"),
    ("block_size", "i"),
    ("sub_hdr_size", "i"),
    ("bitmap_blocks", "I"),
    ("max_mapnr", "I"),
    ("total_ram_blocks", "I"),
    ("device_blocks", "I"),
    ("written_blocks", "I"),
    ("current_cpu", "I"),
    ("nr_cpus", "i"),
)


def _main_fields(word: int) -> dict[str, tuple[int, str]]:
    fields = {"header_version": (8, "i")}
    if word == 8:
        fields |= {"tv_sec": (408, "q"), "tv_usec": (416, "q")}
    else:
        fields |= {"tv_sec": (404, "i"), "tv_usec": (408, "i")}
    for i, (name, code) in enumerate(_MAIN_TAIL):
        fields[name] = ((424 if word == 8 else 412) + 4 * i, code)
    return fields


MAIN_FIELDS = {4: _main_fields(4), 8: _main_fields(8)}
"""Word size to field name to (offset, struct code)."""

UTSNAME = ("sysname", "nodename", "release", "version", "machine", "domainname")


def _sub(word: str, *offsets: int) -> dict[str, tuple[int, str, int]]:
    names = (
        f"phys_base:{word}:0 dump_level:i:1 split:i:2 start_pfn:{word}:2 end_pfn:{word}:2 offset_vmcoreinfo:Q:3 "
        f"size_vmcoreinfo:{word}:3 offset_note:Q:4 size_note:{word}:4 offset_eraseinfo:Q:5 size_eraseinfo:{word}:5 "
        "start_pfn_64:Q:6 end_pfn_64:Q:6 max_mapnr_64:Q:6"
    ).split()
    out = {}
    for entry, offset in zip(names, offsets, strict=True):
        name, code, since = entry.split(":")
        out[name] = (offset, code, int(since))
    return out


SUB_FIELDS = {
    "64": _sub("Q", 0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96),
    "32packed": _sub("I", 0, 4, 8, 12, 16, 20, 28, 32, 40, 44, 52, 56, 64, 72),
    "32padded": _sub("I", 0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88),
}
"""Sub header layout to field name to (offset in the sub header, struct code, first header version)."""

SUB_SIZES = {"64": 104, "32packed": 80, "32padded": 96}


@dataclass(frozen=True)
class KdumpSpec:
    """Everything about a file but its pages."""

    layout: str = "64"
    """64, 32packed or 32padded."""
    byteorder: str = "little"
    version: int = 6
    bitmaps: int = 2
    """1: a single bitmap that serves as both, as very old dumps have."""
    status: int = 0
    machine: str = ""
    release: str = ""
    timestamp: int = 0
    dump_level: int = 0
    phys_base: int = 0
    nr_cpus: int = 1
    vmcoreinfo: bytes | None = None
    notes: bytes = b""
    """Notes before the VMCOREINFO one."""
    eraseinfo: bytes = b""
    split: tuple[int, int] | None = None
    """Half-open range of pages whose data this part of a split set has."""
    full_room: bool = True
    """Room for the descriptors of all pages in each part, as makedumpfile leaves it."""
    shuffle: int | None = None
    """Seed of the order of the page data; None: ascending."""
    junk: bool = True
    """Fields newer than the version hold junk instead of zeros."""

    @property
    def word(self) -> int:
        """Bytes of `long`."""
        return 8 if self.layout == "64" else 4

    @property
    def prefix(self) -> str:
        """The struct byte-order character."""
        return "<" if self.byteorder == "little" else ">"


def _main_header(memory: Memory, spec: KdumpSpec, sub_blocks: int, bitmap_blocks: int) -> bytearray:
    header = bytearray(memory.block_size)
    header[:8] = b"KDUMP   "
    names = {"machine": spec.machine, "release": spec.release}
    for i, name in enumerate(UTSNAME):
        value = names.get(name, "").encode()
        header[12 + 65 * i : 12 + 65 * i + len(value)] = value
    values = {
        "header_version": spec.version,
        "tv_sec": spec.timestamp,
        "status": spec.status,
        "block_size": memory.block_size,
        "sub_hdr_size": sub_blocks,
        "bitmap_blocks": bitmap_blocks,
        "max_mapnr": min(memory.max_pfn, 0xFFFFFFFF),
        "nr_cpus": spec.nr_cpus,
    }
    for name, value in values.items():
        offset, code = MAIN_FIELDS[spec.word][name]
        struct.pack_into(spec.prefix + code, header, offset, value)
    return header


def _sub_header(memory: Memory, spec: KdumpSpec, erase_offset: int) -> tuple[bytearray, dict[str, int]]:
    """The sub header and the notes behind it, padded to blocks; and places."""
    block, size = memory.block_size, SUB_SIZES[spec.layout]
    info = spec.vmcoreinfo
    notes = spec.notes
    info_offset = 0
    if spec.version >= 4:
        if info is not None:
            info_offset = block + size + len(notes) + 24  # header 12, name padded to 12
            notes += note(b"VMCOREINFO", 0, info, spec.byteorder)
    else:
        notes = info or b""
        info_offset = block + size
    first, stop = spec.split or (0, 0)
    values = {
        "phys_base": spec.phys_base & ((1 << 8 * spec.word) - 1),
        "dump_level": spec.dump_level,
        "split": int(spec.split is not None),
        "start_pfn": min(first, 0xFFFFFFFF),
        "end_pfn": min(stop, 0xFFFFFFFF),
        "offset_vmcoreinfo": info_offset if info else 0,
        "size_vmcoreinfo": len(info or b""),
        "offset_note": block + size if notes else 0,
        "size_note": len(notes),
        "offset_eraseinfo": erase_offset if spec.eraseinfo else 0,
        "size_eraseinfo": len(spec.eraseinfo),
        "start_pfn_64": first,
        "end_pfn_64": stop,
        "max_mapnr_64": memory.max_pfn,
    }
    used = size + len(notes)
    area = bytearray(-(-used // block) * block)
    for name, (offset, code, since) in SUB_FIELDS[spec.layout].items():
        if since <= spec.version:
            struct.pack_into(spec.prefix + code, area, offset, values[name])
        elif spec.junk:
            area[offset : offset + struct.calcsize("=" + code)] = b"\xa5" * struct.calcsize("=" + code)
    area[size : size + len(notes)] = notes
    return area, {"notes": block + size, "notes_end": block + used}


def _descriptor(spec: KdumpSpec, offset: int, size: int, flags: int) -> bytes:
    return struct.pack(spec.prefix + "QIIQ", offset, size, flags, 0)


def _page_data(
    memory: Memory, spec: KdumpSpec, pfns: list[int], start: int
) -> tuple[bytes, dict[int, bytes], dict[int, tuple[int, int]]]:
    """Page data from file offset `start` on; descriptors and blob places by pfn."""
    pieces: list[bytes] = []
    descriptors: dict[int, bytes] = {}
    blobs: dict[int, tuple[int, int]] = {}
    position = start
    shared = None
    if any(memory.pages[p].codec == "zero" for p in pfns):
        shared = position
        pieces.append(bytes(memory.block_size))
        position += memory.block_size
    order = list(pfns)
    if spec.shuffle is not None:
        random.Random(spec.shuffle).shuffle(order)
    for pfn in order:
        page = memory.pages[pfn]
        if page.descriptor is not None:
            descriptors[pfn] = _descriptor(spec, *page.descriptor)
        elif page.kind is Kind.LOST:
            descriptors[pfn] = bytes(24)
        elif page.codec == "zero" and shared is not None and page.stored_form is None:
            descriptors[pfn] = _descriptor(spec, shared, memory.block_size, 0)
            blobs[pfn] = (shared, memory.block_size)
        else:
            flags, blob = stored_form(page)
            descriptors[pfn] = _descriptor(spec, position, len(blob), flags)
            blobs[pfn] = (position, len(blob))
            pieces.append(blob)
            position += len(blob)
    return b"".join(pieces), descriptors, blobs


def stored_form(page: Page) -> tuple[int, bytes]:
    """(descriptor flags, blob) of a page that has content."""
    return page.stored_form if page.stored_form is not None else store(page.codec, page.data)


def build_kdump(memory: Memory, spec: KdumpSpec | None = None) -> Built:
    """The file of `memory`; of a split set, the part that `spec.split` says."""
    spec = spec or KdumpSpec()
    block = memory.block_size
    one = (memory.max_pfn + 8 * block - 1) // (8 * block) * block  # bytes of one bitmap
    sub_area, places = _sub_header(memory, spec, 0)
    bitmap_offset = block + len(sub_area)
    table_offset = bitmap_offset + spec.bitmaps * one
    dumpable = memory.dumpable()
    first, stop = spec.split or (0, memory.max_pfn)
    own = [p for p in dumpable if first <= p < stop]
    room = 24 * len(dumpable if spec.full_room else own)
    data, descriptors, blobs = _page_data(memory, spec, own, table_offset + room)
    erase_offset = table_offset + room + len(data)
    sub_area, _ = _sub_header(memory, spec, erase_offset)
    table = b"".join(descriptors[p] for p in own)
    header = _main_header(memory, spec, len(sub_area) // block, spec.bitmaps * one // block)
    bitmaps = memory.bits(dumpable).ljust(one, b"\0")
    if spec.bitmaps == 2:
        bitmaps = memory.bits(memory.ram()).ljust(one, b"\0") + bitmaps
    places |= {
        "main": 0,
        "sub": block,
        "bitmap1": bitmap_offset,
        "bitmap2": bitmap_offset + (one if spec.bitmaps == 2 else 0),
        "descriptors": table_offset,
        "descriptors_end": table_offset + len(table),
        "pages": table_offset + room,
        "eraseinfo": erase_offset,
    }
    out = b"".join((header, sub_area, bitmaps, table.ljust(room, b"\0"), data, spec.eraseinfo))
    return Built(out, places, {p: table_offset + 24 * i for i, p in enumerate(own)}, blobs)


def poke(built: Built, spec: KdumpSpec, field: str, value: int) -> bytes:
    """The file with one field of its main or sub header replaced; `value` is cut to the field's width."""
    if field in MAIN_FIELDS[spec.word]:
        offset, code = MAIN_FIELDS[spec.word][field]
    else:
        offset, code, _ = SUB_FIELDS[spec.layout][field]
        offset += built.places["sub"]
    width = struct.calcsize("=" + code)
    order = spec.byteorder
    return built.poked(offset, (value & ((1 << 8 * width) - 1)).to_bytes(width, order))  # type: ignore[arg-type]


def read_field(built: Built, spec: KdumpSpec, field: str) -> tuple[int, int]:
    """(value, width in bytes) of one field, unsigned."""
    if field in MAIN_FIELDS[spec.word]:
        offset, code = MAIN_FIELDS[spec.word][field]
    else:
        offset, code, _ = SUB_FIELDS[spec.layout][field]
        offset += built.places["sub"]
    width = struct.calcsize("=" + code)
    order = spec.byteorder
    return int.from_bytes(built.data[offset : offset + width], order), width  # type: ignore[arg-type]


def split_parts(memory: Memory, spec: KdumpSpec, cuts: list[int]) -> list[Built]:
    """A split set: parts between the pfns of `cuts`, which start with 0 and end with max_pfn."""
    return [build_kdump(memory, replace(spec, split=part)) for part in pairwise(cuts)]
