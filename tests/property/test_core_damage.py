"""Damaged page tables, struct pages and task lists cost a core what they hit, and never hang it."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.errors import DumpfsError
from dumpfs.formats import open_image
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.memory.virtual import WalkReport
from dumpfs.vfs.context import Dump
from tests.work import bounded_work

PAGE = 4096
EXAMPLES = int(os.environ.get("DUMPFS_EXAMPLES", "10"))
READ = 1 << 20


class DamagedImage:
    """An image with some pages changed."""

    def __init__(self, image, patches: dict[int, bytes]) -> None:
        self._image = image
        self._patches = patches

    def __getattr__(self, name: str):
        return getattr(self._image, name)

    def read_page(self, pfn: int):
        data, state, detail = self._image.read_page(pfn)
        return self._patches.get(pfn, data) if data else data, state, detail

    def read_run(self, first: int, count: int):
        data, states = self._image.read_run(first, count)
        for pfn in self._patches:
            if first <= pfn < first + count:
                at = (pfn - first) * PAGE
                data = data[:at] + self._patches[pfn] + data[at + PAGE :]
        return data, states


@pytest.fixture(scope="module")
def image(data):
    opened = open_image([str(data("mkd-raw-d31.kdump"))])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def targets(image) -> dict[str, list[int]]:
    """Pages that hold a kind of structure."""
    dump = Dump(image)
    kernel, inspector = dump.need_kernel(), dump.inspection.inspector
    report = WalkReport()
    list(kernel.space.areas(report=report))
    tasks = {kernel.space.translate(t.vaddr + at) // PAGE for t in inspector.tasks for at in (0, 2048)}
    stacks = {kernel.space.translate(t.stack + 0x3F00) // PAGE for t in inspector.tasks if t.stack}
    section = kernel.space.translate(kernel.vmcoreinfo.symbol("mem_section")) // PAGE
    memmap = {kernel.space.translate(0xFFFFEA0000000000 + at) // PAGE for at in range(0, 1 << 20, PAGE)}
    return {
        "page tables": sorted({table // PAGE for _, table in report.visits}),
        "tasks": sorted(tasks),
        "stacks": sorted(stacks),
        "struct pages": sorted({section, *memmap}),
    }


@st.composite
def damages(draw, pfns: list[int], page_of) -> dict[int, bytes]:
    patches = {}
    for pfn in draw(st.lists(st.sampled_from(pfns), min_size=1, max_size=4, unique=True)):
        page = bytearray(page_of(pfn))
        noise = random.Random(draw(st.integers(0, 1 << 32)))
        kind = draw(st.sampled_from(("noise", "zeros", "ones", "words", "loops")))
        if kind == "noise":
            page[:] = noise.randbytes(PAGE)
        elif kind in ("zeros", "ones"):
            page[:] = (b"\0" if kind == "zeros" else b"\xff") * PAGE
        for at in range(0, PAGE, 8):
            if kind == "words" and noise.random() < 0.1:
                page[at : at + 8] = noise.randbytes(8)
            elif kind == "loops" and noise.random() < 0.5:
                page[at : at + 8] = (noise.choice(pfns) * PAGE | 0x63 | noise.choice((0, 0x80))).to_bytes(8, "little")
        patches[pfn] = bytes(page)
    return patches


def use(dump: Dump, name: str) -> None:
    """Build a core and read all of its virtual memory, or meet an error that says why."""
    node = dump.tree.lookup_path(name)
    if node is None:
        return
    try:
        node.build()
    except DumpfsError:
        return
    extents = node.plan.extents[1:]
    assert len(extents) < 16_100
    virtual = sum(extent.size for extent in extents if extent.content.value == "virtual")
    assert virtual <= 4 * dump.memory_size + (1 << 30)
    for extent in extents[-40:]:
        try:
            node.read(extent.offset, min(extent.size, READ))
        except DumpfsError:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vmcore", "vmcore-tasks", "vmcore-kern"])
@pytest.mark.parametrize("target", ["page tables", "tasks", "stacks", "struct pages"])
def test_damage_costs_no_more_than_what_it_hits(image, targets, name, target):
    phys = PhysMemory(image, PAGE, HolePolicy.ZERO)

    @settings(max_examples=EXAMPLES)
    @given(patches=damages(targets[target], phys.read_page))
    def check(patches) -> None:
        with bounded_work(40_000_000):  # measured: at most 5.0 million
            use(Dump(DamagedImage(image, patches)), name)

    check()
