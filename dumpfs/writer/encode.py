"""Pages of one batch in the form in which they are stored: what each worker process does.

Done by the loop in C where that is to be had; else, per page, only the codec's call and a slice are Python, and zero
test, sizes and flags are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dumpfs.codecs.packers import packer
from dumpfs.native import AVAILABLE
from dumpfs.structs import Buffer
from dumpfs.units import PageState, Pfn
from dumpfs.writer.bitmaps import Flags, runs_of, window
from dumpfs.writer.plan import WritePlan

KIND_DATA, KIND_ZERO, KIND_LOST = 0, 1, 2
"""A page with bytes of its own; one that shares the zero page; one whose content the source has lost."""

_JOIN_GAP = 8
"""Pages that are not wanted, between two runs that are, read along: a call costs as much as reading some pages."""

NativeEncode = Callable[[int, Buffer, int, Buffer, int], tuple[memoryview, bytes, bytes]]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]


@dataclass(slots=True)
class Encoded:
    """The stored form of a batch's pages, in pfn order."""

    sizes: U32
    """Stored bytes; 0 unless KIND_DATA."""
    flags: U32
    """Compression flag."""
    kinds: U8
    chunks: list[Buffer]
    """The stored bytes, to be written one behind the other."""

    @property
    def nbytes(self) -> int:
        """Bytes of `chunks`."""
        return int(self.sizes.sum(dtype=np.int64))


def join(parts: list[Encoded]) -> Encoded:
    """Batches that follow each other, as one."""
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.flags for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        [chunk for part in parts for chunk in part.chunks],
    )


