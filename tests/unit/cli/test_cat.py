"""`dumpfs cat`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from tests.unit.cli.dumps import PAGE, content, flat_memory, write_kdump


@pytest.fixture
def dump(tmp_path: Path) -> str:
    return write_kdump(tmp_path / "dump.kdump")


def test_file_of_the_tree_is_printed(dump: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", dump, "hmem"]) == 0
    assert capfdbinary.readouterr() == (flat_memory(), b"")


@pytest.mark.parametrize("view", ["pages/5", "/pages/5", "pages/0x5"])
def test_page_is_printed_by_name(dump: str, view: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", dump, view]) == 0
    assert capfdbinary.readouterr().out == content(5)


def test_text_view_is_printed(dump: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", dump, "info.json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["pages"]["stored"] == 40


@pytest.mark.parametrize(
    ("options", "first", "stop"),
    [
        (["--offset", "4096"], 4096, None),
        (["--offset", "0x10", "--count", "3"], 16, 19),
        (["--count", "8K"], 0, 8192),
        (["--count", "0"], 0, 0),
        (["--offset", "1T"], 0, 0),
        (["--offset", "100", "--count", "1G"], 100, None),
    ],
    ids=str,
)
def test_offset_and_count_cut_a_piece(
    dump: str, options: list[str], first: int, stop: int | None, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["cat", *options, dump, "hmem"]) == 0
    assert capfdbinary.readouterr().out == flat_memory()[first:stop]


def test_output_ends_before_a_corrupt_page(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    dump = write_kdump(tmp_path / "bad.kdump", {9})
    assert main(["cat", "--offset", "100", dump, "hmem"]) == 4
    out, err = capfdbinary.readouterr()
    assert out == flat_memory()[100 : 9 * PAGE]
    assert err.startswith(b"dumpfs: page 0x9 is corrupt")


def test_excluded_page_is_an_error_with_holes_error(dump: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", "-o", "holes=error", dump, "hmem"]) == 4
    out, err = capfdbinary.readouterr()
    assert out == flat_memory()[: 0x10 * PAGE]
    assert err == b"dumpfs: page 0x10 is excluded (left out by the dump level)\n"


def test_excluded_page_has_no_file(dump: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", dump, "pages/16"]) == 4
    assert capfdbinary.readouterr() == (b"", b"dumpfs: page 0x10 is excluded (left out by the dump level)\n")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("pages", "pages: is a directory"),
        ("/", "/: is a directory"),
        ("nonsense", "nonsense: no such file in the tree"),
        ("pages/32", "pages/32: no such file in the tree"),
        ("../etc/passwd", "../etc/passwd: no such file in the tree"),
    ],
)
def test_name_that_is_no_file_is_a_usage_error(
    dump: str, view: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["cat", dump, view]) == 2
    assert capfd.readouterr().err.startswith(f"dumpfs: {message}\nhint: ")


def test_view_that_a_dump_cannot_offer_tells_why(dump: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", dump, "vmcoreinfo"]) == 6
    assert capfd.readouterr().err.startswith("dumpfs: vmcoreinfo: the dump has no VMCOREINFO")


@pytest.mark.parametrize("option", ["--offset=-1", "--count=x", "--offset=0xg"])
def test_malformed_number_is_a_usage_error(dump: str, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", option, dump, "hmem"]) == 2
    assert "dumpfs: cat: argument --" in capfd.readouterr().err


def test_view_must_be_named(dump: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", dump]) == 2
    assert "VIEW" in capfd.readouterr().err
