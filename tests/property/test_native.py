"""Damaged files: the loop in C reads a page as the Python code does, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.errors import DumpfsError
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.formats.plain import open_pages
from dumpfs.native import AVAILABLE
from dumpfs.sources.local import FileSource
from dumpfs.units import PageState
from tests.build.kdump import build_kdump
from tests.property.strategies import kdump_specs, memories

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")


def compare(image: KdumpImage, size: int, damaged: bool) -> None:
    """Every page by itself and in runs. Of a damaged file the loop may refuse more: libraries bear different things."""
    pages = open_pages(image.plain_pages(), size)
    if pages is None:
        return
    for first, stop in list(image.stored.runs())[:40]:
        truth = [image.read_page(pfn) for pfn in range(first, min(stop, first + 50))]
        for pfn, (data, state, _) in enumerate(truth, first):
            got = pages.read(pfn * size, size)
            assert got == data or (got is None and (damaged or state is not PageState.STORED))
        got = pages.read(first * size, len(truth) * size)
        whole = all(state is PageState.STORED for _, state, _ in truth)
        assert got == b"".join(data for data, _, _ in truth) if whole and got is not None else damaged or not whole


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files(tmp_path_factory, data):
    memory = data.draw(memories(block_sizes=(4096, 65536)))
    built = build_kdump(memory, data.draw(kdump_specs()))
    content = bytearray(built.data)
    places = [p + i for p in built.descriptors.values() for i in range(16)]
    places += [p for offset, size in built.blobs.values() for p in (offset, offset + 1, offset + size // 2)]
    flips = data.draw(st.integers(0, 3)) if places else 0
    for _ in range(flips):
        content[data.draw(st.sampled_from(places))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("native") / "dump"
    path.write_bytes(content)
    try:
        image = KdumpImage.open([FileSource(path)])
    except DumpfsError:
        return
    image._native = False  # this side is Python's alone
    compare(image, memory.block_size, damaged=flips > 0)
    image.close()
