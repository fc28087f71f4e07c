"""A flattened dump, read in place as the file it stands for.

Flattened files are what `makedumpfile -F` and QEMU write: "put these bytes at that offset", over and over, so that a
dump may go through a pipe. They may wrap a kdump or an ELF.

    0      "makedumpfile", type 1, version 1 (big-endian on every machine), zeros up to 4096
    4096   record: offset i64, size i64, then `size` bytes; and so on, in any order
    end    offset = size = -1

Records may overlap, and the later one wins (makedumpfile rewrites the sub header at the end); bytes that none covers
are zero. Sources of the layout: makedumpfile's common.h; of the habits: real files of both producers. QEMU goes back
to the descriptors about once in twelve records.

The index keeps one number per record. Records follow one another in the file, and nearly always in the dump too; such
a streak needs, besides, only its beginning, because every record puts 16 bytes between payloads.

Immutable once made; any thread may read.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import le

from dumpfs.errors import CorruptDumpError, SourceError, TruncatedDumpError, UnsupportedFeatureError
from dumpfs.ranges import overlay
from dumpfs.sources.base import ByteSource
from dumpfs.structs import Buffer
from dumpfs.units import zeros

SIGNATURE = b"makedumpfile\0\0\0\0"
_FILE_HEADER = struct.Struct(">16sqq")
_TYPE, _VERSION = 1, 1
_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")
_RECORD_SIZE = _RECORD.size
_END_MARK = -1

_MAX_OFFSET = 1 << 60
"""No dump reaches that far; keeps every sum below within 64 bits."""
_MAX_SPARSENESS = 1024
_SPARSE_ALLOWANCE = 1 << 30
_SMALL_WINDOW = 64
_LARGE_WINDOW = 1 << 20
_SEEK_PAYS = 4096
"""Bytes per record above which reading the 16-byte headers one by one is cheaper than reading everything."""
_MANY = 1 << 16
_MIN_RECORD_BYTES = 32
_MIN_STREAK_BYTES = 256
"""Bytes of the file for each record and each streak, on average, below which a stream that has many is refused: its
index would be as large as the file and take minutes to make. Writers put whole buffers into a record, 13 KiB and more
in the mean.
"""
_GATHER = 1 << 16
"""Records taken by one read of the file at most: 1 MiB of headers beside the payload."""


def probe(head: Buffer) -> bool:
    """Whether a file that begins with `head` (at least 16 bytes) is flattened."""
    return bytes(head[: len(SIGNATURE)]) == SIGNATURE


class FlattenedSource:
    """The rearranged view of a flattened stream, without making a copy; takes over `inner`.

    A stream without its end mark, cut inside a record, or with an impossible record is served as far as it goes:
    `complete` is False then, and `incomplete_reason` says why. Missing bytes of a cut record are as if it had never
    announced them.

    Raises:
        UnsupportedFeatureError: type or version is not 1.
        TruncatedDumpError: it ends before any record.
        CorruptDumpError: its very first record is impossible, or there is none; or nearly all of it is gaps, or it
            falls into a great many tiny records.
    """

    is_flattened = True

    def __init__(self, inner: ByteSource) -> None:
        self.inner = inner
        self.complete = True
        """False when the stream did not end as it should."""
        self.incomplete_reason = ""
        """Why `complete` is False, in one clause."""
        self._starts = array("Q")  # per record: its offset in the dump
        self._heads = array("Q")  # per streak: offset in the dump
        self._stops = array("Q")  # per streak: one past its end in the dump
        self._records = array("Q")  # per streak: number of its first record; one more entry ends the last
        self._payloads = array("Q")  # per streak: offset in the file of its first payload
        self._check_header()
        self._scan()
        self._piece_firsts, self._piece_stops, self._piece_streaks = self._arrange()
        self._size = self._piece_stops[-1]
        self._check_sparseness()

    def _check_header(self) -> None:
        head = self.inner.read_at(0, _FILE_HEADER.size)
        if not probe(head):
            raise CorruptDumpError(self.inner.name, "no flattened header", offset=0)
        if len(head) < _FILE_HEADER.size:
            raise self._cut_in_header()
        _, kind, version = _FILE_HEADER.unpack(head)
        if (kind, version) != (_TYPE, _VERSION):
            raise UnsupportedFeatureError(
                self.inner.name,
                f"flattened file of type {kind}, version {version}; only type 1, version 1 is known",
                offset=len(SIGNATURE),
            )
        if self.inner.size <= _HEADER_SIZE:
            raise self._cut_in_header()

    def _cut_in_header(self) -> TruncatedDumpError:
        return TruncatedDumpError(
            self.inner.name,
            f"the flattened stream ends in its header ({self.inner.size} bytes)",
            hint="the transfer was cut short; there is nothing to read",
        )

    # -- the index -------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """One pass over the record headers."""
        limit = self.inner.size
        unpack, add = _RECORD.unpack_from, self._starts.append
        position = _HEADER_SIZE  # of the next record header, in the file
        window, base, chunk = b"", position, 4096
        seen = 0  # records found in this window
        end = -1  # where the current streak ends, in the dump
        while True:
            local = position - base
            if local + _RECORD_SIZE > len(window):
                if seen:
                    chunk = _SMALL_WINDOW if position - base > seen * _SEEK_PAYS else min(chunk * 8, _LARGE_WINDOW)
                window, base, local, seen = self._look(position, chunk), position, 0, 0
                if len(window) < _RECORD_SIZE:
                    if not self.incomplete_reason:
                        self._stop_early(position, "has no end mark")
                    break
            self._check_crowd(position)
            last = len(window) - _RECORD_SIZE
            while local <= last:
                offset, size = unpack(window, local)
                if size <= 0 or offset < 0 or offset > _MAX_OFFSET:
                    break
                if offset != end:
                    self._begin_streak(offset, base + local + _RECORD_SIZE, end)
                add(offset)
                end = offset + size
                local += _RECORD_SIZE + size
                seen += 1
            else:
                position = base + local
                if position <= limit:
                    continue
                end -= position - limit
                self._stop_early(limit, "is cut inside a record")
                break
            if (offset, size) != (_END_MARK, _END_MARK):
                self._refuse_record(offset, size, base + local)
            break
        if end >= 0:
            self._stops.append(end)
        self._records.append(len(self._starts))
        self._drop_empty_tail()

    def _look(self, position: int, size: int) -> bytes:
        """Bytes from a record header on, `size` if all can be read, else the header alone; b'' if not even that.

        A bad sector in a payload costs the pages in it. One in a header hides where the next record begins, so the
        stream ends there for us.
        """
        try:
            return self.inner.read_at(position, size)
        except SourceError:
            pass
        try:
            return self.inner.read_at(position, _RECORD_SIZE)
        except SourceError as exc:
            if not self._starts:
                raise  # there is nothing to serve
            self.complete = False
            self.incomplete_reason = (
                f"record {len(self._starts)} of the flattened stream cannot be read ({exc.message}); "
                "what follows it is not read either"
            )
            return b""

    def _check_crowd(self, position: int) -> None:
        """Refuse a stream that is nearly all record headers, before its index fills the memory."""
        records, streaks = len(self._starts), len(self._heads)
        if records > max(_MANY, position // _MIN_RECORD_BYTES) or streaks > max(_MANY, position // _MIN_STREAK_BYTES):
            problem = f"the flattened stream has {records} records, in {streaks} places, in its first {position} bytes"
            raise CorruptDumpError(self.inner.name, problem)

    def _begin_streak(self, offset: int, payload: int, end: int) -> None:
        if end >= 0:
            self._stops.append(end)
        self._heads.append(offset)
        self._records.append(len(self._starts))
        self._payloads.append(payload)

    def _stop_early(self, position: int, what: str) -> None:
        self.complete = False
        self.incomplete_reason = (
            f"the flattened stream {what}: it ends at {position:#x} after {len(self._starts)} records"
        )

    def _refuse_record(self, offset: int, size: int, position: int) -> None:
        number = len(self._starts)
        problem = f"record {number} of the flattened stream is impossible (offset {offset:#x}, size {size:#x})"
        if not number:
            raise CorruptDumpError(self.inner.name, problem, offset=position)
        self.complete = False
        self.incomplete_reason = f"{problem} at {position:#x}; what follows it is not read"

    def _drop_empty_tail(self) -> None:
        """Forget a last record of which the file has the header only."""
        if self._stops and self._stops[-1] <= self._starts[-1]:
            self._starts.pop()
            self._records[-1] = len(self._starts)
            if self._records[-2] == len(self._starts):
                for column in (self._heads, self._stops, self._payloads, self._records):
                    column.pop()
        if not self._starts:
            raise CorruptDumpError(
                self.inner.name,
                "the flattened stream holds no record",
                offset=_HEADER_SIZE,
                hint="the transfer was cut short; there is nothing to read",
            )

    def _arrange(self) -> tuple[array[int], array[int], array[int]]:
        """Disjoint ascending pieces of the dump: their first and stop offsets, and the streak that shows there."""
        heads, stops = self._heads, self._stops
        order = sorted(range(len(heads)), key=heads.__getitem__)
        firsts = array("Q", map(heads.__getitem__, order))
        ends = array("Q", map(stops.__getitem__, order))
        if all(map(le, ends, islice(firsts, 1, None))):
            return firsts, ends, array("Q", order)
        firsts, ends, streaks = array("Q"), array("Q"), array("Q")
        for first, stop, streak in overlay(heads, stops):
            firsts.append(first)
            ends.append(stop)
            streaks.append(streak)
        return firsts, ends, streaks

    def _check_sparseness(self) -> None:
        """Refuse a stream that pretends to be huge, before a reader walks through zeros that nobody wrote.

        The emptiest honest one is an empty part of a split set: 24 bytes left open for every page of the machine,
        beside two bits of bitmap for each.
        """
        covered = sum(self._piece_stops) - sum(self._piece_firsts)
        if self._size > covered * _MAX_SPARSENESS + _SPARSE_ALLOWANCE:
            raise CorruptDumpError(
                self.inner.name,
                f"the flattened stream holds {covered} bytes, but places some of them at {self._size:#x}",
            )

    # -- ByteSource ------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What messages call it: the file's own name."""
        return self.inner.name

    @property
    def size(self) -> int:
        """Bytes of the rearranged dump: one past the highest byte that a record gives."""
        return self._size

    @property
    def record_count(self) -> int:
        """Number of records."""
        return len(self._starts)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read_at`."""
        whole = self._whole(offset, size)
        if whole >= 0:
            return self.inner.read_at(whole, size)
        parts = list(self._parts(offset, size))
        if len(parts) == 1:
            return bytes(parts[0])  # no copy when it is bytes already
        return b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `ByteSource.read_into`."""
        whole = self._whole(offset, len(buffer))
        if whole >= 0:
            return self.inner.read_into(whole, buffer)
        done = 0
        for part in self._parts(offset, len(buffer)):
            buffer[done : done + len(part)] = part
            done += len(part)
        return done

    def _whole(self, offset: int, size: int) -> int:
        """Where in the file those bytes lie in one piece, or -1."""
        piece = bisect_right(self._piece_firsts, offset) - 1
        if piece < 0 or offset + size > self._piece_stops[piece]:
            return -1
        streak = self._piece_streaks[piece]
        first, stop = self._records[streak], self._records[streak + 1]
        record = bisect_right(self._starts, offset, first, stop) - 1
        if record + 1 < stop and self._starts[record + 1] < offset + size:
            return -1
        return self._payloads[streak] + offset - self._heads[streak] + (record - first) * _RECORD_SIZE

    def _parts(self, offset: int, size: int) -> Iterator[Buffer]:
        """Buffers that make up `[offset, offset + size)` in order; ends early where the file does."""
        stop = min(offset + size, self._size)
        if offset < 0 or offset >= stop:
            return
        firsts, stops = self._piece_firsts, self._piece_stops
        piece = max(bisect_right(firsts, offset) - 1, 0)
        while offset < stop:
            if offset >= stops[piece]:
                piece += 1
                continue
            if offset < firsts[piece]:  # no record says what is here
                gap_stop = min(firsts[piece], stop)
                yield zeros(gap_stop - offset)
                offset = gap_stop
                continue
            piece_stop = min(stops[piece], stop)
            for part in self._streak_parts(self._piece_streaks[piece], offset, piece_stop):
                yield part
                offset += len(part)
            if offset < piece_stop:  # the file was cut short after it was opened
                return

    def _streak_parts(self, streak: int, offset: int, stop: int) -> Iterator[Buffer]:
        """Payload of `[offset, stop)`, inside one streak: one read of the file, less the headers in between."""
        starts, read = self._starts, self.inner.read_at
        first, beyond = self._records[streak], self._records[streak + 1]
        record = bisect_right(starts, offset, first, beyond) - 1
        bias = self._payloads[streak] - self._heads[streak] - first * _RECORD_SIZE
        while offset < stop:
            after = min(bisect_left(starts, stop, record + 1, beyond), record + _GATHER)  # first record not needed
            upto = stop if after == beyond else min(stop, starts[after])
            position = bias + offset + record * _RECORD_SIZE
            span = upto - offset + (after - 1 - record) * _RECORD_SIZE
            data = read(position, span)
            if after - record == 1:
                yield data
            else:
                view = memoryview(data)
                local = 0
                for number in range(record + 1, after):
                    size = starts[number] - offset
                    yield view[local : local + size]
                    local += size + _RECORD_SIZE
                    offset += size
                yield view[local:]
            if len(data) < span:
                return
            offset = upto
            record = after

    def next_data(self, offset: int) -> int:
        """See `ByteSource.next_data`; gaps are not looked for: a stream that is nearly all gap is refused."""
        return offset

    def next_hole(self, offset: int) -> int:
        """See `ByteSource.next_hole`."""
        return self.size

    def change(self) -> str | None:
        """See `ByteSource.change`."""
        return self.inner.change()

    def close(self) -> None:
        """Close the file."""
        self.inner.close()
