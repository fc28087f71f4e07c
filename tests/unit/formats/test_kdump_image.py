"""kdump images: states of pages, split sets, incomplete dumps, and files that change underneath."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from dumpfs.errors import CorruptDumpError, SourceError
from dumpfs.formats.kdump.header import MAIN, SUB
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.sources.local import FileSource, MemorySource
from dumpfs.structs import LE64
from dumpfs.units import PageState
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.build.model import Kind, Memory, Page
from tests.build.sparse import BLOCK, CONTENTS, content, sparse_tib
from tests.work import bounded_work

SPEC = KdumpSpec(machine="x86_64", timestamp=1700000000)


def page(pfn: int, codec: str = "zlib") -> Page:
    return Page((b"page %d " % pfn * 50).ljust(4096, b"-"), codec=codec)


MEMORY = Memory(4096, 100, {p: page(p) for p in range(10, 60)} | {p: Page(kind=Kind.EXCLUDED) for p in range(60, 70)})


def open_kdump(*files: bytes) -> KdumpImage:
    return KdumpImage.open([MemorySource(data, f"file{i}") for i, data in enumerate(files)])


def test_bitmaps_that_are_gone_make_no_excluded_pages(tmp_path):
    (tmp_path / "dump").write_bytes(build_kdump(MEMORY, SPEC).data)
    image = KdumpImage.open([FileSource(tmp_path / "dump")])
    image._bits._chunks.clear()
    image._ram_bits._chunks.clear()
    os.truncate(tmp_path / "dump", 0)
    assert image.read_page(65)[1:] == (PageState.CORRUPT, image.info(65).detail)
    assert "the file has become shorter" in image.info(65).detail
    assert set(image.read_run(8, 60)[1]) == {PageState.CORRUPT}
    image.close()


def test_a_run_tells_each_page_its_state():
    data, states = open_kdump(build_kdump(MEMORY, SPEC).data).read_run(8, 60)
    assert states[:2] == bytes((PageState.ABSENT,)) * 2
    assert states[2:52] == bytes((PageState.STORED,)) * 50
    assert states[52:] == bytes((PageState.EXCLUDED,)) * 8
    assert data[8192 : 8192 + 4096] == MEMORY.content(10)
    assert not any(data[52 * 4096 :])


def test_a_lost_page_says_why():
    memory = MEMORY.changed({59}, Kind.LOST)
    image = open_kdump(build_kdump(memory, replace(SPEC, status=9)).data)
    assert image.read_page(59) == (b"", PageState.LOST, "its descriptor was never written")
    assert image.info(59).detail == "its descriptor was never written"


def test_a_corrupt_page_says_why():
    pages = dict(MEMORY.pages)
    pages[20] = Page(stored_form=(1, b"garbage"), kind=Kind.CORRUPT)
    data, state, detail = open_kdump(build_kdump(replace(MEMORY, pages=pages), SPEC).data).read_page(20)
    assert (data, state) == (b"", PageState.CORRUPT)
    assert "zlib" in detail


def test_one_corrupt_page_costs_a_run_nothing_else():
    pages = dict(MEMORY.pages)
    pages[20] = Page(stored_form=(1, b"garbage"), kind=Kind.CORRUPT)
    memory = replace(MEMORY, pages=pages)
    data, states = open_kdump(build_kdump(memory, SPEC).data).read_run(0, 100)
    assert (bytes(data), bytes(states)) == memory.run(0, 100)


def test_info_tells_where_a_page_is_stored():
    built = build_kdump(MEMORY, SPEC)
    info = open_kdump(built.data).info(33)
    assert (info.offset, info.size) == built.blobs[33]
    assert (info.state, info.codec, info.flags, info.source) == (PageState.STORED, "zlib", 1, "file0")


def test_many_pages_may_share_one_copy():
    pages = {p: Page(bytes(4096), codec="zero") if p % 2 else page(p, "lzo") for p in range(50)}
    memory = Memory(4096, 50, pages)
    built = build_kdump(memory, SPEC)
    image = open_kdump(built.data)
    assert len({image.info(p).offset for p in range(1, 50, 2)}) == 1
    assert (bytes(image.read_run(0, 50)[0]), bytes(50)) == memory.run(0, 50)


def test_page_data_may_lie_far_apart_and_in_any_order():
    memory = Memory(4096, 400, {p: page(p, ("raw", "lzo", "zstd")[p % 3]) for p in range(400)})
    image = open_kdump(build_kdump(memory, replace(SPEC, shuffle=5)).data)
    assert bytes(image.read_run(0, 400)[0]) == memory.run(0, 400)[0]


def test_descriptors_may_overlap_one_copy():
    """Two pages may name the same bytes with different codecs: only the right one decodes."""
    built = build_kdump(MEMORY, SPEC)
    first = built.descriptors[10]
    other = built.poked(built.descriptors[11], built.data[first : first + 24])
    image = open_kdump(other)
    assert image.read_page(11)[0] == MEMORY.content(10)
    assert image.read_run(10, 2)[0] == 2 * MEMORY.content(10)


# -- split sets --------------------------------------------------------------------------------------------------------


def parts() -> list[bytes]:
    return [b.data for b in split_parts(MEMORY, SPEC, [0, 25, 25, 40, 100])]


def test_a_split_set_may_be_named_in_any_order():
    one, empty, two, three = parts()
    image = open_kdump(three, one, empty, two)
    assert bytes(image.read_run(0, 100)[0]) == MEMORY.run(0, 100)[0]
    assert image.meta.complete
    assert image.info(30).source == "file3"


def test_a_missing_part_is_named_by_its_pages():
    one, _, _, three = parts()
    image = open_kdump(three, one)
    assert not image.meta.complete
    assert "0x19-0x27" in image.meta.incomplete_reason
    assert image.read_page(30)[1:] == (PageState.LOST, "its part of the split set is missing")
    assert image.stored.count() == 35
    assert image.lost.count() == 15


def test_parts_of_different_dumps_do_not_mix():
    other = split_parts(MEMORY, replace(SPEC, timestamp=1700000001), [0, 25, 100])
    with pytest.raises(CorruptDumpError, match="another dump"):
        open_kdump(parts()[0], other[1].data)


def test_a_part_named_twice_is_refused():
    with pytest.raises(CorruptDumpError, match="which another part has already"):
        open_kdump(parts()[0], parts()[0])


def test_a_whole_dump_is_no_part():
    with pytest.raises(CorruptDumpError, match="not a part of a split set"):
        open_kdump(parts()[0], build_kdump(MEMORY, SPEC).data)


# -- incomplete dumps --------------------------------------------------------------------------------------------------


def test_a_flagged_dump_serves_what_was_written():
    memory = MEMORY.changed(set(range(40, 60)), Kind.LOST)
    image = open_kdump(build_kdump(memory, replace(SPEC, status=9)).data)
    assert image.meta.incomplete_reason == "flagged incomplete by its writer: 20 of 50 pages are missing"
    assert list(image.stored.runs()) == [(10, 40)]
    assert list(image.lost.runs()) == [(40, 60)]


def test_a_copy_cut_short_is_found_out_without_a_flag():
    built = build_kdump(MEMORY, SPEC)
    image = open_kdump(built.data[: built.blobs[30][0] + 1])
    assert not image.meta.complete
    assert "cut short" in image.meta.incomplete_reason
    assert list(image.stored.runs()) == [(10, 30)]


def test_a_cut_is_found_behind_a_long_row_of_zero_pages():
    pages = {p: page(p) for p in range(100)} | {p: Page(bytes(4096), codec="zero") for p in range(100, 3000)}
    built = build_kdump(Memory(4096, 3000, pages), SPEC)
    image = open_kdump(built.data[: built.blobs[50][0] + 1])
    assert not image.meta.complete
    assert list(image.stored.runs()) == [(0, 50)]


def test_zero_pages_right_before_the_first_missing_one_are_stored():
    pages = {p: Page(bytes(4096), codec="zero") if 20 <= p < 30 else page(p) for p in range(60)}
    memory = Memory(4096, 60, pages).changed(set(range(30, 60)), Kind.LOST)
    image = open_kdump(build_kdump(memory, replace(SPEC, status=9)).data)
    assert list(image.stored.runs()) == [(0, 30)]


def test_a_dump_without_any_page_says_so():
    memory = MEMORY.changed(set(range(10, 60)), Kind.LOST)
    image = open_kdump(build_kdump(memory, replace(SPEC, status=9)).data)
    assert image.stored.count() == 0
    assert "50 of 50 pages are missing" in image.meta.incomplete_reason


def test_a_dump_cut_in_its_bitmaps_excludes_nothing():
    built = build_kdump(MEMORY, SPEC)
    image = open_kdump(built.data[: built.places["bitmap2"] + 5])
    assert image.read_page(65)[1] is PageState.LOST
    assert image.read_run(65, 1)[1] == bytes((PageState.LOST,))
    assert image.lost.count() == 60


# -- files that change -------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    path = tmp_path / "dump"
    built = build_kdump(MEMORY, SPEC)
    path.write_bytes(built.data)
    image = KdumpImage.open([FileSource(path)])
    yield path, built, image
    image.close()


def test_a_file_cut_while_open_loses_the_pages_behind(on_disk):
    path, built, image = on_disk
    assert image.read_page(50)[1] is PageState.STORED
    os.truncate(path, built.blobs[30][0] + 1)
    assert image.read_page(10)[1] is PageState.STORED
    assert image.read_page(50)[1] is PageState.LOST
    states = image.read_run(10, 50)[1]
    assert states == bytes((PageState.STORED,)) * 20 + bytes((PageState.LOST,)) * 30
    assert "truncated" in image.changes()[0]


def test_a_file_replaced_while_open_is_still_served(on_disk):
    path, _, image = on_disk
    other = path.with_name("other")
    other.write_bytes(b"something else")
    other.replace(path)
    assert image.read_page(50)[0] == MEMORY.content(50)
    assert "replaced" in image.changes()[0]


def test_an_unchanged_file_has_no_changes(on_disk):
    assert on_disk[2].changes() == []


class FailingSource(MemorySource):
    """A disk with a bad sector."""

    bad = range(0)

    def read_at(self, offset: int, size: int) -> bytes:
        if offset < self.bad.stop and offset + size > self.bad.start:
            raise SourceError("disk", f"reading at offset {offset:#x} failed")
        return super().read_at(offset, size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if offset < self.bad.stop and offset + len(buffer) > self.bad.start:
            raise SourceError("disk", f"reading at offset {offset:#x} failed")
        return super().read_into(offset, buffer)


def test_a_bad_sector_costs_only_the_pages_on_it():
    built = build_kdump(MEMORY, SPEC)
    source = FailingSource(built.data)
    image = KdumpImage.open([source])
    offset, size = built.blobs[30]
    source.bad = range(offset, offset + size)
    states = image.read_run(10, 50)[1]
    assert [10 + i for i, s in enumerate(states) if s] == [30]
    assert image.read_page(30)[1] in (PageState.LOST, PageState.CORRUPT)
    assert "failed" in image.read_page(30)[2]


def test_threads_may_read_at_the_same_time():
    memory = Memory(4096, 300, {p: page(p, ("zlib", "lzo", "snappy", "zstd")[p % 4]) for p in range(300)})
    image = open_kdump(build_kdump(memory, SPEC).data)
    expected = memory.run(0, 300)[0]
    wrong = []

    def work() -> None:
        for i in range(60):
            if bytes(image.read_run(0, 300)[0]) != expected or image.read_page(i)[0] != memory.content(i):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- size --------------------------------------------------------------------------------------------------------------


def test_a_small_relative_of_the_terabyte_dump(tmp_path):
    total = sparse_tib(tmp_path / "sparse", pfns=1 << 18, thinning=3)
    image = KdumpImage.open([FileSource(tmp_path / "sparse")])
    assert image.stored.count() == total
    assert image.meta.complete
    for index in (0, 1, CONTENTS, total // 2, total - 1):
        assert image.read_page(_select(image, index))[0] == content(index % CONTENTS)
    assert len(content(0)) == BLOCK
    image.close()


def _select(image: KdumpImage, index: int) -> int:
    """The page of rank `index`, by bisection."""
    low, high = 0, image.meta.max_pfn
    while low < high:
        middle = (low + high) // 2
        if image.stored.rank(middle + 1) > index:
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.parametrize("written", [False, True])
def test_bitmaps_that_nobody_wrote_cost_nothing(tmp_path, written):
    """Some kilobytes on the disk that claim 2^35 pages."""
    built = build_kdump(Memory(4096, 60, {5: Page(content(5))}), KdumpSpec())
    head = bytearray(built.data[: built.places["bitmap1"]])
    for layout, start, name, value in (
        (MAIN, 0, "bitmap_blocks", 1 << 21),
        (SUB, built.places["sub"], "max_mapnr_64", 1 << 35),
    ):
        size = 8 if name.endswith("64") else 4
        at = start + layout.offset(LE64, name)
        head[at : at + size] = value.to_bytes(size, "little")
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 33) + (1 << 20))
        if written:  # one page of memory, far up
            file.seek(len(head) + (1 << 31))
            file.write(b"\1")
    with bounded_work(40_000):
        image = KdumpImage.open([FileSource(path)])
        assert list(image.ram.runs()) == ([(1 << 34, (1 << 34) + 1)] if written else [])
        assert image.stored.count() == 0
        image.close()
