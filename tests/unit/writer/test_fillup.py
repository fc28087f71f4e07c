"""A full disk: what still fits of the batch that does not is written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.units import PageState
from dumpfs.writer import fillup
from dumpfs.writer.fillup import punch_hole
from dumpfs.writer.pipeline import run
from dumpfs.writer.pipeline.run import Hooks, WriteRequest, write_dump
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Memory, Page

ZLIB, NONE = 1, 0
PAGES = 1200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half of the bytes of each page are random: zlib makes about half of it."""
    rng = random.Random(9)
    pages = {pfn: Page(rng.randbytes(2048) + bytes(2048)) for pfn in range(PAGES)}
    path = tmp_path_factory.mktemp("source") / "dump"
    path.write_bytes(build_kdump(Memory(4096, PAGES, pages), KdumpSpec()).data)
    return str(path)


def readable(path: Path) -> int:
    image = open_image([path])
    found = sum(image.read_page(pfn)[1] is PageState.STORED for pfn in range(PAGES))
    image.close()
    return found


@pytest.mark.parametrize("codec", [ZLIB, NONE])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_pages_of_a_batch_that_does_not_fit_are_saved(source, tmp_path, codec, share):
    whole, target = tmp_path / "whole", tmp_path / "out"
    write_dump(WriteRequest((source,), (str(whole),), codec_flag=codec), Hooks())
    limit = int(whole.stat().st_size * share)
    report = write_dump(WriteRequest((source,), (str(target),), codec_flag=codec, limit=limit), Hooks())
    left = Path(report.names[0])
    assert left.stat().st_size <= limit
    saved = readable(left)
    assert saved == PAGES - report.missing
    headers = 4096 * 4 + 24 * PAGES
    each = (whole.stat().st_size - headers) / PAGES
    assert (limit - headers) / each - 2 <= saved < PAGES

    again = WriteRequest((source,), (str(target),), codec_flag=codec, resume=True, force=True)
    assert not write_dump(again, Hooks()).cause
    assert target.read_bytes() == whole.read_bytes()


def test_hole_reads_as_zeros_and_takes_no_room(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("r+b") as file:
        done = punch_hole(file.fileno(), 4096, 1 << 19)
    data = path.read_bytes()
    assert len(data) == 1 << 20
    assert data[4096 : 4096 + (1 << 19)] == (bytes(1 << 19) if done else b"x" * (1 << 19))
    assert not punch_hole(-1, 0, 4096)


def test_whoever_ends_the_write_is_not_kept_waiting(source, tmp_path, monkeypatch):
    asked: list[str] = []

    def halt() -> str:
        asked.append("")
        return "interrupted" if len(asked) > 3 else ""

    filled = fillup.fill_up
    monkeypatch.setattr(run, "fill_up", lambda plan, sink, encoder, stop: filled(plan, sink, encoder, halt))
    report = write_dump(WriteRequest((source,), (str(tmp_path / "out"),), codec_flag=NONE, limit=2 << 20), Hooks())
    saved = PAGES - report.missing
    assert saved == 3 * 64
    assert readable(Path(report.names[0])) == saved
