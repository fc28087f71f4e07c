"""Page data written past the page cache: what reaches the file, and what happens where that is not to be had."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dumpfs.formats import open_image
from dumpfs.native import AVAILABLE
from dumpfs.structs import Buffer
from dumpfs.writer import sink_kdump, target
from dumpfs.writer.bytesink import PlainSink
from dumpfs.writer.encode import native_encoder
from dumpfs.writer.pipeline.run import Hooks, WriteReport, WriteRequest, write_dump
from dumpfs.writer.uncached import BLOCK, UncachedFile
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Memory, Page

PAGE = 4096
PAGES = 5000
CODECS = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
real_pwritev = os.pwritev


def address(buffer: Buffer) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


def aligned_block(size: int) -> memoryview:
    """Random bytes that begin at a multiple of `BLOCK`."""
    room = np.frombuffer(bytearray(random.Random(size).randbytes(size + BLOCK)), np.uint8)
    start = -room.__array_interface__["data"][0] % BLOCK
    return memoryview(room)[start : start + size]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """An empty file, open for reading and writing."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def sink_past_the_cache(
    file: int, monkeypatch: pytest.MonkeyPatch, limit: int | None = None
) -> tuple[PlainSink, list[int]]:
    """A sink, and the offsets of its writes past the cache; these are checked as the strictest disk does."""
    calls: list[int] = []
    uncached = UncachedFile(os.dup(file))

    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if fd == uncached._fd:
            for number in (offset, *map(len, buffers), *map(address, buffers)):
                if number % BLOCK:
                    raise OSError(errno.EINVAL, "Invalid argument")
            calls.append(offset)
        return real_pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    sink = PlainSink(file, limit)
    sink.uncached, sink.alignment = uncached, BLOCK
    return sink, calls


CHUNKS: dict[str, Callable[[], list[Buffer]]] = {
    "one, anywhere": lambda: [aligned_block(9000)[16:]],
    "one, aligned": lambda: [aligned_block(9000)],
    "whole blocks": lambda: [aligned_block(2 * BLOCK)],
    "less than a block": lambda: [aligned_block(10)],
    "several": lambda: [aligned_block(5000), b"", b"x" * 5000, aligned_block(BLOCK)],
    "more than are copied at once": lambda: [random.Random(4).randbytes(5 << 20), b"x" * BLOCK, b"y" * (3 << 20), b"z"],
    "just as many as are copied at once": lambda: [bytes(1 << 20), b"x" * (1 << 20)],
    "many": lambda: [bytes([i % 256]) * 50 for i in range(3000)],
}


@pytest.mark.parametrize("what", CHUNKS)
def test_bytes_and_zeros_up_to_the_block_reach_the_file(file, monkeypatch, what):
    sink, calls = sink_past_the_cache(file, monkeypatch)
    os.pwrite(file, b"\xff" * (12 << 20), 0)
    chunks = CHUNKS[what]()
    sink.write_data(BLOCK, chunks)
    data = b"".join(chunks)
    padded = data + bytes(-len(data) % BLOCK)
    assert calls == list(range(BLOCK, BLOCK + len(data), 2 << 20))
    there = os.pread(file, 12 << 20, 0)
    assert there[:BLOCK] == b"\xff" * BLOCK
    assert there[BLOCK : BLOCK + len(padded)] == padded
    assert there[BLOCK + len(padded) :].strip(b"\xff") == b""


def test_what_was_written_before_is_not_in_the_zeros(file, monkeypatch):
    sink, _ = sink_past_the_cache(file, monkeypatch)
    sink.write_data(0, [b"a" * BLOCK, b"b" * BLOCK])
    sink.write_data(2 * BLOCK, [b"c" * 5])
    sink.write_data(3 * BLOCK, [aligned_block(BLOCK + 7)])
    sink.write_data(5 * BLOCK, [aligned_block(3)])
    there = os.pread(file, 6 * BLOCK, 0)
    assert len(there) == 6 * BLOCK
    assert not any(there[2 * BLOCK + 5 : 3 * BLOCK])
    assert not any(there[4 * BLOCK + 7 : 5 * BLOCK])
    assert not any(there[5 * BLOCK + 3 :])


def test_headers_go_through_the_cache(file, monkeypatch):
    sink, calls = sink_past_the_cache(file, monkeypatch)
    sink.write_at(BLOCK, [b"header"])
    sink.write_data(BLOCK, [])
    assert calls == []
    assert os.pread(file, 6, BLOCK) == b"header"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_disk_that_refuses_is_written_the_other_way(file, monkeypatch, code):
    tried = []

    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if fd == uncached._fd:
            tried.append(offset)
            raise OSError(code, os.strerror(code))
        return real_pwritev(fd, buffers, offset)

    uncached = UncachedFile(os.dup(file))
    monkeypatch.setattr(os, "pwritev", pwritev)
    sink = PlainSink(file)
    sink.uncached, sink.alignment = uncached, BLOCK
    assert sink.waits
    sink.write_data(0, [b"a" * BLOCK])
    sink.write_data(BLOCK, [b"b" * 10])
    assert tried == [0]
    assert not sink.waits
    assert os.pread(file, 3 * BLOCK, 0) == (b"a" * BLOCK + b"b" * 10).ljust(2 * BLOCK, b"\0")


