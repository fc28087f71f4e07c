"""`dumpfs check`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dumpfs.cli import check
from dumpfs.cli.main import main
from dumpfs.codecs import registry
from dumpfs.errors import CodecUnavailableError
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.unit.cli.dumps import MAX_PFN, memory, write_kdump


def report(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    """Exit code and parsed output of `dumpfs check --json`."""
    code = main(["check", "--json", *arguments])
    out, err = capfd.readouterr()
    assert err == ""
    return code, json.loads(out)


def test_clean_dump_exits_0(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dump = write_kdump(tmp_path / "dump.kdump")
    code, found = report(capfd, dump)
    assert code == 0
    assert found == {
        "schema": 1,
        "dump": [dump],
        "result": "clean",
        "complete": True,
        "incomplete_reason": "",
        "page_size": 4096,
        "pages": {"ram": 48, "readable": 40, "partial": 0, "excluded": 8, "lost": 0, "corrupt": 0},
        "bad": [],
        "bad_omitted": 0,
    }


def test_corrupt_pages_exit_4_and_are_listed_as_ranges(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = report(capfd, write_kdump(tmp_path / "bad.kdump", {3, 4, 5, 0x33}))
    assert code == 4
    assert found["result"] == "corrupt"
    assert found["pages"]["corrupt"] == 4  # type: ignore[index]
    bad = found["bad"]
    assert isinstance(bad, list)
    assert [(b["state"], b["first"], b["stop"]) for b in bad] == [("corrupt", 3, 6), ("corrupt", 0x33, 0x34)]
    assert all(b["detail"] for b in bad)


def test_missing_part_exits_8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = split_parts(memory(), KdumpSpec(status=1), [0, 32, MAX_PFN])[0]
    (tmp_path / "dump.1").write_bytes(part.data)
    code, found = report(capfd, str(tmp_path / "dump.1"))
    assert (code, found["result"]) == (8, "incomplete")
    assert found["pages"] == {"ram": 48, "readable": 24, "partial": 0, "excluded": 8, "lost": 16, "corrupt": 0}


def test_whole_split_set_is_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = []
    for i, part in enumerate(split_parts(memory(), KdumpSpec(status=1), [0, 32, MAX_PFN])):
        names.append(str(tmp_path / f"dump.{i}"))
        Path(names[-1]).write_bytes(part.data)
    assert report(capfd, *reversed(names))[0] == 0


def test_dump_cut_short_exits_8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    built = build_kdump(memory(), KdumpSpec(status=1))
    offset, _ = built.blobs[0x35]
    (tmp_path / "cut.kdump").write_bytes(built.data[:offset])
    code, found = report(capfd, str(tmp_path / "cut.kdump"))
    assert code == 8
    assert found["pages"]["lost"] == 11  # type: ignore[index]


def test_corrupt_and_lost_together_exit_4(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = split_parts(memory({3}), KdumpSpec(status=1), [0, 32, MAX_PFN])[0]
    (tmp_path / "dump.1").write_bytes(part.data)
    assert report(capfd, str(tmp_path / "dump.1"))[0] == 4


def test_text_names_ranges_and_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dump = write_kdump(tmp_path / "bad.kdump", {3, 4, 5})
    assert main(["check", dump]) == 4
    lines = capfd.readouterr().out.splitlines()
    assert lines[:5] == [
        "ram                48 pages   192.0 KiB",
        "readable           37 pages   148.0 KiB",
        "excluded            8 pages    32.0 KiB",
        "lost                0 pages",
        "corrupt             3 pages    12.0 KiB",
    ]
    assert lines[5].startswith("pages 0x3 to 0x5 (3): corrupt: zlib: ")
    assert lines[6] == f"{dump}: corrupt: 3 pages cannot be read"


def test_lost_pages_with_gaps_take_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = split_parts(memory(), KdumpSpec(status=1), [0, 8, MAX_PFN])[0]
    (tmp_path / "dump.1").write_bytes(part.data)
    assert main(["check", str(tmp_path / "dump.1")]) == 8
    assert "32 of the pages 0x8 to 0x3f (56): lost: its part of the split set is missing\n" in capfd.readouterr().out


def test_quiet_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-q", write_kdump(tmp_path / "bad.kdump", {3})]) == 4
    assert capfd.readouterr() == ("", "")


def test_missing_codec_is_not_called_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._opened, registry.ZLIB, CodecUnavailableError("zlib", "deflate"))
    assert main(["check", write_kdump(tmp_path / "dump.kdump")]) == 5
    assert capfd.readouterr() == (
        "",
        "dumpfs: zlib: no library for zlib pages is installed\nhint: pip install deflate\n",
    )


def test_several_jobs_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    dump = write_kdump(tmp_path / "bad.kdump", {3, 0x33})
    one = report(capfd, "--jobs", "1", dump)
    monkeypatch.setattr(check, "_BYTES_PER_JOB", 4096)
    assert report(capfd, "--jobs", "3", dump) == one


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_jobs_must_be_positive(tmp_path: Path, jobs: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"--jobs={jobs}", "nowhere"]) == 2
    assert "--jobs" in capfd.readouterr().err


def test_interrupt_prints_the_counts_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dumpfs.formats.kdump.image import KdumpImage

    def interrupted(self: KdumpImage, first: int, count: int) -> tuple[bytes, bytes]:
        raise KeyboardInterrupt

    monkeypatch.setattr(KdumpImage, "read_run", interrupted)
    code, found = report(capfd, write_kdump(tmp_path / "dump.kdump"))
    assert (code, found["result"]) == (130, "interrupted")
    assert found["pages"] == {"ram": 48, "readable": 0, "partial": 0, "excluded": None, "lost": 0, "corrupt": 0}


def test_sigint_ends_every_process_with_130(tmp_path: Path) -> None:
    """The real signal, sent to the whole group as a terminal does, while two processes decode."""
    dump = write_kdump(tmp_path / "dump.kdump")
    program = """
import sys, time
from dumpfs.cli import check, main
from dumpfs.formats.kdump.image import KdumpImage
check._BYTES_PER_JOB = 4096
def slow(self, first, count):
    print("reading", flush=True)
    time.sleep(60)
KdumpImage.read_run = slow
sys.exit(main.main(["check", "--jobs", "2", sys.argv[1]]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, dump], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        os.killpg(process.pid, signal.SIGINT)
        out = process.stdout.read()
        assert process.wait(timeout=20) == 130
    assert "interrupted: the counts above are of what was read so far" in out


def test_real_incomplete_dump_exits_8(data, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = report(capfd, str(data("mkd-incomplete-zlib-d31.kdump")))
    assert code == 8
    assert found["pages"] == {
        "ram": 16248,
        "readable": 1195,
        "partial": 0,
        "excluded": 10160,
        "lost": 4893,
        "corrupt": 0,
    }


def test_real_dump_is_clean(data, capfd: pytest.CaptureFixture[str]) -> None:
    assert report(capfd, str(data("mkd-raw-d31.kdump")))[0] == 0
