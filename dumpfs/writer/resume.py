"""How far an earlier run came, read from what it left behind.

A kdump's descriptors are written after their data and in order, an ELF core's pages in order: what is there is a prefix
of what will be. A prefix is cut back to a whole batch, and everything behind it is written again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from dumpfs.errors import UsageError
from dumpfs.formats.kdump.pages import DESCRIPTOR_BYTES
from dumpfs.sources.local import FileSource
from dumpfs.units import Pfn
from dumpfs.writer.rearrange import find_mark, set_mark
from dumpfs.writer.sink_elf import ElfSink
from dumpfs.writer.sink_kdump import KdumpSink, descriptor_dtype, without_eraseinfo

_READ_BYTES = 24 << 16


class OtherDumpError(UsageError):
    """What is to be continued was begun from another source or with other options."""


class Recorder:
    """A `ByteSink` that compares what would be written with what a file has.

    Args:
        fd: the file.
        undo: by offset, how to take back what the end of a dump changes of what was written there first. A dump may
            have been killed when it was complete and had not its name yet.
    """

    concurrent = True
    waits = False

    def __init__(self, fd: int, undo: Mapping[int, Callable[[bytes], bytes]]) -> None:
        self._fd, self._undo = fd, undo
        self.same = True
        self.undone: list[tuple[int, bytes]] = []
        """What is to be written before going on."""
        self.short = False
        """Whether the file ends before all headers are in it."""

    def write_at(self, offset: int, chunks: list[bytes]) -> None:
        """Compare; a header of a complete dump with what it was at first."""
        data = b"".join(chunks)
        there = os.pread(self._fd, len(data), offset)
        if there != data and offset in self._undo and self._undo[offset](there) == data:
            self.undone.append((offset, data))
            there = data
        if len(there) < len(data):
            self.short = True
        self.same = self.same and there == data[: len(there)]

    def write_data(self, offset: int, chunks: list[bytes]) -> None:
        """Compare."""
        self.write_at(offset, chunks)

    def reserve(self, offset: int, size: int) -> None:
        """Look whether it was done."""
        self.short = self.short or os.fstat(self._fd).st_size < offset + size

    def sync(self) -> None:
        """Nothing is written."""

    def finish(self) -> None:
        """Nothing is written."""


def is_flagged(path: str) -> bool:
    """Whether a file is a dump that its writer marked incomplete."""
    source = FileSource(path)
    try:
        head = source.read_at(0, 512)
        return find_mark(head) is not None and set_mark(head) == head
    finally:
        source.close()


def resume_sink(sink: KdumpSink | ElfSink, fd: int, name: str) -> Pfn:
    """Set `sink` behind what is already in the file; returns the pfn to go on with.

    Raises:
        OtherDumpError: the file was begun from another source or with other options.
        OSError: as `ByteSink.write_at`.
    """
    out = sink.out
    undo: dict[int, Callable[[bytes], bytes]] = {0: set_mark}
    if isinstance(sink, KdumpSink):
        undo[sink.layout.page_size] = partial(_as_begun, sink, fd)
    recorder = Recorder(fd, undo)
    sink.out = recorder  # type: ignore[assignment]
    sink.begin()
    sink.out = out
    if not recorder.same:
        raise OtherDumpError(
            f"{name} was not begun from this source with these options",
            hint="resume with the same command line, or begin anew with -f",
        )
    for offset, data in recorder.undone:  # the mark first
        os.pwrite(fd, data, offset)
    if recorder.short:  # ended while the headers were written: there is no page yet
        sink.begin()
        return sink.first
    return _resume_kdump(sink, fd) if isinstance(sink, KdumpSink) else _resume_elf(sink, fd)


def _as_begun(sink: KdumpSink, fd: int, sub_header: bytes) -> bytes:
    """A sub header without the erase information that the end has added, if that is what this dump would have too."""
    begun, (offset, size) = without_eraseinfo(sink.layout.abi, sub_header)
    wanted = sink.plan.facts.eraseinfo
    there = size == len(wanted) and offset + size <= os.fstat(fd).st_size and os.pread(fd, size, offset) == wanted
    return begun if there else sub_header


def _resume_kdump(sink: KdumpSink, fd: int) -> Pfn:
    layout = sink.layout
    dtype = descriptor_dtype(layout.abi)
    total = sink.missing
    present = 0
    # The last descriptor that is there ends the prefix; lost pages have none, also amid the others.
    for first in range(0, total, _READ_BYTES // DESCRIPTOR_BYTES):
        count = min(_READ_BYTES // DESCRIPTOR_BYTES, total - first)
        raw = os.pread(fd, count * DESCRIPTOR_BYTES, layout.descriptor_offset + first * DESCRIPTOR_BYTES)
        rows = np.frombuffer(raw[: len(raw) // DESCRIPTOR_BYTES * DESCRIPTOR_BYTES], dtype=dtype)
        there = np.flatnonzero((rows["offset"] != 0) & (rows["size"] != 0))  # one that was torn has no size
        if len(there):
            present = first + int(there[-1]) + 1
    pfn, ranks = sink.first, 0
    for start, stop, members in sink.plan.batches(sink.first, sink.stop):
        if ranks + members > present:
            pfn = start
            break
        ranks += members
        pfn = stop
    else:
        pfn = sink.stop
    sink.go_on(ranks, _data_end(fd, layout.descriptor_offset, dtype, ranks))
    return pfn


def _data_end(fd: int, offset: int, dtype: np.dtype[np.void], count: int) -> int:
    """One past the last byte that the first `count` descriptors point at."""
    end = 0
    for first in range(0, count, _READ_BYTES // DESCRIPTOR_BYTES):
        step = min(_READ_BYTES // DESCRIPTOR_BYTES, count - first)
        raw = os.pread(fd, step * DESCRIPTOR_BYTES, offset + first * DESCRIPTOR_BYTES)
        rows = np.frombuffer(raw, dtype=dtype)
        end = max(end, int((rows["offset"] + rows["size"]).max(initial=0)))
    return end


def _resume_elf(sink: ElfSink, fd: int) -> Pfn:
    size = os.fstat(fd).st_size
    pfn = 0
    for start, stop, members in sink.plan.batches():
        if sink.end_of(start, stop) > size:
            return start
        sink.written += members
        pfn = stop
    return max(pfn, sink.stop)
