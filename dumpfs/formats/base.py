"""What a dump image is: the contract between formats and everything above them.

Inside an image a pfn counts blocks of `meta.block_size` bytes from physical address `meta.first_paddr`; only
`memory.physical` and the layers above it know kernel pages (QEMU's arm64 dumps have 64 KiB blocks over 4 KiB
pages; makedumpfile's 32-bit ARM dumps count from the start of RAM).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from dumpfs.ranges import PfnSet
from dumpfs.structs import ByteOrder
from dumpfs.units import PageState, Pfn


@dataclass(frozen=True, slots=True)
class Utsname:
    """The dumped machine's `struct new_utsname`; fields are empty where the producer left them so."""

    sysname: str = ""
    nodename: str = ""
    release: str = ""
    version: str = ""
    machine: str = ""
    domainname: str = ""


@dataclass(frozen=True, slots=True)
class DumpMeta:
    """Header facts, the same for every format; None or empty where the format does not say."""

    format: str
    """'kdump', 'elf', 'lime', 'raw'."""
    block_size: int
    """Bytes per pfn of the image."""
    max_pfn: Pfn
    """One past the highest pfn the image covers (max_mapnr)."""
    byteorder: ByteOrder
    """Of the dump's own integers; the kernel's may differ (QEMU's ppc64le)."""
    word_size: int
    """4 or 8: bytes of `long` in the dump's headers."""
    first_paddr: int = 0
    """Physical address of pfn 0."""
    machine: str = ""
    """uname -m as far as the dump tells: 'x86_64', 'aarch64', 's390x', 'i686', 'arm', 'ppc64' ..., or ''."""
    version: int = 0
    """kdump header_version; 0 for formats without."""
    variant: str = ""
    """More words for people: 'flattened', 'split 1 of 2', 'QEMU', 'header cut off' ..., comma-separated."""
    compression: str = ""
    """'zlib', 'lzo', 'snappy', 'zstd', 'none': what the header asked for; pages decide for themselves."""
    dump_level: int | None = None
    """makedumpfile's -d bits."""
    complete: bool = True
    """False when flagged incomplete, cut short, or a part of a set is missing."""
    incomplete_reason: str = ""
    """Why `complete` is False, in one clause."""
    timestamp: float | None = None
    """Seconds since the epoch from the header; None when 0 or missing."""
    nr_cpus: int | None = None
    phys_base: int | None = None
    """The header's phys_base, signed; QEMU's is wrong, see formats.kdump."""
    uts: Utsname = field(default_factory=Utsname)
    header: Mapping[str, object] = field(default_factory=dict)
    """Every header field under its C name, for `dumpfs info --json`; values are JSON types."""
    virtual_loads: tuple[tuple[int, int, int], ...] = ()
    """ELF: (p_vaddr, p_paddr, p_memsz) of the PT_LOADs that have a kernel virtual address; at most a few thousand."""


class PageInfo(NamedTuple):
    """Where and how one page is stored, without decoding it."""

    state: PageState
    codec: str
    """'zlib', 'lzo', 'snappy', 'zstd', 'raw', or '' when not stored."""
    offset: int
    """Byte offset of the stored bytes in the source (of a flattened file: in the rearranged view)."""
    size: int
    """Stored bytes."""
    flags: int
    """The descriptor's flags; 0 for formats without."""
    source: str
    """Name of the file that holds it (a part of a split set)."""
    detail: str = ""
    """Why it is lost or corrupt."""


class Blob(NamedTuple):
    """The stored form of one page, for copy-through."""

    state: PageState
    flags: int
    """Compression flag of a page descriptor; 0 is raw."""
    data: bytes
    """Stored bytes; empty when the page is not stored."""


class PlainPages(NamedTuple):
    """Where the pages of a kdump-compressed dump are, if all are in one plain file of little-endian numbers."""

    fd: int
    bitmap: int
    """Byte offset of the bitmap of stored pages."""
    stop: Pfn
    """One past the last page that it covers."""
    ranks: array[int]
    """Stored pages before each chunk of 4096; see `Bitmap.ranks`."""
    table: int
    """Byte offset of the page descriptors."""
    descriptors: int
    """How many there are."""


@runtime_checkable
class PlainImage(Protocol):
    """An image that may be simple enough for the loops that are written in C."""

    def plain_pages(self) -> PlainPages | None:
        """Where its pages are, or None: not so simply, or some are missing."""


@runtime_checkable
class SparseImage(Protocol):
    """An image that knows where its file has holes: terabytes that nobody wrote, and that need not be read."""

    def written_runs(self, first: Pfn, stop: Pfn) -> Iterator[tuple[Pfn, Pfn]]:
        """Runs of the stored blocks in `[first, stop)`, ascending, without those that lie in a hole: zeros all."""


class DumpImage(Protocol):
    """Facts about the pages of one dump. Immutable; any thread and any forked process may read."""

    meta: DumpMeta
    ram: PfnSet
    """Blocks of memory that the machine had."""
    stored: PfnSet
    """Blocks whose content is (said to be) in the file; a subset of `ram`, less what is known to be lost."""
    lost: PfnSet
    """Blocks that should be in the file and are known not to be; empty for a complete dump."""
    partial: Mapping[Pfn, tuple[int, int]]
    """Blocks in which RAM begins or ends: the `[first, stop)` bytes inside the block that are RAM."""
    notices: tuple[str, ...]
    """What was odd when the dump was opened, one sentence each, for /status and `dumpfs info`."""

    def state(self, pfn: Pfn) -> PageState:
        """State of one block as far as bitmaps and descriptors tell; its data is not decoded."""

    def info(self, pfn: Pfn) -> PageInfo:
        """Where and how a block is stored; never raises for a bad page."""

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """One block: its `block_size` bytes (b'' unless STORED or PARTIAL), state, and why if lost or corrupt.

        The fast path for a single block; trouble is a state, not an exception.
        """

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """`count` blocks from `first` on: their bytes (zeros where there is no content) and one state byte each.

        The fast path for many; callers keep `count` to some thousands. Trouble is a state, not an exception.
        """

    def stored_blobs(self, first: Pfn, count: int) -> list[Blob]:
        """The stored, still compressed form of `count` blocks from `first` on, for copy-through."""

    def notes(self) -> bytes:
        """All notes as one PT_NOTE image (12-byte headers, 4-byte padding), in `meta.byteorder`; b'' if none."""

    def vmcoreinfo_text(self) -> bytes | None:
        """VMCOREINFO as the header or a note has it, or None."""

    def eraseinfo(self) -> bytes:
        """What makedumpfile's erase filter says it removed; b'' if nothing."""

    def changes(self) -> list[str]:
        """What happened to the input files since they were opened: 'FILE: truncated from ...'."""

    def close(self) -> None:
        """Close the sources."""
