"""Using what room is left on a full disk: batches are megabytes, and on a small crash disk every page counts."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable

from dumpfs.formats.kdump.pages import DESCRIPTOR_BYTES
from dumpfs.units import Pfn
from dumpfs.writer.bytesink import PlainSink
from dumpfs.writer.copythrough import BatchEncoder
from dumpfs.writer.encode import Encoded
from dumpfs.writer.plan import WritePlan
from dumpfs.writer.sink_kdump import KdumpSink

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""Flags of fallocate(2)."""
_ROUNDS = 6
_STEPS = (64, 8)
"""Pages written at once, and when these do not fit."""


def fill_up(plan: WritePlan, sink: KdumpSink, encoder: BatchEncoder, halt: Callable[[], str]) -> None:
    """Write as many pages of the batch that did not fit as there is room for, in order; the rest stays missing.

    Args:
        plan: the dump.
        sink: ended by want of room; its descriptors have their room already, and nobody else writes to it any more.
        encoder: of the plan.
        halt: asked before each step; the reason to stop, or ''.
    """
    out = sink.out
    if not isinstance(out, PlainSink) or not stat.S_ISREG(os.fstat(out.fd).st_mode):
        return
    out.uncached = None
    try:
        sink.flush()
        sink.take_back()
        os.ftruncate(out.fd, sink.committed_end)  # later batches may have been written: of no use, and in the way
        first, stop = _not_written(plan, sink)
        for _ in range(_ROUNDS):
            for step in _STEPS:
                first = _fill(sink, encoder, first, stop, step, halt)
            sink.flush()
            if first >= stop or halt() or not _give_back(plan, sink, out.fd):
                break
        if first < stop and not halt():
            _fill_singly(sink, encoder.encode(first, min(first + _STEPS[-1], stop)))
            sink.flush()
    except OSError:
        return  # it stays as it was: what has a descriptor has its data


def _fill_singly(sink: KdumpSink, encoded: Encoded) -> None:
    """Write as many of the pages of the last step as fit; nothing may come after them, for they end anywhere."""
    data = memoryview(b"".join(encoded.chunks))
    for count in range(len(encoded.sizes) - 1, 0, -1):
        size = int(encoded.sizes[:count].sum())
        part = Encoded(encoded.sizes[:count], encoded.flags[:count], encoded.kinds[:count], [data[:size]])
        pieces = sink.place(0, 0, part)
        try:
            if size:
                sink.out.write_data(pieces[0][0], part.chunks)
        except OSError:
            sink.take_back()
            continue
        sink.commit(part, pieces)
        return


def _give_back(plan: WritePlan, sink: KdumpSink, fd: int) -> bool:
    """Give back the room of descriptors that will not be needed: there is no more room for as many pages.

    Returns whether there was any to give back.
    """
    layout, written = sink.layout, sink.written
    if not written:
        return False
    each = (sink.committed_end - layout.data_offset) // written + DESCRIPTOR_BYTES
    unused = DESCRIPTOR_BYTES * (plan.count - written)
    needed = written + unused // each + _STEPS[0]
    block = os.fstat(fd).st_blksize
    start = -(-(layout.descriptor_offset + DESCRIPTOR_BYTES * needed) // block) * block
    stop = layout.data_offset // block * block
    return start < stop and punch_hole(fd, start, stop - start)


def punch_hole(fd: int, offset: int, size: int) -> bool:
    """Free a range of a file, which reads as zeros then (fallocate(2)); False where that is not to be had."""
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size) == 0)


def _not_written(plan: WritePlan, sink: KdumpSink) -> tuple[Pfn, Pfn]:
    """The pfns from the first page on that is not in the file; whole batches are."""
    left = sink.written
    for first, stop, members in plan.batches(sink.first, sink.stop):
        if left < members:
            return first, max(stop, sink.stop)
        left -= members
    return sink.stop, sink.stop


def _fill(
    sink: KdumpSink, encoder: BatchEncoder, first: Pfn, stop: Pfn, step: int, halt: Callable[[], str]
) -> Pfn:
    """Write pages by steps until one does not fit; returns the pfn that it begins with."""
    while first < stop and not halt():
        high = min(first + step, stop)
        encoded = encoder.encode(first, high)
        pieces = sink.place(first, high, encoded)
        try:
            if encoded.nbytes:
                sink.out.write_data(pieces[0][0], encoded.chunks)
        except OSError:
            sink.take_back()
            return first
        sink.commit(encoded, pieces)
        first = high
    return first
