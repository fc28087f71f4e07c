"""Opening and reading files that may be anything: a `DumpfsError`, or an image whose every page has a state.

Memory is bounded by a limit on the address space while a test runs: a size that was taken from a file and believed
shows as MemoryError, which is no `DumpfsError`.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dumpfs.errors import DumpfsError, PageError
from dumpfs.formats import open_image
from dumpfs.formats.base import DumpImage
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.notes import parse_notes
from dumpfs.units import PageState
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.work import bounded_work

ROOM = 160 << 20
"""Bytes of address space that opening and reading a small file may take on top of what is there."""


@contextmanager
def bounded_memory(room: int = ROOM) -> Iterator[None]:
    """Limits the address space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def interesting(value: int, width: int) -> list[int]:
    """What to put in the place of an unsigned field of `width` bytes."""
    top = (1 << 8 * width) - 1
    values = {0, 1, top, top - 1, top >> 1, (top >> 1) + 1, value + 1, value - 1, 2 * value, value | (top >> 1) + 1}
    return sorted({v & top for v in values} - {value})


def attempt(folder: Path, *files: bytes, what: str = "") -> DumpImage | None:
    """Open files as a user would, read what there is; None when they were refused."""
    paths = []
    for i, data in enumerate(files):
        path = folder / f"dump{i}"
        path.write_bytes(data)
        paths.append(path)
    image, refusal = None, None
    with bounded_work(2_000_000, f"{what}: opening"):  # measured: at most 172,000
        try:
            image = open_image(paths)
        except DumpfsError as exc:
            refusal = exc
    if image is None:
        assert "\n" not in str(refusal)
        return None
    try:
        with bounded_work(500_000, f"{what}: reading"):  # measured: at most 35,000
            exercise(image)
    finally:
        image.close()
    return image


def _spots(image: DumpImage) -> list[int]:
    """Pages worth a look: around the ends of the first runs, and the outermost."""
    spots = {0, 1, image.meta.max_pfn - 1, image.meta.max_pfn, image.ram.stop, 1 << 44}
    for pages in (image.ram, image.stored):
        for i, (first, stop) in enumerate(pages.runs()):
            if i == 40:
                break
            spots |= {first - 1, first, first + 1, stop - 1, stop}
    return sorted(p for p in spots if p >= 0)


def exercise(image: DumpImage) -> None:
    """Every way in; page trouble is a state, never an exception."""
    states = {int(s) for s in PageState}
    block = image.meta.block_size
    for pfn in _spots(image):
        data, state, detail = image.read_page(pfn)
        assert state in states
        assert len(data) == (block if state in (PageState.STORED, PageState.PARTIAL) else 0)
        assert isinstance(detail, str)
        assert image.state(pfn) in states
        assert image.info(pfn).state in states
        run, run_states = image.read_run(pfn, 3)
        assert (len(run), len(run_states)) == (3 * block, 3)
        assert run_states[0] == state
        assert len(image.stored_blobs(pfn, 2)) == 2
    assert image.ram.count() >= 0
    assert image.stored.count() >= 0
    assert image.lost.count() >= 0
    image.ram.read_bits(0, 4096)
    for note in parse_notes(image.notes(), image.meta.byteorder):
        assert note.desc_offset <= len(image.notes())
    text = image.vmcoreinfo_text()
    if text is not None:
        Vmcoreinfo(text)
    image.eraseinfo()
    image.changes()
    physical = PhysMemory(image, 4096, HolePolicy.ZERO)
    for paddr in (0, 4095, max(physical.size - 1, 0), physical.size, 1 << 52):
        try:
            assert len(physical.read(paddr, 5000)) == 5000
        except PageError:
            continue
