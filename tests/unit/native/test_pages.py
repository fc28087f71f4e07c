"""The loop in C reads what the Python code reads, or nothing."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import zstandard

from dumpfs.formats import open_image
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.formats.plain import open_pages
from dumpfs.memory.cache import PageCache
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.native import AVAILABLE
from dumpfs.sources.local import FileSource, MemorySource
from dumpfs.units import PageState
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.build.model import Kind, Memory, Page

PAGE = 4096
SPEC = KdumpSpec(machine="x86_64")
CODECS = ("raw", "zlib", "lzo", "snappy", "zstd", "zero")

needs_native = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")


def content(pfn: int) -> bytes:
    rng = random.Random(pfn)
    return (rng.randbytes(1000) + b"page %d " % pfn * 500)[:PAGE]


def mixed_memory(count: int = 700) -> Memory:
    """Pages of every codec, the shared zero page among them, in islands with excluded ones between."""
    pages = {}
    for pfn in range(5, 5 + count):
        codec = CODECS[pfn * 7919 % 6]
        pages[pfn] = Page(bytes(PAGE) if codec == "zero" else content(pfn), codec=codec)
    pages |= {pfn: Page(kind=Kind.EXCLUDED) for pfn in (*range(100, 130), 400, 650)}
    return Memory(PAGE, 10_000, pages)


def image_of(tmp_path, memory: Memory, spec: KdumpSpec = SPEC) -> KdumpImage:
    path = tmp_path / "dump"
    path.write_bytes(build_kdump(memory, spec).data)
    return KdumpImage.open([FileSource(path)])


def test_code_is_compiled():
    """Where the tests run there is a compiler; only who asks for it goes without the C code."""
    assert AVAILABLE or os.environ.get("DUMPFS_NATIVE") == "0"


@needs_native
@pytest.mark.parametrize("cache", [0, 64 << 10])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_any_range_is_what_python_reads(tmp_path, shuffle, cache):
    image = image_of(tmp_path, mixed_memory(), replace(SPEC, shuffle=shuffle))
    pages = open_pages(image.plain_pages(), PAGE, zeros=True, cache=cache)
    memory = PhysMemory(image, PAGE, HolePolicy.ZERO, PageCache(0))
    rng = random.Random(1)
    for _ in range(600):
        paddr = rng.randrange(720 * PAGE)
        size = rng.choice([1, 8, PAGE, PAGE + 1, 10 * PAGE, rng.randrange(1, 1 << 20), (1 << 20) + 77])
        paddr -= rng.choice([0, paddr % PAGE])
        assert pages.read(paddr, size) == memory.read(paddr, size)
    assert pages.used() <= max(cache, PAGE)


@needs_native
def test_memory_without_content_is_refused_unless_it_reads_as_zeros(tmp_path):
    image = image_of(tmp_path, mixed_memory())
    strict = open_pages(image.plain_pages(), PAGE)
    assert strict.read(100 * PAGE, PAGE) is None
    assert strict.read(99 * PAGE, 2 * PAGE) is None
    assert strict.read(99 * PAGE, PAGE) == image.read_page(99)[0]
    lenient = open_pages(image.plain_pages(), PAGE, zeros=True)
    assert lenient.read(100 * PAGE, PAGE) == bytes(PAGE)
    assert lenient.read(1 << 50, 16) == bytes(16)


@needs_native
@pytest.mark.parametrize(
    "descriptor",
    [
        (0, 100, 1),
        (1 << 63, 100, 1),
        (1 << 40, 100, 1),
        (PAGE, 0, 1),
        (PAGE, PAGE + 1, 1),
        (PAGE, 0xFFFFFFFF, 1),
        (PAGE, 100, 0),
        (PAGE, 100, 3),
        (PAGE, 100, 0x40),
        (PAGE, 100, 1),
        (PAGE, 100, 2),
        (PAGE, 100, 4),
        (PAGE, 100, 0x20),
    ],
    ids=lambda d: f"{d[0]:#x}-{d[1]:#x}-{d[2]:#x}",
)
def test_a_descriptor_that_is_not_in_order_is_refused(tmp_path, descriptor):
    memory = mixed_memory()
    memory.pages[50] = replace(memory.pages[50], descriptor=descriptor)
    image = image_of(tmp_path, memory)
    pages = open_pages(image.plain_pages(), PAGE, zeros=True)
    assert pages.read(50 * PAGE, 8) is None
    assert pages.read(40 * PAGE, 40 * PAGE) is None
    assert pages.read(51 * PAGE, 40 * PAGE) == image.read_run(51, 40)[0]


@needs_native
def test_two_pages_that_are_shared_are_not_mixed_up(tmp_path):
    """Descriptors that lead back to data of other pages, to several of them, in one run."""
    memory = Memory(PAGE, 1000, {pfn: Page(content(pfn), codec="zlib") for pfn in range(200)})
    built = build_kdump(memory, SPEC)
    data = bytearray(built.data)
    for pfn in range(20, 200, 3):
        other = built.descriptors[pfn % 7]
        data[built.descriptors[pfn] : built.descriptors[pfn] + 24] = data[other : other + 24]
    (tmp_path / "dump").write_bytes(data)
    image = KdumpImage.open([FileSource(tmp_path / "dump")])
    pages = open_pages(image.plain_pages(), PAGE)
    wanted = b"".join(image.read_page(pfn)[0] for pfn in range(200))
    assert pages.read(0, 200 * PAGE) == wanted
    assert pages.read(19 * PAGE, 100 * PAGE) == wanted[19 * PAGE : 119 * PAGE]


@needs_native
def test_a_file_that_becomes_shorter_is_refused(tmp_path):
    image = image_of(tmp_path, mixed_memory())
    pages = open_pages(image.plain_pages(), PAGE, zeros=True)
    assert pages.read(690 * PAGE, PAGE)
    os.truncate(tmp_path / "dump", 0)
    assert pages.read(689 * PAGE, PAGE) is None
    assert pages.read(5 * PAGE, 100 * PAGE) is None
    fresh = open_pages(image.plain_pages(), PAGE, zeros=True)
    assert fresh.read(0, PAGE) is None


@needs_native
def test_a_closed_dump_reads_no_other_file(tmp_path):
    """Its descriptor's number may be another file's by then."""
    image = image_of(tmp_path, mixed_memory())
    assert image.read_run(5, 3)[1] == bytes(3)
    image.close()
    with open(tmp_path / "dump", "rb"):
        assert set(image.read_run(5, 3)[1]) == {PageState.CORRUPT}


@needs_native
@pytest.mark.parametrize("how", ["two frames", "skippable first", "junk behind"])
def test_zstd_pages_of_more_than_one_frame_are_refused(tmp_path, how):
    page = content(1)
    compress = zstandard.ZstdCompressor(level=1).compress
    blob = {
        "two frames": compress(page[:2048]) + compress(page[2048:]),
        "skippable first": b"\x50\x2a\x4d\x18\4\0\0\0junk" + compress(page),
        "junk behind": compress(page) + b"junk",
    }[how]
    assert len(blob) < PAGE
    memory = Memory(PAGE, 10, {1: Page(page, codec="zstd", stored_form=(0x20, blob))})
    image = image_of(tmp_path, memory)
    assert open_pages(image.plain_pages(), PAGE).read(PAGE, PAGE) is None


def test_only_whole_plain_files_are_for_the_loop(tmp_path):
    memory = mixed_memory()
    assert image_of(tmp_path, memory).plain_pages() is not None
    assert image_of(tmp_path, memory, replace(SPEC, status=9)).plain_pages() is None
    assert image_of(tmp_path, memory, replace(SPEC, byteorder="big", machine="s390x")).plain_pages() is None
    assert KdumpImage.open([MemorySource(build_kdump(memory, SPEC).data, "memory")]).plain_pages() is None
    parts = []
    for i, part in enumerate(split_parts(memory, SPEC, [0, 300, memory.max_pfn])):
        (tmp_path / f"part{i}").write_bytes(part.data)
        parts.append(FileSource(tmp_path / f"part{i}"))
    assert KdumpImage.open(parts).plain_pages() is None


def test_a_flattened_real_dump_is_left_to_python(corpus):
    assert open_image([corpus("tiny/qemu-kaslr.kdump-lzo")]).plain_pages() is None


@needs_native
def test_unusual_page_sizes_are_left_to_python(tmp_path):
    image = image_of(tmp_path, mixed_memory())
    assert open_pages(image.plain_pages(), 1 << 18) is None
    pages = type(open_pages(image.plain_pages(), PAGE))
    good = {"fd": 0, "bitmap": 0, "stop": 0, "ranks": b"", "table": 0, "count": 0, "page_size": PAGE, "cache": 0}
    for name, wrong in {"page_size": 5000, "cache": -1, "bitmap": 1 << 63, "table": 1 << 63, "count": 1 << 60}.items():
        with pytest.raises(ValueError, match=r"page_size|beyond"):
            pages(zeros=True, **good | {name: wrong})


@needs_native
@pytest.mark.parametrize("name", ["tiny/mkd-raw-d31.kdump", "tiny/mkd-zstd-d31.kdump", "deb61/raw-d31.kdump"])
def test_real_dumps(corpus, name):
    image = open_image([corpus(name)])
    pages = open_pages(image.plain_pages(), PAGE, zeros=True)
    memory = PhysMemory(image, PAGE, HolePolicy.ZERO, PageCache(0))
    single = PhysMemory(image, PAGE, HolePolicy.ERROR, PageCache(0))
    for paddr in range(0, memory.size, 1 << 20):
        size = min(1 << 20, memory.size - paddr)
        assert pages.read(paddr, size) == memory.read(paddr, size)
    for first, stop in image.stored.runs():
        for pfn in range(first, stop):
            assert pages.read(pfn * PAGE, PAGE) == single.read_page(pfn)
