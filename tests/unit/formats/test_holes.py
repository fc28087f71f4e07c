"""Files that are nearly all hole: nothing is done in proportion to a size that nobody wrote."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.formats.raw import open_raw
from dumpfs.linux.vmcoreinfo_scan import scan_memory
from dumpfs.memory.scan import ScanTotals, plan_windows, scan_image, written_runs
from dumpfs.sources.local import FileSource, MemorySource
from dumpfs.units import PageState
from tests.build.lime import build_lime
from tests.work import bounded_work

BLOCK = 4096
TIB = 1 << 40
TEXT = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n" + b"".join(b"SYMBOL(symbol_%d)=ffffffff81000000\n" % i for i in range(9))


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A LiME image of a terabyte, of which two pages were written."""
    path = tmp_path / "image.lime"
    head = build_lime([(0, b"x")])[:8] + struct.pack("<QQ8x", 0, TIB - 1)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(TIB + len(head))
        file.seek(len(head) + (TIB >> 1))
        file.write(TEXT.ljust(BLOCK, b"\0"))
    if os.stat(path).st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    return path


def test_holes_are_not_read(sparse):
    image = open_image([sparse])
    with bounded_work(20_000, "a search of a terabyte of hole"):
        assert len(list(scan_memory(image))) == 1
        totals = ScanTotals()
        for result in scan_image(image):
            totals.add(result)
    assert totals.counts[PageState.STORED] == TIB // BLOCK
    assert sum(count for _, count in plan_windows(written_runs(image), BLOCK)) < 64
    image.close()


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_pages_among_holes_are_counted_once(tmp_path, jobs):
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for place in (0, 5 << 20, (64 << 20) - BLOCK):
            file.seek(place)
            file.write(b"x" * BLOCK)
    image = open_raw([FileSource(path)])
    os.truncate(path, (64 << 20) - BLOCK)  # its last page is lost after it was opened
    totals = ScanTotals()
    for result in scan_image(image, jobs):
        totals.add(result)
    stored = (64 << 20) // BLOCK
    assert totals.counts[PageState.STORED] + totals.counts[PageState.LOST] == stored
    assert totals.bad_ranges() == [(stored - 1, stored, PageState.LOST)]
    image.close()


def test_what_was_written_is_what_reads_as_more_than_zeros(tmp_path):
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.truncate(3 << 20)
        for place in (0, (1 << 20) + 100, (3 << 20) - 1):
            file.seek(place)
            file.write(b"x")
    image = open_raw([FileSource(path)])
    written = {pfn for run in written_runs(image) for pfn in range(*run)}
    filled = {pfn for pfn in range(768) if any(image.read_page(pfn)[0])}
    assert filled == {0, 256, 767}
    assert filled <= written
    assert list(image.written_runs(257, 700)) == []
    image.close()


def test_bytes_without_holes_are_read_whole():
    image = open_raw([MemorySource(bytes(10 * BLOCK))])
    assert list(written_runs(image)) == [(0, 10)]
