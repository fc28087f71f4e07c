"""What will be written, before anything is: header facts, bitmaps, and the batches of pages.

Sources: makedumpfile IMPLEMENTATION and diskdump_mod.h (which fields mean what in header version 6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dumpfs.elf.core_notes import build_core_notes, is_prstatus
from dumpfs.formats.base import DumpImage, Utsname
from dumpfs.linux.kernel import Kernel
from dumpfs.notes import build_note, find_note, parse_notes
from dumpfs.structs import Abi, ByteOrder
from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Batches, Bits, count_bits

LEVEL_ZERO, LEVEL_CACHE, LEVEL_CACHE_PRIVATE, LEVEL_USER, LEVEL_FREE = 1, 2, 4, 8, 16
MAX_LEVEL = 31

BATCH_PAGES = 1536
"""Pages encoded at once: 6 MiB of 4 KiB pages, so that handing a batch over costs little against encoding it: 0.3 of 7
milliseconds with snappy. Of 1024 pages it is 2 % of the whole more, of 2048 as much less, for a third more memory."""
BATCH_SPAN = 1 << 16
"""Pfns of a batch at most: bounds the flags a worker unpacks."""

_MACHINE_NAMES = {"arm": "armv7l"}
"""uname -m where dumpfs's name is of the family."""


class Eraser(Protocol):
    """Overwrites what must not be in the dump."""

    def patch(self, first: Pfn, data: bytes) -> bytes:
        """The pages from `first` on, with what is to be erased overwritten."""


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What the headers of a dump say, whatever its format."""

    machine: str
    """uname -m."""
    byteorder: ByteOrder
    """Of the dump to be written, the kernel's."""
    word_size: int
    page_size: int
    max_mapnr: Pfn
    uts: Utsname
    timestamp: tuple[int, int]
    """Seconds and microseconds."""
    nr_cpus: int
    phys_base: int
    """Signed."""
    dump_level: int
    notes: bytes
    vmcoreinfo: tuple[int, int]
    """Offset and size of the text inside `notes`; zeros when there is none."""
    eraseinfo: bytes
    first_paddr: int = 0
    page_offset: int | None = None
    text: tuple[int, int, int] | None = None
    """(vaddr, paddr, bytes) of the kernel image's mapping."""

    @property
    def abi(self) -> Abi:
        """Rules of the dump's records: natural alignment, with i386's 4 bytes for 64-bit fields."""
        return Abi(self.byteorder, self.word_size, 4 if self.machine == "i686" and self.word_size == 4 else 8)


@dataclass(frozen=True, slots=True)
class WritePlan:
    """A dump to be written."""

    image: DumpImage
    """The source, in kernel pages."""
    facts: HeaderFacts
    ram: Bits
    dump: Bits
    """Pages to be stored, and those that are lost in the source."""
    level: int
    codec_flag: int
    count: int
    """Members of `dump`."""
    eraser: Eraser | None = None
    copy_through: bool = True
    """Whether stored bytes may be copied without decoding."""
    stats: dict[str, int] = field(default_factory=dict)
    """Pages by class, for reports."""

    @property
    def shares_zero_pages(self) -> bool:
        """Whether zero pages have one common copy."""
        return bool(self.level & LEVEL_ZERO)

    def batches(self, first: Pfn = 0, stop: Pfn | None = None) -> Batches:
        """The batches of `[first, stop)`; `first` is a multiple of 64."""
        end = self.facts.max_mapnr if stop is None else stop
        return Batches(self.dump, first, end, self.batch_pages, BATCH_SPAN)

    @property
    def batch_pages(self) -> int:
        """Pages of a batch."""
        return max(BATCH_PAGES * 4096 // self.facts.page_size, 1)


def header_facts(
    image: DumpImage, kernel: Kernel, level: int, max_mapnr: Pfn, *, eraseinfo: bytes = b""
) -> HeaderFacts:
    """The facts of a dump of `kernel` made from `image`.

    Args:
        image: the source.
        kernel: what is known of its kernel.
        level: what this pass leaves out; earlier passes' levels are added.
        max_mapnr: one past the last pfn.
        eraseinfo: what this pass erases; earlier passes' is put before it.
    """
    meta = image.meta
    info = kernel.vmcoreinfo
    notes = image.notes()
    if meta.byteorder != kernel.byteorder:
        notes = build_core_notes(notes, meta.byteorder, kernel.byteorder, kernel.word_size, None, b"").data
    if info is not None and find_note(notes, kernel.byteorder, b"VMCOREINFO") is None:
        notes += bytes(-len(notes) & 3) + build_note(b"VMCOREINFO", 0, info.raw, kernel.byteorder)
    found = find_note(notes, kernel.byteorder, b"VMCOREINFO")
    uts = kernel.uts if kernel.uts.sysname else meta.uts
    if not uts.release and kernel.release:
        machine = _MACHINE_NAMES.get(kernel.machine, kernel.machine)
        uts = Utsname("Linux", release=kernel.release, machine=machine)
    cpus = sum(1 for note in parse_notes(notes, kernel.byteorder) if is_prstatus(note))
    phys_base = kernel.phys_base if kernel.phys_base is not None else meta.phys_base
    word_size = meta.word_size if meta.word_size == 8 else kernel.word_size
    return HeaderFacts(
        machine=kernel.machine,
        byteorder=kernel.byteorder,
        word_size=word_size,
        page_size=meta.block_size,
        max_mapnr=max_mapnr,
        uts=uts,
        timestamp=_timestamp(kernel.crash_time or 0.0, word_size),
        nr_cpus=cpus or meta.nr_cpus or 0,
        phys_base=phys_base or 0,
        dump_level=level | (meta.dump_level or 0),
        notes=notes,
        vmcoreinfo=(found.desc_offset, len(found.desc)) if found is not None else (0, 0),
        eraseinfo=image.eraseinfo() + eraseinfo,
        first_paddr=meta.first_paddr,
        page_offset=kernel.page_offset,
        text=kernel.text,
    )


def _timestamp(seconds: float, word_size: int) -> tuple[int, int]:
    """Seconds and microseconds for the header, whose words are signed; 0 where they cannot hold what is said."""
    whole = int(seconds)
    return (whole, min(round(seconds % 1 * 1e6), 999_999)) if 0 < whole < 1 << 8 * word_size - 1 else (0, 0)


def make_plan(
    image: DumpImage,
    facts: HeaderFacts,
    ram: Bits,
    dump: Bits,
    *,
    level: int,
    codec_flag: int,
    eraser: Eraser | None = None,
    stats: dict[str, int] | None = None,
) -> WritePlan:
    """The plan of a dump of the members of `dump`."""
    count = count_bits(dump)
    return WritePlan(image, facts, ram, dump, level, codec_flag, count, eraser, eraser is None, stats or {})
