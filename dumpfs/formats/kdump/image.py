"""A kdump-compressed dump, of one file or a split set, as a `DumpImage`.

A set's parts all carry both whole bitmaps; each has descriptors only for its own pfns, numbered from the part's first
one. A part that is missing loses only its pages. An incomplete dump is found out by its flag or by where its
data ends, never assumed: the pages that are there are served.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from dumpfs.errors import SourceError
from dumpfs.formats.base import Blob, DumpMeta, PageInfo, PlainPages
from dumpfs.formats.kdump.header import parse_header
from dumpfs.formats.kdump.pages import PageTable
from dumpfs.formats.kdump.parts import Part, check_set, open_bitmap, open_part, written_windows
from dumpfs.formats.plain import open_pages
from dumpfs.notes import find_note
from dumpfs.ranges import MaskedSet, PfnSet, RangeSet
from dumpfs.sources.base import ByteSource
from dumpfs.sources.local import FileSource
from dumpfs.structs import Abi, Buffer
from dumpfs.units import PageState, Pfn, zeros

if TYPE_CHECKING:
    from dumpfs.native.loops import Pages

_MAX_NOTE_BYTES = 64 << 20
_MACHINE_ALIASES = {"Unknown": "", "S390X": "s390x", "i386": "i686", "i586": "i686", "armv7l": "arm", "armv6l": "arm"}
"""Names QEMU and 32-bit kernels use, to those of `uname -m` families."""

_EXCLUDED = bytes((PageState.EXCLUDED,))
_ABSENT = bytes((PageState.ABSENT,))
_LOST = bytes((PageState.LOST,))


class KdumpImage:
    """Facts about the pages of a kdump-compressed dump. Any thread may read."""

    def __init__(self, sources: Sequence[ByteSource]) -> None:
        """Open a dump whose file, or whose parts in any order, are `sources`.

        Raises:
            CorruptDumpError: a header is impossible, or the files are not parts of one set.
            TruncatedDumpError: a file ends inside its headers.
        """
        headers = sorted(
            ((parse_header(source), source) for source in sources), key=lambda p: (p[0].start_pfn, p[0].end_pfn)
        )
        self._sources = [source for _, source in headers]
        check_set(headers)
        header = headers[0][0]
        self._header = header
        # Every part has both bitmaps, but for one that was cut before their end. Of a dump that has only such, no page
        # is there and which were left out on purpose is not known: all of RAM is lost then, nothing excluded.
        whole_headers = [(h, s) for h, s in headers if s.size >= h.descriptor_offset]
        bits_header, bits_source = (whole_headers or headers)[0]
        self._ram_bits = open_bitmap(bits_source, bits_header, 0)
        two = header.has_two_bitmaps and bool(whole_headers)
        self._bits = open_bitmap(bits_source, bits_header, 1) if two else self._ram_bits
        self.ram: PfnSet = self._ram_bits
        self._notices = [notice for h, _ in headers for notice in h.notices]
        self._parts = [open_part(h, s, self._bits) for h, s in headers]
        self._starts = [part.start for part in self._parts]
        self._whole = len(self._parts) == 1 and not header.is_split
        windows, reasons = written_windows(self._parts, self._bits)
        whole = windows == RangeSet([(0, header.max_mapnr)])
        self.stored: PfnSet = self._bits if whole else MaskedSet(self._bits, windows)
        self.lost: PfnSet = MaskedSet(self._bits, RangeSet(windows.gaps(header.max_mapnr)))
        self.partial: Mapping[Pfn, tuple[int, int]] = {}
        self.meta = self._meta(reasons)
        self.notices = tuple(self._notices)
        self._native: Pages | Literal[False] | None = None  # not known yet

    @classmethod
    def open(cls, sources: Sequence[ByteSource]) -> KdumpImage:
        """See the constructor."""
        return cls(sources)

    def plain_pages(self) -> PlainPages | None:
        """See `PlainImage.plain_pages`."""
        source, header = self._sources[0], self._header
        table = self._parts[0].table
        whole = self._whole and self.meta.complete and self.stored is self._bits is not self._ram_bits
        if not whole or not isinstance(source, FileSource) or self.meta.byteorder != "little":
            return None
        bitmap = header.bitmap_offset + header.bitmap_bytes
        return PlainPages(
            source.fileno(), bitmap, self._bits.stop, self._bits.ranks(), header.descriptor_offset, table.count
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    def _part_of(self, pfn: Pfn) -> Part | None:
        if self._whole:
            return self._parts[0]
        i = bisect_right(self._starts, pfn) - 1
        while i >= 0:  # empty parts may begin at the same pfn as the one that has pages
            part = self._parts[i]
            if part.start <= pfn < part.stop:
                return part
            if part.start < part.stop:
                break
            i -= 1
        return None

    def _unstored(self, pfn: Pfn) -> tuple[PageState, str]:
        if pfn in self._bits:
            return PageState.LOST, "its part of the split set is missing"
        if pfn in self._ram_bits:
            return PageState.EXCLUDED, ""
        return PageState.ABSENT, ""

    def state(self, pfn: Pfn) -> PageState:
        """See `DumpImage.state`."""
        return self.info(pfn).state

    def info(self, pfn: Pfn) -> PageInfo:
        """See `DumpImage.info`."""
        try:
            rank = self._bits.find(pfn)
            part = self._part_of(pfn) if rank >= 0 else None
            if part is None:
                state, detail = self._unstored(pfn)
                return PageInfo(state, "", 0, 0, 0, "", detail)
        except SourceError as exc:
            return PageInfo(PageState.CORRUPT, "", 0, 0, 0, exc.path, exc.message)
        return part.table.info(rank - part.base)

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        try:
            rank = self._bits.find(pfn)
            if rank >= 0 and self._whole:
                return self._parts[0].table.read_one(rank)
            part = self._part_of(pfn) if rank >= 0 else None
            if part is None:
                return b"", *self._unstored(pfn)
        except SourceError as exc:  # the bitmap itself cannot be read
            return b"", PageState.CORRUPT, exc.message
        return part.table.read_one(rank - part.base)

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        block_size = self.meta.block_size
        stop = first + count
        try:
            runs = list(self._bits.runs(first, stop))
            if self._whole and runs == [(first, stop)]:
                data = self._read_natively(first, count)
                if data is not None:
                    return data, bytes(count)
                pages, states = self._parts[0].table.read_many(self._bits.rank(first), count)
                return b"".join(pages), bytes(states)
            states = bytearray(_ABSENT * count)
            for a, b in self._ram_bits.runs(first, stop):
                states[a - first : b - first] = _EXCLUDED * (b - a)
        except SourceError:
            return bytes(block_size * count), bytes((PageState.CORRUPT,)) * count
        pieces: list[Buffer] = []
        position = first
        for low, high in self._cut_at_parts(runs):
            if low[0] > position:
                pieces.append(zeros(block_size * (low[0] - position)))
            position = high
            pieces.append(self._read_stretch(low, high, states, first))
        if stop > position:
            pieces.append(zeros(block_size * (stop - position)))
        return b"".join(pieces), bytes(states)

    def _read_natively(self, first: Pfn, count: int) -> bytes | None:
        """Stored pages by the loop in C; None where that is not to be had, or a page is not in order."""
        if self._native is None:
            self._native = open_pages(self.plain_pages(), self.meta.block_size) or False
        if not self._native:
            return None
        return self._native.read(first * self.meta.block_size, count * self.meta.block_size)

    def _cut_at_parts(self, runs: Sequence[tuple[Pfn, Pfn]]) -> Iterator[tuple[list[Pfn], Pfn]]:
        """Runs gathered into stretches whose pages lie in one part: (flat run bounds, one past the last pfn)."""
        stretch: list[Pfn] = []
        owner: Part | None = None
        for low, high in runs:
            while low < high:
                part = self._part_of(low)
                stop = high if self._whole else min(high, part.stop if part else self._next_start(low))
                if stretch and part is not owner:
                    yield stretch, stretch[-1]
                    stretch = []
                owner = part
                stretch += (low, stop)
                low = stop
        if stretch:
            yield stretch, stretch[-1]

    def _next_start(self, pfn: Pfn) -> Pfn:
        i = bisect_right(self._starts, pfn)
        return self._starts[i] if i < len(self._starts) else self._header.max_mapnr

    def _read_stretch(self, bounds: list[Pfn], stop: Pfn, states: bytearray, first: Pfn) -> bytes:
        """Bytes from `bounds[0]` to `stop`; the pages between are those of the bounds' runs, zeros elsewhere."""
        block_size = self.meta.block_size
        part = self._part_of(bounds[0])
        runs = list(zip(bounds[::2], bounds[1::2], strict=True))
        if part is None:
            for low, high in runs:
                states[low - first : high - first] = _LOST * (high - low)
            return zeros(block_size * (stop - bounds[0]))
        index = self._bits.rank(bounds[0]) - part.base
        pages, page_states = part.table.read_many(index, sum(high - low for low, high in runs))
        pieces: list[Buffer] = []
        position, used = bounds[0], 0
        for low, high in runs:
            if low > position:
                pieces.append(zeros(block_size * (low - position)))
            n = high - low
            pieces += pages[used : used + n]
            states[low - first : high - first] = page_states[used : used + n]
            position, used = high, used + n
        return b"".join(pieces)

    def stored_blobs(self, first: Pfn, count: int) -> list[Blob]:
        """See `DumpImage.stored_blobs`."""
        stop = first + count
        blobs = [Blob(PageState.ABSENT, 0, b"")] * count
        for a, b in self._ram_bits.runs(first, stop):
            blobs[a - first : b - first] = [Blob(PageState.EXCLUDED, 0, b"")] * (b - a)
        for bounds, _ in self._cut_at_parts(list(self._bits.runs(first, stop))):
            part = self._part_of(bounds[0])
            runs = list(zip(bounds[::2], bounds[1::2], strict=True))
            total = sum(b - a for a, b in runs)
            if part is None:
                found = [Blob(PageState.LOST, 0, b"")] * total
            else:
                found = part.table.blobs(self._bits.rank(bounds[0]) - part.base, total)
            used = 0
            for a, b in runs:
                blobs[a - first : b - first] = found[used : used + b - a]
                used += b - a
        return blobs

    @property
    def abi(self) -> Abi:
        """Byte order and word size of the headers and descriptors."""
        return self._header.abi

    def descriptor_stretches(self, first: Pfn, stop: Pfn) -> Iterator[tuple[Pfn, Pfn, PageTable | None, int]]:
        """The dumpable pages of `[first, stop)`, ascending, for copying in bulk.

        Yields (low, high, table, index): those of `[low, high)` have consecutive descriptors in `table`, the first one
        at `index`; None where their part of the split set is missing.
        """
        for bounds, high in self._cut_at_parts(list(self._bits.runs(first, stop))):
            part = self._part_of(bounds[0])
            if part is None:
                yield bounds[0], high, None, 0
            else:
                yield bounds[0], high, part.table, self._bits.rank(bounds[0]) - part.base

    def leads_into_file(self, first: Pfn, stop: Pfn) -> bool:
        """Whether the descriptor of any page of `[first, stop)` leads to bytes that its file has."""
        for low, high, table, index in self.descriptor_stretches(first, stop):
            if table is None:
                continue
            end = table.source.size
            try:
                rows = table.unpack(table.raw_descriptors(index, self._bits.rank(high) - self._bits.rank(low)))
            except SourceError:
                return True  # a bad sector among them: each is to be looked at
            if any(size and offset and offset + size <= end for offset, size, _, _ in rows):
                return True
        return False

    # -- header facts ----------------------------------------------------------------------------------------------

    def _area(self, name: str) -> bytes:
        """Bytes of the area that the sub header calls `name`, from the first part that has them."""
        for part in self._parts:
            header, source = part.header, part.table.source
            offset, size = header.sub.get(f"offset_{name}", 0), header.sub.get(f"size_{name}", 0)
            if offset and 0 < size <= _MAX_NOTE_BYTES and offset + size <= source.size:
                return source.read_at(offset, size)
        return b""

    def notes(self) -> bytes:
        """See `DumpImage.notes`."""
        return self._area("note")

    def vmcoreinfo_text(self) -> bytes | None:
        """See `DumpImage.vmcoreinfo_text`."""
        text = self._area("vmcoreinfo")
        if text:
            return text
        note = find_note(self.notes(), self.meta.byteorder, b"VMCOREINFO")
        return note.desc if note else None

    def eraseinfo(self) -> bytes:
        """See `DumpImage.eraseinfo`."""
        return self._area("eraseinfo")

    def changes(self) -> list[str]:
        """See `DumpImage.changes`."""
        return [f"{source.name}: {change}" for source in self._sources if (change := source.change())]

    def close(self) -> None:
        """See `DumpImage.close`."""
        self._native = False  # it has the descriptor's number, which another file may get
        for source in self._sources:
            source.close()

    def _meta(self, reasons: list[str]) -> DumpMeta:
        header = self._header
        for part in self._parts:
            for name in ("note", "vmcoreinfo", "eraseinfo"):
                self._check_area(part, name)
            flat = part.table.source.incomplete_reason
            if flat:
                reasons.append(flat)
        machine = _MACHINE_ALIASES.get(header.uts.machine, header.uts.machine)
        if machine == "ppc64" and header.abi.byteorder == "little":
            machine = "ppc64le"
        first_paddr = header.phys_base if self._counts_from_phys_base(machine) else 0
        # QEMU leaves all of utsname but the machine empty, and the timestamp zero.
        from_qemu = not header.uts.sysname and not header.main["tv_sec"] and header.version >= 5
        split = f"split set of {len(self._parts)}" if header.is_split else ""
        return DumpMeta(
            format="kdump",
            block_size=header.block_size,
            max_pfn=header.max_mapnr,
            byteorder=header.abi.byteorder,
            word_size=header.abi.long_size,
            first_paddr=first_paddr,
            machine=machine,
            version=header.version,
            variant=", ".join(filter(None, (self._flattened(), split, "QEMU" if from_qemu else ""))),
            compression=header.compression,
            dump_level=header.sub.get("dump_level"),
            complete=not reasons,
            incomplete_reason="; ".join(reasons),
            timestamp=(header.main["tv_sec"] + header.main["tv_usec"] / 1e6) if header.main["tv_sec"] else None,
            nr_cpus=header.main["nr_cpus"] if header.main["nr_cpus"] > 0 else None,
            phys_base=header.phys_base,
            uts=header.uts,
            header={"main": dict(header.main), "sub": dict(header.sub), "utsname": asdict(header.uts)},
        )

    def _flattened(self) -> str:
        return "flattened" if any(s.is_flattened for s in self._sources) else ""

    def _counts_from_phys_base(self, machine: str) -> bool:
        """Whether pfn 0 is the first page of RAM instead of physical 0.

        makedumpfile's 32-bit ARM dumps count so; QEMU's, with the same phys_base, count from 0. QEMU's first page
        is then RAM's first, at phys_base, so a RAM map that has pages below phys_base / block_size tells them apart.
        """
        header = self._header
        if machine != "arm" and not (header.abi.long_size == 4 and not machine):
            return False
        base = header.phys_base
        if base <= 0 or base % header.block_size:
            return False
        return next(self._ram_bits.runs(0, base // header.block_size), None) is not None

    def _check_area(self, part: Part, name: str) -> None:
        offset, size = part.header.sub.get(f"offset_{name}", 0), part.header.sub.get(f"size_{name}", 0)
        if size and (not offset or offset + size > part.table.source.size or size > _MAX_NOTE_BYTES):
            self._notices.append(
                f"{part.table.source.name}: the header places {name} of {size} bytes at {offset:#x}, "
                "which is not inside the file; it is ignored"
            )
