"""What is written from: large blocks seen as kernel pages, and the mount point a path lies in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.writer import source as module
from dumpfs.writer.source import find_mount, in_kernel_pages
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page

BLOCK = 65536
MOUNTS = """\
22 1 0:20 / / rw - ext4 /dev/root rw
30 22 0:40 / /mnt rw - tmpfs none rw
31 30 0:41 / /mnt/a\\040dump ro - fuse.dumpfs dump ro
"""


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[Memory, str]:
    rng = random.Random(2)
    pages = {pfn: Page(rng.randbytes(BLOCK), codec="raw") for pfn in (1, 2, 5)}
    pages[3] = Page(kind=Kind.EXCLUDED)
    memory = Memory(BLOCK, 8, pages)
    (tmp_path / "dump").write_bytes(build_kdump(memory, KdumpSpec()).data)
    return memory, str(tmp_path / "dump")


@pytest.mark.parametrize(("first", "count"), [(0, 128), (17, 3), (15, 2), (31, 33), (47, 40)])
def test_pages_of_large_blocks_are_their_parts(blocks, first, count):
    memory, path = blocks
    inner = open_image([path])
    image = in_kernel_pages(inner, 4096)
    whole, states = memory.run(0, 8)
    data, found = image.read_run(first, count)
    assert data == whole[first * 4096 : (first + count) * 4096]
    assert list(found) == [states[pfn // 16] for pfn in range(first, first + count)]
    inner.close()


def test_sets_of_large_blocks_count_pages(blocks):
    inner = open_image([blocks[1]])
    image = in_kernel_pages(inner, 4096)
    assert image.meta.max_pfn == 128
    assert list(image.stored.runs()) == [(16, 48), (80, 96)]
    inner.close()


def test_image_of_kernel_pages_is_taken_as_it_is(blocks):
    inner = open_image([blocks[1]])
    assert in_kernel_pages(inner, BLOCK) is inner
    inner.close()


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/mnt/a dump", "/mnt/a dump"),
        ("/mnt/a dump/vmcore", "/mnt/a dump"),
        ("/mnt/a dump2", None),
        ("/mnt/other", None),
        ("/", None),
    ],
)
def test_mount_is_found_by_its_longest_name(tmp_path, monkeypatch, path, mount):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    monkeypatch.setattr(module, "_MOUNTINFO", str(table))
    assert find_mount(path) == mount
