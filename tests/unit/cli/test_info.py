"""`dumpfs info`."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from dumpfs.cli import info
from dumpfs.cli.main import main
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page
from tests.unit.cli.dumps import PAGE, stored, write_kdump


def facts(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Parsed output of `dumpfs info --json`."""
    assert main(["info", "--json", *arguments]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def rows(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The lines of `dumpfs info` by their name."""
    assert main(["info", *arguments]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return {line[:14].strip(): line[14:] for line in out.splitlines()}


def test_a_person_first_learns_what_the_kernel_died_of(data, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(data("mkd-raw-d31.kdump"))]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:12] == [
        "panic         Kernel panic - not syncing: sysrq triggered crash",
        "after         sysrq: Trigger a crash",
        "task          init (pid 1) on processor 1",
        "crash time    2026-11-20 16:02:28 UTC",
        "uptime        5 s (last line of the log)",
        "host          dumpfs-tiny",
        "kernel        6.1.192-dumpfs-tiny #1 SMP Fri Nov 20 15:50:52 UTC 2026",
        "build-id      2614fe8e8e84963741a5b92a9cf742a05b4b6927",
        "machine       x86_64, 2 processors",
        "memory        63.5 MiB",
        "level         31: left out are cache, private cache, user, free pages; zero pages share one copy",
        "complete      yes",
    ]


def test_file_facts_follow(data, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(capfd, str(data("mkd-raw-d31.kdump")))
    assert found["format"] == "kdump-compressed, version 6, 64-bit little-endian"
    assert found["compression"] == "none asked for; of 256 pages looked at: raw 100%"
    assert found["stored"] == "6088 pages, 23.8 MiB"
    assert found["excluded"] == "10160 pages, 39.7 MiB"
    assert found["phys_base"] == "0x0 (VMCOREINFO NUMBER(phys_base))"


def test_json_has_what_the_view_has_and_more(data, capfd: pytest.CaptureFixture[str]) -> None:
    dump = str(data("mkd-raw-d31.kdump"))
    assert main(["cat", dump, "info.json"]) == 0
    view = json.loads(capfd.readouterr().out)
    found = facts(capfd, dump)
    assert {name: found[name] for name in view} == view
    assert set(found) - set(view) == {"crash", "codecs"}
    assert found["schema"] == 1
    assert found["crash"] == {
        "panic": "Kernel panic - not syncing: sysrq triggered crash",
        "log_gaps": 0,
        "log_source": None,
        "message": "Kernel panic - not syncing: sysrq triggered crash",
        "cause": "sysrq: Trigger a crash",
        "where": "",
        "task": "init",
        "pid": 1,
        "cpu": 1,
        "uptime": 5.305203,
        "problem": "",
    }
    assert found["codecs"] == {"raw": 256}


def test_incomplete_dump_says_why_and_what_cannot_be_read(data, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(capfd, str(data("mkd-incomplete-zlib-d31.kdump")))
    assert found["panic"] == ("unknown, the log cannot be read: page 0x1c36 is lost (its descriptor was never written)")
    assert found["complete"] == "no: flagged incomplete by its writer: 4893 of 6088 pages are missing"
    assert found["lost"] == "4893 pages, 19.1 MiB"
    assert found["host"] == "dumpfs-tiny"


def test_incomplete_elf_dump_has_what_is_left(data, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(capfd, str(data("mkd-incomplete-elf-d31.elf")))
    assert found["complete"].startswith("no: makedumpfile ended it early")
    assert found["kernel"] == "6.1.192-dumpfs-tiny"
    assert found["level"] == "not recorded in the file"


def test_dump_that_says_nothing_of_its_kernel(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(capfd, write_kdump(tmp_path / "dump.kdump"))
    assert found["kernel"] == "unknown"
    assert found["panic"].startswith("unknown, the log cannot be read: dmesg: the dump has no VMCOREINFO")
    assert found["stored"] == "40 pages, 160.0 KiB"


def test_dump_without_pages_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    memory = Memory(PAGE, 8, {pfn: Page(kind=Kind.EXCLUDED) for pfn in range(8)})
    (tmp_path / "empty.kdump").write_bytes(build_kdump(memory, KdumpSpec(dump_level=16)).data)
    found = rows(capfd, str(tmp_path / "empty.kdump"))
    assert found["stored"] == "0 pages, 0 B"
    assert found["level"] == "16: left out are free pages"
    assert found["compression"] == "none asked for"


def test_mix_of_codecs_is_sampled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codecs = ["zlib", "lzo", "lzo", "raw"]
    memory = Memory(PAGE, 100, {pfn: stored(pfn, codecs[pfn % 4]) for pfn in range(100)})
    (tmp_path / "mixed.kdump").write_bytes(build_kdump(memory, KdumpSpec(status=2)).data)
    dump = str(tmp_path / "mixed.kdump")
    assert facts(capfd, dump)["codecs"] == {"lzo": 50, "zlib": 25, "raw": 25}
    assert rows(capfd, dump)["compression"] == "lzo asked for; of 100 pages looked at: lzo 50%, zlib 25%, raw 25%"


def test_sample_of_many_pages_is_spread_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "_SAMPLE", 10)
    memory = Memory(PAGE, 3000, {pfn * 3: stored(pfn, "zlib" if pfn < 500 else "raw") for pfn in range(1000)})
    (tmp_path / "large.kdump").write_bytes(build_kdump(memory, KdumpSpec(status=1)).data)
    assert facts(capfd, str(tmp_path / "large.kdump"))["codecs"] == {"zlib": 5, "raw": 5}


def test_large_dump_is_not_searched_for_vmcoreinfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "_SEARCHED_BYTES", PAGE)
    dump = write_kdump(tmp_path / "dump.kdump", spec=KdumpSpec(status=1, machine="x86_64"))
    assert rows(capfd, dump)["panic"] == (
        'unknown, the log cannot be read: the dump carries no VMCOREINFO; "dumpfs dmesg" searches its memory,'
        " which takes time"
    )


def test_control_characters_of_a_hostile_dump_are_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = KdumpSpec(status=1, release="6.1\x1b[2J\nfake")
    assert rows(capfd, write_kdump(tmp_path / "dump.kdump", spec=spec))["kernel"] == "6.1\\x1b[2J\\nfake"


def test_matching_vmlinux_exits_0(corpus, data, capfd: pytest.CaptureFixture[str]) -> None:
    vmlinux = str(corpus("tiny/vmlinux"))
    assert main(["info", "--vmlinux", vmlinux, str(data("mkd-raw-d31.kdump"))]) == 0
    build_id = "2614fe8e8e84963741a5b92a9cf742a05b4b6927"
    assert capfd.readouterr().out == f"{vmlinux} is this kernel's vmlinux: both have build-id {build_id}\n"


def test_vmlinux_of_a_dump_without_vmcoreinfo_is_recognised(corpus, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--vmlinux", str(corpus("tiny/vmlinux")), str(corpus("tiny/qemu-kaslr-novmci.kdump-zlib"))]
    assert main(["info", "--json", *arguments]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["schema"], found["matches"], found["method"]) == (1, True, "build-id")


def test_other_vmlinux_exits_1(corpus, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--vmlinux", str(corpus("tiny/vmlinux")), str(corpus("deb61/raw-d31.kdump"))]) == 1
    assert " is not this kernel's vmlinux: its build-id is 2614fe8e" in capfd.readouterr().out


def test_vmlinux_that_is_none_is_an_error(data, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vmlinuz").write_bytes(bytes(100))
    assert main(["info", "--vmlinux", str(tmp_path / "vmlinuz"), str(data("mkd-raw-d31.kdump"))]) == 3
    assert "vmlinuz: is not an ELF file" in capfd.readouterr().err


def test_complete_is_said_only_of_what_was_looked_at(data, tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every other page record is emptied; the headers know nothing of that."""
    raw = bytearray(data("mkd-raw-d31.kdump").read_bytes())
    block, sub, bitmaps = struct.unpack_from("<3I", raw, 428)
    table = block * (1 + sub + bitmaps)
    for index in range(1000, 5000, 2):
        raw[table + 24 * index : table + 24 * index + 24] = bytes(24)
    path = tmp_path / "dump"
    path.write_bytes(raw)
    assert main(["info", str(path)]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("complete"))
    assert re.fullmatch(r"complete +no: \d+ of 256 pages looked at cannot be read; dumpfs check looks at all", line)