def test_write_that_was_cut_short_is_completed(file, monkeypatch):
    sink, _ = sink_past_the_cache(file, monkeypatch)
    checked = os.pwritev

    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return checked(fd, [memoryview(buffers[0])[:BLOCK]], offset) if fd != file else checked(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    data = random.Random(3).randbytes(3 * BLOCK + 5)
    sink.write_data(0, [data])
    assert os.pread(file, 5 * BLOCK, 0) == data.ljust(4 * BLOCK, b"\0")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_other_failures_are_the_outputs(file, monkeypatch, code):
    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        raise OSError(code, os.strerror(code))

    sink, _ = sink_past_the_cache(file, monkeypatch)
    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(OSError, match=os.strerror(code)):
        sink.write_data(0, [b"a"])


def test_limit_counts_the_zeros_as_well(file, monkeypatch):
    sink, _ = sink_past_the_cache(file, monkeypatch, limit=2 * BLOCK)
    sink.write_data(BLOCK, [b"a" * 10])
    with pytest.raises(OSError, match="the limit of 8192 bytes"):
        sink.write_data(2 * BLOCK, [b"a"])
    assert os.fstat(file).st_size == 2 * BLOCK


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/comm"])
def test_what_is_no_file_on_a_disk_has_one_way_only(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        assert UncachedFile.of(fd) is None
    finally:
        os.close(fd)


def test_file_of_no_single_block_device_has_one_way_only(file, monkeypatch):
    """Networks, overlays and file systems in memory have no device of their own."""
    monkeypatch.setattr(os, "major", lambda device: 0)
    assert UncachedFile.of(file) is None


@pytest.mark.skipif(not AVAILABLE, reason="there is no loop in C here")
def test_encoded_batch_lies_where_it_can_be_written_from(file):
    encode = native_encoder(4)
    if encode is None:
        pytest.skip("libsnappy is not installed")
    for count in (1, 7, 300):
        blob = encode(4, random.Random(count).randbytes(count * PAGE), PAGE, bytearray(count), 0)[0]
        assert address(blob) % BLOCK == 0


# -- whole dumps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, str]:
    """A dump and its description."""
    rng = random.Random(7)
    contents = [lambda: rng.randbytes(PAGE // 8) * 8, lambda: rng.randbytes(PAGE), lambda: bytes(PAGE)]
    pages = {pfn: Page(rng.choice(contents)()) for pfn in range(PAGES) if rng.random() < 0.9}
    pages |= {pfn: Page(bytes(PAGE)) for pfn in range(2500, PAGES)}  # batches of which nothing is stored at level 1
    memory = Memory(PAGE, PAGES, pages)
    path = tmp_path_factory.mktemp("source") / "dump"
    path.write_bytes(build_kdump(memory, KdumpSpec()).data)
    return memory, str(path)


@pytest.fixture(params=["past the cache", "through the cache"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    """Every dump counts as large; the file system is asked for the way past its cache, or is not."""
    monkeypatch.setattr(sink_kdump, "_LARGE", 0)
    past = request.param == "past the cache"
    if past and (way := UncachedFile._reopened(file)) is None:
        pytest.skip("the file system of temporary files has no way past its cache")
    elif past:
        way.close()
    monkeypatch.setattr(target.UncachedFile, "of", UncachedFile._reopened if past else lambda fd: None)


def write(source: str, path: Path | str, **more: object) -> WriteReport:
    return write_dump(WriteRequest((source,), (str(path),), threads=2, **more), Hooks())  # type: ignore[arg-type]


def assert_same(memory: Memory, path: str | Path) -> None:
    image = open_image([str(path)])
    try:
        for first in range(0, PAGES, 500):
            assert image.read_run(first, 500) == memory.run(first, 500)
    finally:
        image.close()


@pytest.mark.parametrize("codec", CODECS)
def test_pages_read_back_as_they_were(source, large, tmp_path, codec):
    memory, path = source
    write(path, tmp_path / "out", codec_flag=CODECS[codec])
    assert_same(memory, tmp_path / "out")


def test_both_ways_give_the_same_file(source, monkeypatch, tmp_path):
    monkeypatch.setattr(sink_kdump, "_LARGE", 0)
    for name, way in (("past", UncachedFile._reopened), ("through", lambda fd: None)):
        monkeypatch.setattr(target.UncachedFile, "of", way)
        write(source[1], tmp_path / name, codec_flag=4, level=1)
    assert (tmp_path / "past").read_bytes() == (tmp_path / "through").read_bytes()


def test_flattened_stream_has_what_the_plain_file_has(source, large, tmp_path):
    write(source[1], tmp_path / "plain", codec_flag=1)
    write(source[1], tmp_path / "flat", codec_flag=1, flatten=True)
    write(str(tmp_path / "flat"), tmp_path / "back", codec_flag=1)  # copied as it is
    assert (tmp_path / "back").read_bytes() == (tmp_path / "plain").read_bytes()


def test_refiltering_copies_between_large_dumps(source, large, tmp_path):
    write(source[1], tmp_path / "one", codec_flag=4, level=1)
    write(str(tmp_path / "one"), tmp_path / "two", codec_flag=4, level=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_parts_of_a_large_split_set_join(source, large, tmp_path):
    memory, path = source
    parts = tuple(str(tmp_path / name) for name in "abc")
    write_dump(WriteRequest((path,), parts, codec_flag=4, threads=2), Hooks())
    write_dump(WriteRequest(parts[::-1], (str(tmp_path / "joined"),), codec_flag=None, threads=2), Hooks())
    assert_same(memory, tmp_path / "joined")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.99])
def test_large_dump_that_found_no_room_is_resumed(source, large, monkeypatch, tmp_path, share):
    memory, path = source
    whole, part = tmp_path / "whole", tmp_path / "part"
    write(path, whole, codec_flag=4, level=1)
    limit = int(whole.stat().st_size * share)
    report = write(path, part, codec_flag=4, limit=limit, level=1)
    assert part.stat().st_size <= limit
    assert report.missing
    assert report.cause == f"the limit of {limit} bytes is reached"
    image = open_image([str(part)])  # what is there can be read, and says that it is not all
    assert image.meta.incomplete_reason
    image.close()
    monkeypatch.setattr(target.UncachedFile, "of", lambda fd: pytest.fail("an earlier run's pages may be in the cache"))
    write(path, part, codec_flag=4, resume=True, level=1)
    assert part.read_bytes() == whole.read_bytes()
    assert_same(memory, part)


@pytest.mark.parametrize("level", [0, 1])
def test_nothing_that_was_there_before_is_left_amid_a_dump(source, large, monkeypatch, tmp_path, level):
    """On a device it may be of a dump from before its secrets were erased."""
    write(source[1], tmp_path / "clean", codec_flag=4, level=level)
    (tmp_path / "out.partial").write_bytes(b"SECRET!!" * (4 << 20))
    monkeypatch.setattr(os, "O_TRUNC", 0)  # as a device keeps what it has
    write(source[1], tmp_path / "out", codec_flag=4, level=level, force=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "clean").read_bytes()


def test_data_of_each_batch_begin_at_a_block_of_their_own(source, large, tmp_path):
    write(source[1], tmp_path / "out", codec_flag=4)
    image = open_image([str(tmp_path / "out")])
    first = next(iter(image.descriptor_stretches(0, PAGES)))  # type: ignore[attr-defined]
    rows = np.frombuffer(first[2].raw_descriptors(0, 2000), sink_kdump.descriptor_dtype(image.abi))  # type: ignore
    ends = rows["offset"][:-1] + rows["size"][:-1]
    breaks = np.flatnonzero(ends != rows["offset"][1:])
    assert rows["offset"][0] % (64 << 10) == 0
    assert len(breaks) >= 1
    assert not (rows["offset"][1:][breaks] % BLOCK).any()
    assert ((rows["offset"][1:] - ends)[breaks] < BLOCK).all()
    image.close()


def test_small_dump_has_no_gaps(source, tmp_path):
    write(source[1], tmp_path / "out", codec_flag=4)
    image = open_image([str(tmp_path / "out")])
    first = next(iter(image.descriptor_stretches(0, PAGES)))  # type: ignore[attr-defined]
    rows = np.frombuffer(first[2].raw_descriptors(0, 2000), sink_kdump.descriptor_dtype(image.abi))  # type: ignore
    assert (rows["offset"][1:] == rows["offset"][:-1] + rows["size"][:-1]).all()
    image.close()


def test_erase_information_follows_the_data_of_a_large_dump(source, large, tmp_path):
    """It begins in the block that the last data were padded in."""
    spec = KdumpSpec(eraseinfo=b"erase nothing\n" * 20)
    (tmp_path / "source").write_bytes(build_kdump(source[0], spec).data)
    write(str(tmp_path / "source"), tmp_path / "out", codec_flag=4)
    image = open_image([str(tmp_path / "out")])
    assert image.eraseinfo() == spec.eraseinfo
    image.close()
    assert_same(source[0], tmp_path / "out")
