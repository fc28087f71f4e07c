"""The size of a dump, told before it is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dumpfs.cli.main import main
from dumpfs.formats import open_image
from dumpfs.formats.base import DumpMeta
from dumpfs.formats.segments import Segment, SegmentImage, SegmentMap
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState
from dumpfs.writer import estimate
from dumpfs.writer.bitmaps import Batches
from dumpfs.writer.filters import lost_pages
from dumpfs.writer.pipeline.run import Hooks, WriteReport, WriteRequest, write_dump
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Memory, Page
from tests.unit.writer.test_write import sample
from tests.work import bounded_work

LZO = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("source") / "dump"
    path.write_bytes(build_kdump(sample(), KdumpSpec()).data)
    return str(path)


def dry(source: str, *outputs: Path, **more: object) -> WriteReport:
    request = WriteRequest((source,), tuple(map(str, outputs)), dry_run=True, **more)  # type: ignore[arg-type]
    return write_dump(request, Hooks())


@pytest.mark.parametrize("options", [{"level": 1}, {"codec_flag": LZO}, {"elf": True, "level": 1}, {"level": 0}])
def test_size_of_a_small_dump_is_told_to_the_byte(source, tmp_path, options):
    out = tmp_path / "out"
    told = dry(source, out, **options).estimate
    assert told is not None
    assert not out.exists()
    write_dump(WriteRequest((source,), (str(out),), **options), Hooks())
    assert told.nbytes == out.stat().st_size


def test_each_part_of_a_split_set_has_headers(source, tmp_path):
    one = dry(source, tmp_path / "a", codec_flag=LZO).estimate
    three = dry(source, *(tmp_path / name for name in "abc"), codec_flag=LZO).estimate
    parts = [str(tmp_path / name) for name in "abc"]
    write_dump(WriteRequest((source,), tuple(parts), codec_flag=LZO), Hooks())
    assert three.nbytes > one.nbytes
    assert three.nbytes == sum(Path(part).stat().st_size for part in parts)


def test_a_larger_dump_is_judged_by_some_of_its_pages(source, monkeypatch):
    whole = dry(source, codec_flag=LZO)
    monkeypatch.setattr(estimate, "_PLACES", 4)
    part = dry(source, codec_flag=LZO)
    assert 0 < part.estimate.sampled < part.plan.count == whole.estimate.sampled
    assert part.estimate.nbytes == pytest.approx(whole.estimate.nbytes, rel=0.2)


def test_what_needs_no_compression_needs_no_sample(source):
    assert dry(source, level=0).estimate.sampled == 0
    assert dry(source, elf=True).estimate.sampled == 0


def test_the_command_prints_it(source, capsys):
    assert main(["write", "-l", "--dry-run", source]) == 0
    assert "as a file: about " in capsys.readouterr().out
    assert main(["write", "-l", "--dry-run", "--json", source]) == 0
    assert json.loads(capsys.readouterr().out)["estimated_bytes"] > 0


def test_places_of_a_sample_lie_evenly_among_what_is_there():
    bits = np.zeros((1 << 24) // 8, dtype=np.uint8)
    bits[: 1 << 10] = bits[-(1 << 10) :] = 0xFF  # 128 granules at either end
    batches = Batches(bits, 0, 1 << 24, 1536, 1 << 16)
    places = batches.granules_apart(64)
    assert len(places) == 64
    assert sum(place < 1 << 13 for place in places) == 32
    assert places == sorted(set(places))
    assert all(bits[place // 8] for place in places)
    assert Batches(bits, 0, 1 << 24, 1536, 1 << 16).granules_apart(1000) == [
        g * 64 for g in (*range(128), *range((1 << 18) - 128, 1 << 18))
    ]


def test_places_of_terabytes_are_chosen_without_a_walk():
    batches = Batches(np.full((1 << 28) // 8, 0xFF, dtype=np.uint8), 0, 1 << 28, 1536, 1 << 16)
    with bounded_work(20_000, "a sample of a terabyte"):
        assert len(batches.granules_apart(256)) == 256


def test_lost_pages_that_are_there_after_all_are_found_without_reading_the_others(tmp_path):
    pages = {pfn: Page(bytes(4096) if pfn % 3 == 0 else bytes([pfn % 251 + 1]) * 4096) for pfn in range(9000)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    source = tmp_path / "source"
    source.write_bytes(build_kdump(Memory(4096, 9000, pages), KdumpSpec()).data)
    write_dump(WriteRequest((str(source),), (str(whole),), level=1, codec_flag=0), Hooks())
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    image = open_image([cut])
    lost = {pfn for run in lost_pages(image).runs() for pfn in range(*run)}
    assert lost == {pfn for pfn in range(9000) if image.read_page(pfn)[1] is not PageState.STORED}
    assert lost < {pfn for run in image.lost.runs() for pfn in range(*run)}
    image.close()


def test_lost_pages_of_other_formats_are_not_read():
    image = open_image_of_segments()
    image.read_run = None  # type: ignore[method-assign,assignment]
    assert list(lost_pages(image).runs()) == list(image.lost.runs()) == [(1, 1 << 20)]


def open_image_of_segments() -> SegmentImage:
    pieces = SegmentMap([Segment(0, 4096 << 20, 0, 4096 << 20)], 4096, 4096)
    meta = DumpMeta(format="elf", block_size=4096, max_pfn=1 << 20, byteorder="little", word_size=8)
    return SegmentImage(MemorySource(bytes(4096)), meta, pieces)
