"""The size of a dump, told before it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from dumpfs.writer import estimate
from dumpfs.writer.pipeline.run import Hooks, WriteReport, WriteRequest, write_dump
from tests.build.kdump import KdumpSpec, build_kdump
from tests.unit.writer.test_write import sample

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
