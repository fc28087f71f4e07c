"""Finding the zero pages before anything is written: an ELF core leaves them out, and its headers come first."""

from __future__ import annotations

from collections import deque

import numpy as np

from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Bits, window
from dumpfs.writer.bytesink import ByteSink, NullSink
from dumpfs.writer.encode import KIND_ZERO, Encoded, Encoder
from dumpfs.writer.plan import WritePlan


class ZeroFinder:
    """Encodes batches to what they are, without their bytes.

    Args:
        plan: a plan that shares zero pages and does not compress.
    """

    def __init__(self, plan: WritePlan) -> None:
        self._encoder = Encoder(plan)

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """See `Encoder.encode`; without content."""
        found = self._encoder.encode(first, stop)
        return Encoded(np.zeros_like(found.sizes), found.flags, found.kinds, [])


class ZeroCollector:
    """Takes the zero pages of each batch out of a bitmap.

    Args:
        dump: the bitmap the batches are of; left as it is.
    """

    ordered = False

    def __init__(self, dump: Bits) -> None:
        self.out: ByteSink = NullSink()
        self._dump = dump
        self.without_zero: Bits = dump.copy()
        self.zero = 0
        """Zero pages found."""
        self._pending: deque[tuple[Pfn, Pfn]] = deque()

    def place(self, first: Pfn, stop: Pfn, encoded: Encoded) -> list[tuple[int, int, int]]:
        """Remember the next batch."""
        self._pending.append((first, stop))
        return []

    def commit(self, encoded: Encoded, pieces: list[tuple[int, int, int]]) -> None:
        """Take out the zero pages of the next batch."""
        first, stop = self._pending.popleft()
        zero = encoded.kinds == KIND_ZERO
        if not zero.any():
            return
        self.zero += int(zero.sum())
        flags = window(self._dump, first, stop).copy()
        flags[np.flatnonzero(flags)[zero]] = False
        packed = np.packbits(flags, bitorder="little")
        self.without_zero[first // 8 : first // 8 + len(packed)] = packed

    def flush(self) -> None:
        """Nothing is written."""
