"""That an image tells exactly what a description says, by every way in."""

from __future__ import annotations

import random

from dumpfs.errors import PageError
from dumpfs.formats.base import DumpImage
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.sources.base import ByteSource
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState
from tests.build.codecs import FLAG_NAMES, LZO, SNAPPY, ZLIB, ZSTD
from tests.build.kdump import stored_form
from tests.build.model import Kind, Memory, runs_of

_CONTENT = (Kind.STORED, Kind.PARTIAL)


def sources(*files: bytes) -> list[ByteSource]:
    """Files in memory."""
    return [MemorySource(data, f"file{i}") for i, data in enumerate(files)]


def check_pages(image: DumpImage, memory: Memory) -> None:
    """State, info and content of every page, and of some that lie outside."""
    outside = {memory.max_pfn, memory.max_pfn + 1, memory.max_pfn + 5000, 1 << 50}
    for pfn in sorted({*memory.pages, *(p + 1 for p in memory.pages), 0, *outside}):
        kind = memory.kind(pfn)
        data, state, detail = image.read_page(pfn)
        assert state == kind, f"page {pfn:#x}: {state!r} ({detail}) instead of {kind!r}"
        assert data == (memory.content(pfn) if kind in _CONTENT else b"")
        assert bool(detail) == (kind in (Kind.LOST, Kind.CORRUPT))
        info = image.info(pfn)
        if kind is not Kind.CORRUPT:  # a blob that does not decode shows only when it is decoded
            assert info.state == kind
            assert image.state(pfn) == kind
        assert (pfn in image.ram) == (kind is not Kind.ABSENT)


def check_kdump_storage(image: DumpImage, memory: Memory) -> None:
    """How each page is stored, and its stored bytes."""
    first, stop = (min(memory.pages, default=0), max(memory.pages, default=0) + 1)
    for low in range(first, stop, 1000):
        count = min(1000, stop - low)
        for pfn, blob in zip(range(low, low + count), image.stored_blobs(low, count), strict=True):
            kind = memory.kind(pfn)
            if kind is not Kind.STORED:
                assert (blob.state, blob.data) == (kind, b"")
                continue
            flags, data = stored_form(memory.pages[pfn])
            assert (blob.state, blob.flags, blob.data) == (Kind.STORED, flags, data)
            info = image.info(pfn)
            assert (info.codec, info.size, info.flags) == (FLAG_NAMES[flags], len(data), flags)
            assert flags in (0, ZLIB, LZO, SNAPPY, ZSTD)


def check_sets(image: DumpImage, memory: Memory, stored: list[int] | None = None) -> None:
    """The sets of pages that are RAM, and of those that are stored (all that have content, if not told otherwise)."""
    assert list(image.ram.runs()) == runs_of(memory.ram())
    assert image.ram.count() == len(memory.pages)
    assert [pfn for pfn in memory.pages if pfn not in image.ram] == []
    if stored is None:
        stored = memory.where(*_CONTENT)
    assert [pfn for pfn in sorted(memory.pages) if pfn in image.stored] == stored
    assert set(memory.where(Kind.LOST)) <= {p for run in image.lost.runs() for p in range(*run)}
    assert not {pfn for pfn in stored if pfn in image.lost}
    assert [p for run in image.stored.runs() for p in range(*run)] == stored
    assert image.stored.count() == len(stored)
    for i, pfn in enumerate(stored):
        assert image.stored.rank(pfn) == i
    expected = int.from_bytes(memory.bits(stored), "little")
    assert int.from_bytes(image.stored.read_bits(0, 1 << 20), "little") == expected
    partial = {p: page.extent for p, page in memory.pages.items() if page.extent is not None}
    assert dict(image.partial) == partial


def check_runs(image: DumpImage, memory: Memory, rng: random.Random, tries: int = 12) -> None:
    """`read_run` over windows anywhere."""
    spots = sorted({0, memory.max_pfn, *memory.pages, *(p + 1 for p in memory.pages)})
    for _ in range(tries):
        first = max(rng.choice(spots) - rng.randrange(3), 0)
        count = rng.choice([0, 1, 2, 7, 30, 100])
        data, states = image.read_run(first, count)
        expected_data, expected_states = memory.run(first, count)
        assert bytes(states) == expected_states, f"states of {count} pages from {first:#x}"
        assert bytes(data) == expected_data


def check_memory(image: DumpImage, memory: Memory, rng: random.Random, page_size: int = 4096, tries: int = 12) -> None:
    """`PhysMemory.read` of bytes anywhere, under both policies."""
    block = memory.block_size
    zero = PhysMemory(image, page_size, HolePolicy.ZERO)
    error = zero.with_policy(HolePolicy.ERROR)
    base = image.meta.first_paddr
    spots = sorted({0, *(p * block for p in memory.pages), *((p + 1) * block for p in memory.pages)})
    for _ in range(tries):
        paddr = max(rng.choice(spots) + rng.choice([0, 0, -1, 1, -4096, 2048]), 0)
        size = rng.choice([0, 1, 8, 4095, 4096, 4097, 3 * block, 10 * block + 17])
        first, last = paddr // block, (paddr + max(size, 1) - 1) // block
        kinds = {memory.kind(p) for p in range(first, last + 1)} if size else set()
        content = memory.run(first, last - first + 1)[0][paddr - first * block :][:size]
        for physical, bad in (
            (zero, {Kind.LOST, Kind.CORRUPT}),
            (error, {Kind.LOST, Kind.CORRUPT, Kind.EXCLUDED, Kind.ABSENT}),
        ):
            found, state = _try_read(physical, base + paddr, size)
            if kinds & bad:
                assert found is None, f"{size} bytes at {paddr:#x} are {kinds}"
                assert state in kinds & bad
            else:
                assert found == content


def _try_read(physical: PhysMemory, paddr: int, size: int) -> tuple[bytes | None, PageState | None]:
    try:
        return physical.read(paddr, size), None
    except PageError as exc:
        return None, exc.state


def check_image(image: DumpImage, memory: Memory, seed: int = 0, stored: list[int] | None = None) -> None:
    """Everything above."""
    rng = random.Random(seed)
    check_sets(image, memory, stored)
    check_pages(image, memory)
    check_runs(image, memory, rng)
    check_memory(image, memory, rng)
