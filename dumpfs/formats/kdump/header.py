"""kdump-compressed headers: layouts, and the choice of byte order, word size and sub header packing.

    block 0            main header (disk_dump_header)
    block 1            sub header (kdump_sub_header), notes behind it, sub_hdr_size blocks
    block 1 + S        1st bitmap (RAM), 2nd bitmap (dumpable), bitmap_blocks together
    block 1 + S + B    page descriptors, 24 bytes each, then page data anywhere behind

Sources (layouts, constants, rules): makedumpfile IMPLEMENTATION, diskdump_mod.h; QEMU include/system/dump.h (packed
records); crash diskdump.c and libkdumpfile diskdump.c (how readers tell the 32-bit variants apart).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dumpfs.codecs.registry import CODEC_MASK, codec_name
from dumpfs.errors import CorruptDumpError
from dumpfs.formats.base import Utsname
from dumpfs.sources.base import ByteSource, read_exactly
from dumpfs.structs import Abi, Layout

SIGNATURE = b"KDUMP   "
DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
DUMP_DH_EXCLUDED_VMEMMAP = 0x10

NEWEST_VERSION = 6
_MAX_VERSION = 64
"""A version we do not know is read as 6 with a notice; beyond this it is not a version."""
MIN_BLOCK_SIZE = 0x400
MAX_BLOCK_SIZE = 0x40000
_MAX_SUB_HEADER_BYTES = 1 << 30
"""Sub header and notes of the largest machines are a few megabytes."""

_MAX_PFN = 1 << 35
"""128 TiB of 4 KiB pages: no machine has them, and an index of more would be a burden of its own."""

_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")


def _main_layout(time_type: str) -> Layout:
    return Layout(
        "disk_dump_header",
        [
            ("signature", "char[8]"),
            ("header_version", "i32"),
            *((name, "char[65]") for name in _UTS_FIELDS),
            ("tv_sec", time_type),
            ("tv_usec", time_type),
            ("status", "u32"),
            ("block_size", "i32"),
            ("sub_hdr_size", "i32"),
            ("bitmap_blocks", "u32"),
            ("max_mapnr", "u32"),
            ("total_ram_blocks", "u32"),
            ("device_blocks", "u32"),
            ("written_blocks", "u32"),
            ("current_cpu", "u32"),
            ("nr_cpus", "i32"),
        ],
    )


MAIN = _main_layout("long")
MAIN_TIME64 = _main_layout("i64")
"""32-bit userland built with a 64-bit time_t: nobody has shown one, but nothing forbids it."""

SUB = Layout(
    "kdump_sub_header",
    [
        ("phys_base", "ulong"),
        ("dump_level", "i32"),
        ("split", "i32"),
        ("start_pfn", "ulong"),
        ("end_pfn", "ulong"),
        ("offset_vmcoreinfo", "u64"),
        ("size_vmcoreinfo", "ulong"),
        ("offset_note", "u64"),
        ("size_note", "ulong"),
        ("offset_eraseinfo", "u64"),
        ("size_eraseinfo", "ulong"),
        ("start_pfn_64", "u64"),
        ("end_pfn_64", "u64"),
        ("max_mapnr_64", "u64"),
    ],
)

_SINCE = {
    "dump_level": 1,
    "split": 2,
    "start_pfn": 2,
    "end_pfn": 2,
    "offset_vmcoreinfo": 3,
    "size_vmcoreinfo": 3,
    "offset_note": 4,
    "size_note": 4,
    "offset_eraseinfo": 5,
    "size_eraseinfo": 5,
    "start_pfn_64": 6,
    "end_pfn_64": 6,
    "max_mapnr_64": 6,
}
"""Header version that brought each sub header field; older files hold something else there."""

DESCRIPTOR = Layout("page_desc", [("offset", "u64"), ("size", "u32"), ("flags", "u32"), ("page_flags", "u64")])

_LE64, _BE64 = Abi("little", 8, 8), Abi("big", 8, 8)
_LE32, _BE32 = Abi("little", 4, 8), Abi("big", 4, 8)
_LE32_PACKED, _BE32_PACKED = Abi("little", 4, 4), Abi("big", 4, 4)

_CANDIDATES: tuple[tuple[Layout, Abi], ...] = (
    (MAIN, _LE64),
    (MAIN, _BE64),
    (MAIN, _LE32),
    (MAIN, _BE32),
    (MAIN_TIME64, _LE32),
    (MAIN_TIME64, _BE32),
    (MAIN_TIME64, _LE32_PACKED),
)
_HEADER_BYTES = 512
"""Longer than any variant of the main header, shorter than any block."""

_MACHINE_ABIS = {
    "x86_64": (8, "little"),
    "aarch64": (8, "little"),
    "ppc64le": (8, "little"),
    "riscv64": (8, "little"),
    "loongarch64": (8, "little"),
    "ppc64": (8, "big"),
    "s390x": (8, "big"),
}
"""Word size and byte order that a machine name promises. i686 is missing: QEMU writes 64-bit headers for it."""


@dataclass(frozen=True, slots=True)
class KdumpHeader:
    """Both headers of one kdump-compressed file."""

    abi: Abi
    main: Mapping[str, int]
    sub: Mapping[str, int]
    """Fields of the sub header that this header version has; the others are missing."""
    uts: Utsname
    sub_abi: Abi
    """Layout rule of the sub header: differs from `abi` for packed 32-bit ones."""
    file_bytes: int
    """Bytes in the file."""
    notices: tuple[str, ...]

    @property
    def version(self) -> int:
        """header_version."""
        return self.main["header_version"]

    @property
    def block_size(self) -> int:
        """Bytes of a block and of a page of this file."""
        return self.main["block_size"]

    @property
    def bitmap_offset(self) -> int:
        """Byte offset of the 1st bitmap."""
        return self.block_size * (1 + self.main["sub_hdr_size"])

    @property
    def descriptor_offset(self) -> int:
        """Byte offset of the page descriptor table."""
        return self.bitmap_offset + self.block_size * self.main["bitmap_blocks"]

    @property
    def claimed_max_mapnr(self) -> int:
        """One past the last pfn as the headers say."""
        return self.sub.get("max_mapnr_64") or self.main["max_mapnr"]

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of one bitmap: half of the bitmap blocks, or all of them in old files with a single one."""
        blocks = self.main["bitmap_blocks"]
        needed = (self.claimed_max_mapnr + 8 * self.block_size - 1) // (8 * self.block_size)
        return self.block_size * (blocks // 2 if blocks >= 2 * needed else blocks)

    @property
    def has_two_bitmaps(self) -> bool:
        """False for old files whose only bitmap is both the RAM map and the dumpable one."""
        return self.bitmap_bytes < self.block_size * self.main["bitmap_blocks"]

    @property
    def max_mapnr(self) -> int:
        """One past the last pfn, trusted no further than the bitmap is long."""
        return min(self.claimed_max_mapnr, 8 * self.bitmap_bytes)

    @property
    def is_split(self) -> bool:
        """Whether the file is one part of a split set."""
        return self.sub.get("split", 0) != 0

    @property
    def start_pfn(self) -> int:
        """First pfn of the part; 0 when not split."""
        return self.sub.get("start_pfn_64", self.sub.get("start_pfn", 0)) if self.is_split else 0

    @property
    def end_pfn(self) -> int:
        """One past the part's last pfn."""
        end = self.sub.get("end_pfn_64", self.sub.get("end_pfn", 0)) if self.is_split else self.max_mapnr
        return min(end, self.max_mapnr)

    @property
    def phys_base(self) -> int:
        """phys_base, signed."""
        bits = 8 * self.abi.long_size
        value = self.sub["phys_base"]
        return value - (1 << bits) if value >> (bits - 1) else value

    @property
    def compression(self) -> str:
        """The codec the header asked for; each page's own flag decides."""
        return codec_name(self.main["status"] & CODEC_MASK).replace("raw", "none")

    @property
    def flagged_incomplete(self) -> bool:
        """Whether the writer marked the dump incomplete."""
        return bool(self.main["status"] & DUMP_DH_COMPRESSED_INCOMPLETE)


def probe(head: bytes) -> bool:
    """Whether a file that begins with `head` is a kdump-compressed dump."""
    return head.startswith(SIGNATURE)


def parse_header(source: ByteSource) -> KdumpHeader:
    """Both headers of `source`, which begins with the signature.

    Raises:
        TruncatedDumpError: the file ends inside a header.
        CorruptDumpError: no byte order and word size makes sense of it.
    """
    head = read_exactly(source, 0, _HEADER_BYTES, "the main header")
    abi, main, uts = _parse_main(source, head)
    notices = []
    block_size = main["block_size"]
    sub_bytes = min(block_size * main["sub_hdr_size"], source.size - block_size)
    if sub_bytes < SUB.size(_LE32_PACKED):
        read_exactly(source, block_size, SUB.size(abi), "the sub header")
    raw = source.read_at(block_size, max(SUB.size(a) for a in (abi, _LE64)))
    sub_abi = _choose_sub_abi(abi, main, raw, source.size)
    raw = raw.ljust(SUB.size(sub_abi), b"\0")
    version = main["header_version"]
    fields = SUB.parse_ints(sub_abi, raw)
    sub = {name: value for name, value in fields.items() if _SINCE.get(name, 0) <= version}
    if version > NEWEST_VERSION:
        notices.append(f"header version {version} is newer than {NEWEST_VERSION}, the newest known; read as that")
    header = KdumpHeader(abi, main, sub, uts, sub_abi, source.size, ())
    if header.claimed_max_mapnr > header.max_mapnr:
        notices.append(
            f"max_mapnr is {header.claimed_max_mapnr:#x} but the bitmap has room for {header.max_mapnr:#x} pages only"
        )
    if min(header.max_mapnr, 8 * source.size) > _MAX_PFN:
        raise CorruptDumpError(
            source.name,
            f"max_mapnr {header.max_mapnr:#x} is more memory than any machine has",
            offset=block_size,
            hint="the header is damaged; copy the file again from where it was made",
        )
    if header.is_split and header.start_pfn > header.end_pfn:
        raise CorruptDumpError(
            source.name,
            f"split part begins at pfn {header.start_pfn:#x} and ends before, at {header.end_pfn:#x}",
            offset=block_size,
        )
    return KdumpHeader(abi, main, sub, uts, sub_abi, source.size, tuple(notices))


def _parse_main(source: ByteSource, head: bytes) -> tuple[Abi, dict[str, int], Utsname]:
    best: tuple[int, int] | None = None
    faults: list[tuple[int, int, int, list[str]]] = []
    for index, (layout, abi) in enumerate(_CANDIDATES):
        fields = layout.parse(abi, head)
        numbers = {k: v for k, v in fields.items() if isinstance(v, int)}
        found = _implausible(numbers)
        score = _score_main(_text(fields["machine"]), abi, numbers, source.size)
        if found:
            faults.append((len(found), -score, index, found))
        elif best is None or score > best[0]:
            best = (score, index)
    if best is None:
        *_, found = min(faults)  # what is wrong by the likeliest reading
        raise CorruptDumpError(
            source.name,
            f"the main header makes no sense in any byte order and word size ({', '.join(found)})",
            offset=0,
            hint="its writer was ended before it had more to say, or the file is damaged: make or copy it again",
        )
    layout, abi = _CANDIDATES[best[1]]
    fields = layout.parse(abi, head)
    uts = Utsname(**{name: _text(fields[name]) for name in _UTS_FIELDS})
    main = {k: v for k, v in fields.items() if isinstance(v, int)}
    return abi, main, uts


def _text(value: object) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _implausible(main: Mapping[str, int]) -> list[str]:
    """Why these cannot be a main header's numbers: the impossible ones."""
    block_size, version = main["block_size"], main["header_version"]
    faults = [] if 0 <= version <= _MAX_VERSION else [f"header_version {version}"]
    if block_size & (block_size - 1) or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
        faults.append(f"block_size {block_size}")
        block_size = MIN_BLOCK_SIZE
    if not 1 <= main["sub_hdr_size"] <= _MAX_SUB_HEADER_BYTES // block_size:
        faults.append(f"sub_hdr_size {main['sub_hdr_size']}")
    if not main["bitmap_blocks"]:
        faults.append("bitmap_blocks 0")
    return faults


def _score_main(machine: str, abi: Abi, main: Mapping[str, int], file_bytes: int) -> int:
    score = 0
    promised = _MACHINE_ABIS.get(machine)
    if promised == (abi.long_size, abi.byteorder):
        score += 4
    bits = 8 * main["bitmap_blocks"] * main["block_size"]
    claimed = main["max_mapnr"]
    if bits >= claimed or (main["header_version"] >= NEWEST_VERSION and claimed == 0xFFFFFFFF):
        score += 2
    if main["header_version"] <= NEWEST_VERSION:
        score += 2
    if main["bitmap_blocks"] * main["block_size"] <= file_bytes:
        score += 1
    if main["block_size"] >= 0x1000:
        score += 1
    return score


def _choose_sub_abi(abi: Abi, main: Mapping[str, int], raw: bytes, file_bytes: int) -> Abi:
    """Layout rule of the sub header.

    A 64-bit header has one layout. 32-bit ones are packed (i386, and all that QEMU writes) or aligned to 8
    (makedumpfile on arm, mips, ppc): QEMU and makedumpfile differ for the same machine, so the numbers decide.
    """
    if abi.long_size == 8 or main["header_version"] < _SINCE["offset_vmcoreinfo"]:
        return abi
    packed, padded = Abi(abi.byteorder, 4, 4), Abi(abi.byteorder, 4, 8)
    return max((packed, padded), key=lambda rule: _score_sub(rule, main, raw, file_bytes))


def _score_sub(rule: Abi, main: Mapping[str, int], raw: bytes, file_bytes: int) -> int:
    if len(raw) < SUB.size(rule):
        return -1
    sub = SUB.parse_ints(rule, raw)
    block_size, version = main["block_size"], main["header_version"]
    area = (block_size, block_size * (1 + main["sub_hdr_size"]))
    score = 0
    for name in ("vmcoreinfo", "note"):
        if _SINCE[f"offset_{name}"] > version:
            continue
        offset, size = sub[f"offset_{name}"], sub[f"size_{name}"]
        if not offset and not size:
            score += 1
        elif area[0] + SUB.size(rule) <= offset and offset + size <= min(area[1], file_bytes):
            score += 3
        else:
            score -= 3
    # makedumpfile and QEMU both put the notes right behind the sub header.
    if version >= _SINCE["offset_note"] and sub["offset_note"] == block_size + SUB.size(rule):
        score += 4
    if version >= _SINCE["max_mapnr_64"]:
        same = min(sub["max_mapnr_64"], 0xFFFFFFFF) == main["max_mapnr"]
        room = 4 * main["bitmap_blocks"] * block_size >= sub["max_mapnr_64"]
        score += 4 if same and room else -4
    return score
