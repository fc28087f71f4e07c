"""A plain reader of 64-bit little-endian kdump and ELF files, for judging what dumpfs writes.

It shares no code with dumpfs and knows nothing but the formats. Sources: makedumpfile's IMPLEMENTATION and
diskdump_mod.h (header layouts), elf(5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGE = 4096
_MAIN = struct.Struct("<8si65s65s65s65s65s65s6xqqIiiIIIIIIi")
_MAIN_NAMES = (
    *("signature", "header_version", "sysname", "nodename", "release", "version", "machine", "domainname"),
    *("tv_sec", "tv_usec", "status", "block_size", "sub_hdr_size", "bitmap_blocks", "max_mapnr"),
    *("total_ram_blocks", "device_blocks", "written_blocks", "current_cpu", "nr_cpus"),
)
_SUB = struct.Struct("<QiiQQQQQQQQQQQ")
_SUB_NAMES = (
    *("phys_base", "dump_level", "split", "start_pfn", "end_pfn", "offset_vmcoreinfo", "size_vmcoreinfo"),
    *("offset_note", "size_note", "offset_eraseinfo", "size_eraseinfo"),
    *("start_pfn_64", "end_pfn_64", "max_mapnr_64"),
)
_DESCRIPTOR = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
_PHDR = struct.Struct("<IIQQQQQQ")
INCOMPLETE = 0x8
CODECS = {0: "none", 1: "zlib", 2: "lzo", 4: "snappy", 0x20: "zstd"}


def _decoder(flag: int) -> Callable[[bytes], bytes]:
    if flag == 1:
        return zlib.decompress
    if flag == 2:
        import lzo

        return lambda blob: lzo.decompress(blob, False, PAGE)  # type: ignore[no-any-return]
    if flag == 4:
        import cramjam

        return lambda blob: bytes(cramjam.snappy.decompress_raw(blob))
    if flag == 0x20:
        import zstandard

        context = zstandard.ZstdDecompressor()
        return lambda blob: context.decompress(blob, max_output_size=PAGE)
    return bytes


def _pfns(bits: bytes) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))


class Kdump:
    """A kdump-compressed file of 4 KiB blocks, whole in memory."""

    def __init__(self, path: Path) -> None:
        self.data = data = np.fromfile(path, np.uint8)
        values = _MAIN.unpack_from(data, 0)
        self.header = dict(zip(_MAIN_NAMES, values, strict=True))
        if self.header["signature"] != b"KDUMP   " or self.header["block_size"] != PAGE:
            raise RuntimeError(f"{path}: not a kdump of 4 KiB blocks")
        self.header |= dict(zip(_SUB_NAMES, _SUB.unpack_from(data, PAGE), strict=True))
        bitmaps = PAGE * (1 + self.header["sub_hdr_size"])
        half = self.header["bitmap_blocks"] * PAGE // 2
        self.ram = _pfns(bytes(data[bitmaps : bitmaps + half]))
        self.pfns = _pfns(bytes(data[bitmaps + half : bitmaps + 2 * half]))
        table = bitmaps + 2 * half
        self.rows = np.frombuffer(data[table : table + 24 * len(self.pfns)], _DESCRIPTOR)
        self._decoders: dict[int, Callable[[bytes], bytes]] = {}

    def notes(self) -> bytes:
        """All notes."""
        return bytes(self.data[self.header["offset_note"] :][: self.header["size_note"]])

    def blob(self, index: int) -> tuple[int, bytes]:
        """(flags, stored bytes) of the page with this rank."""
        row = self.rows[index]
        return int(row["flags"]), bytes(self.data[int(row["offset"]) : int(row["offset"]) + int(row["size"])])

    def page(self, index: int) -> bytes | None:
        """Content of the page with this rank; None when it is lost."""
        flag, blob = self.blob(index)
        if not self.rows[index]["offset"]:
            return None
        if flag not in self._decoders:
            self._decoders[flag] = _decoder(flag)
        page = self._decoders[flag](blob)
        if len(page) != PAGE:
            raise RuntimeError(f"a page of {len(page)} bytes")
        return page

    def pages(self) -> Iterator[tuple[int, bytes | None]]:
        """Every stored page."""
        for index, pfn in enumerate(self.pfns.tolist()):
            yield pfn, self.page(index)


def header_differences(ours: Kdump, theirs: Kdump) -> list[str]:
    """Fields of the two headers, and notes, that differ."""
    named = [f"{k}: {v!r} is not {theirs.header[k]!r}" for k, v in ours.header.items() if v != theirs.header[k]]
    return named + (["notes"] if ours.notes() != theirs.notes() else [])


def different_pages(ours: Kdump, theirs: Kdump, beyond: int = 0) -> int:
    """Pages whose content differs, of two dumps of the same pages; -1 when they are not of the same pages.

    `beyond` is how many more pages `ours` may have behind the other's last.
    """
    count = len(theirs.pfns)
    if len(ours.pfns) > count + beyond or not np.array_equal(ours.pfns[:count], theirs.pfns):
        return -1
    bad = 0
    for index in range(count):
        a, b = ours.blob(index), theirs.blob(index)
        if a != b:  # equal stored bytes under equal flags are equal pages
            bad += ours.page(index) != theirs.page(index)
    return bad


class Elf:
    """An ELF64 core, whole in memory: its pages by physical address."""

    def __init__(self, path: Path) -> None:
        self.data = np.fromfile(path, np.uint8)
        phoff, _, flags = struct.unpack_from("<QQI", self.data, 32)
        entry, count = struct.unpack_from("<HH", self.data, 54)
        self.incomplete = bool(flags & 1)
        loads = [_PHDR.unpack_from(self.data, phoff + i * entry) for i in range(count)]
        self.loads = [(p[4], p[2], p[5], p[6]) for p in loads if p[0] == 1]
        """(p_paddr, p_offset, p_filesz, p_memsz)"""

    def pages(self) -> dict[int, bytes]:
        """Every whole page with content in the file."""
        found: dict[int, bytes] = {}
        for paddr, offset, filesz, _ in self.loads:
            for at in range(0, filesz - PAGE + 1, PAGE):
                found[(paddr + at) // PAGE] = bytes(self.data[offset + at : offset + at + PAGE])
        return found