def find_zero_pages(data: Buffer, page_size: int) -> Flags:
    """Which of the whole pages in `data` hold only zeros."""
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, page_size // 8)
    zero: Flags = words[:, 0] == 0
    candidates = np.flatnonzero(zero)
    if len(candidates):
        middle = words[candidates, page_size // 16] == 0
        zero[candidates[~middle]] = False
        candidates = candidates[middle]
        for start in range(0, len(candidates), 64):  # a copy of 256 KiB at most
            part = candidates[start : start + 64]
            zero[part] = ~words[part].any(axis=1)
    return zero


def native_encoder(flag: int) -> NativeEncode | None:
    """The loop in C for a compression flag; None for pages that are not compressed, or where it is not to be had."""
    if not flag or not AVAILABLE:
        return None
    from dumpfs.native import loops

    return loops.encode if loops.has_codec(flag) else None


class Encoder:
    """Reads and encodes batches of a plan; for one thread."""

    def __init__(self, plan: WritePlan) -> None:
        self._plan = plan
        self._page_size = plan.facts.page_size
        self._flag = plan.codec_flag
        self._encode = native_encoder(plan.codec_flag)
        self._packer = packer(plan.codec_flag) if plan.codec_flag and self._encode is None else None
        self._zero_blob: bytes | None = None

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """The batch of `[first, stop)`.

        Raises:
            DumpfsError: a codec's library fails; pages that cannot be read are KIND_LOST, not errors.
        """
        data, lost = self.read(first, stop)
        count = len(data) // self._page_size
        kinds = np.zeros(count, dtype=np.uint8)
        if lost is not None:
            kinds[lost] = KIND_LOST
        if self._encode is not None:
            zero_kind = KIND_ZERO if self._plan.shares_zero_pages else KIND_DATA
            blob, sizes, flags = self._encode(self._flag, data, self._page_size, kinds.data, zero_kind)
            return Encoded(np.frombuffer(sizes, np.uint32), np.frombuffer(flags, np.uint32), kinds, [blob])
        zero = find_zero_pages(data, self._page_size)
        if lost is not None:
            zero &= ~lost
        if self._plan.shares_zero_pages:
            kinds[zero] = KIND_ZERO
            zero = np.zeros(count, dtype=np.bool_)
        if self._packer is None:
            return self._raw(data, kinds)
        return self._compressed(data, kinds, zero)

    def read(self, first: Pfn, stop: Pfn) -> tuple[bytes, Flags | None]:
        """The batch's pages, and which of them are lost (None: none)."""
        plan = self._plan
        wanted = window(plan.dump, first, stop)
        image, eraser, page_size = plan.image, plan.eraser, self._page_size
        pieces: list[bytes] = []
        states: list[bytes] = []
        for low, high, holes in _joined(wanted, first):
            data, state = image.read_run(low, high - low)
            if eraser is not None:
                data = eraser.patch(low, data)
            if not holes:
                pieces.append(data)
                states.append(state)
                continue
            view = memoryview(data)
            for a, b in runs_of(wanted[low - first : high - first]):
                pieces.append(bytes(view[a * page_size : b * page_size]))
                states.append(state[a:b])
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        state = states[0] if len(states) == 1 else b"".join(states)
        if not state.translate(None, _GOOD):
            return data, None
        array = np.frombuffer(state, dtype=np.uint8)
        return data, (array != PageState.STORED) & (array != PageState.PARTIAL)

    def _raw(self, data: bytes, kinds: U8) -> Encoded:
        page_size = self._page_size
        own = kinds == KIND_DATA
        sizes = np.where(own, page_size, 0).astype(np.uint32)
        chunks: list[Buffer]
        if own.all():
            chunks = [data]
        else:
            view = memoryview(data)
            chunks = [view[a * page_size : b * page_size] for a, b in runs_of(own)]
        return Encoded(sizes, np.zeros(len(kinds), dtype=np.uint32), kinds, chunks)

    def _compressed(self, data: bytes, kinds: U8, zero: Flags) -> Encoded:
        """Compressed where that is shorter; `zero` pages, where not shared, cost one compression for all."""
        assert self._packer is not None
        page_size = self._page_size
        own = kinds == KIND_DATA
        chunks: list[Buffer]
        if not zero.any():
            offsets = (np.flatnonzero(own) * page_size).tolist()
            blob, lengths = self._packer.pack(data, offsets, page_size)
            sizes = np.zeros(len(kinds), dtype=np.uint32)
            sizes[own] = lengths
            chunks = [blob]
        else:
            sizes, chunks = self._mixed(data, own, zero)
        flags = np.where(own & (sizes < page_size), self._flag, 0).astype(np.uint32)
        return Encoded(sizes, flags, kinds, chunks)

    def _mixed(self, data: bytes, own: Flags, zero: Flags) -> tuple[U32, list[Buffer]]:
        """Sizes and bytes of a batch with zero pages of their own: runs of either kind in turn."""
        assert self._packer is not None
        page_size = self._page_size
        if self._zero_blob is None:
            self._zero_blob = self._packer.pack(bytes(page_size), [0], page_size)[0]
        plain = own & ~zero
        blob, lengths = self._packer.pack(data, (np.flatnonzero(plain) * page_size).tolist(), page_size)
        sizes = np.zeros(len(own), dtype=np.uint32)
        sizes[plain] = lengths
        sizes[zero] = len(self._zero_blob)
        view = memoryview(blob)
        chunks: list[Buffer] = []
        used = position = 0
        for first, stop in runs_of(zero):
            size = int(sizes[position:first].sum(dtype=np.int64))
            chunks += (view[used : used + size], self._zero_blob * (stop - first))
            used += size
            position = stop
        chunks.append(view[used:])
        return sizes, chunks


_GOOD = bytes((PageState.STORED, PageState.PARTIAL))


def _joined(wanted: Flags, base: Pfn) -> list[tuple[Pfn, Pfn, bool]]:
    """Runs of wanted pages, near ones joined: (first, stop, whether pages that are not wanted lie inside)."""
    joined: list[tuple[Pfn, Pfn, bool]] = []
    for low, high in runs_of(wanted, base):
        if joined and low - joined[-1][1] <= _JOIN_GAP:
            joined[-1] = (joined[-1][0], high, True)
        else:
            joined.append((low, high, False))
    return joined
