"""What people type first, or wrongly: each gets an answer that leads on."""

from __future__ import annotations

import json
import os
import pty
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.cli.common import HelpFormatter
from dumpfs.cli.main import VERBS, main, top_parser, verb_parser


@pytest.fixture
def dump(data: Callable[[str], Path]) -> str:
    return str(data("mkd-raw-d31.kdump"))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["inof", "x"], "did you mean dumpfs info?"),
        (["unmount", "x"], "did you mean dumpfs umount?"),
        (["log", "x"], "did you mean dumpfs dmesg?"),
        (["frobnicate", "x"], "one of mount, umount"),
        (["info", "--jsno", "x"], "did you mean --json?"),
        (["info", "--js", "x"], "did you mean --json?"),
        (["check", "--job", "2", "x"], "did you mean --jobs?"),
        (["info", "--frobnicate", "x"], "dumpfs info --help"),
        (["help", "inof"], "did you mean dumpfs info?"),
    ],
    ids=" ".join,
)
def test_mistyped_words_get_the_nearest(words, hint, capfd):
    assert main(words) == 2
    assert f"hint: {hint}" in capfd.readouterr().err


def test_a_dump_without_a_verb_gets_the_command(tmp_path, capfd):
    path = tmp_path / "a dump"
    path.touch()
    assert main([str(path), "/mnt"]) == 2
    assert f"hint: dumpfs mount '{path}' /mnt" in capfd.readouterr().err
    assert main([str(path)]) == 2
    assert f"hint: dumpfs info '{path}'" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["-V"], ["--version"], ["version"]], ids=" ".join)
def test_version_by_all_its_names(words, capfd):
    try:
        code = main(words)
    except SystemExit as exc:
        code = exc.code
    assert not code
    assert capfd.readouterr().out.startswith("dumpfs ")


def test_help_of_a_verb(capfd):
    assert main(["help", "cat"]) == 0
    assert "usage: dumpfs cat" in capfd.readouterr().out
    assert main(["help"]) == 0
    assert "verbs:" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("dmseg", "did you mean dmesg?"),
        ("tasks/1/stak", "did you mean tasks/1/stack?"),
        ("tasks/99999/stack", "dumpfs ls DUMP tasks/ lists what is there"),
        ("tasks", "dumpfs ls DUMP PATH lists it"),
        ("nothing/like/it", "dumpfs ls DUMP lists what is there"),
    ],
)
def test_mistyped_files_get_the_nearest(dump, path, hint, capfd):
    assert main(["cat", dump, path]) == 2
    assert f"hint: {hint}" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["info", "--json"], ["check", "--json", "--jobs", "1"]], ids=" ".join)
def test_failures_are_json_where_json_was_asked_for(words, tmp_path, capfd):
    path = tmp_path / "text"
    path.write_text("no dump\n")
    assert main([*words, str(path)]) == 3
    out, err = capfd.readouterr()
    facts = json.loads(out)
    assert facts["exit"] == 3
    assert facts["error"] == f"{path}: is a text file, not a dump"
    assert facts["hint"]
    assert facts["error"] in err


@pytest.mark.parametrize("verb", ["", *VERBS])
@pytest.mark.parametrize("columns", [80, 132])
def test_help_fits_the_terminal(verb, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = (verb_parser(verb) if verb else top_parser()).format_help()
    too_long = [line for line in text.splitlines() if len(line) > columns and " " in line.strip()]
    assert too_long == []


def test_wrapped_help_keeps_words_and_indents_alike():
    formatter = HelpFormatter("x")
    text = formatter._fill_text("plain\n  name   " + "word " * 40 + "\n\nlast", 50, "")
    lines = text.splitlines()
    assert lines[0] == "plain"
    assert lines[-1] == "last"
    assert text.count("word") == 40
    assert {line[:9].strip() for line in lines[2:-2]} == {""}


def test_a_dump_is_not_written_to_a_terminal(dump, monkeypatch, capfd):
    master, slave = pty.openpty()
    keep = os.dup(1)
    try:
        os.dup2(slave, 1)
        assert main(["write", "-F", dump]) == 2
    finally:
        os.dup2(keep, 1)
        for descriptor in (master, slave, keep):
            os.close(descriptor)
    assert "a dump is no text for a terminal" in capfd.readouterr().err


def test_ls_lists_what_a_mount_would(dump, capfd):
    assert main(["ls", dump]) == 0
    names = capfd.readouterr().out.split()
    assert {"README", "dmesg", "tasks/", "hmem", "vmcore"} <= set(names)
    assert "eraseinfo" not in names
    assert main(["ls", dump, "/tasks/1/"]) == 0
    assert capfd.readouterr().out.split() == ["comm", "maps", "registers", "stack", "status", "task/"]
    assert main(["ls", dump, "dmesg"]) == 0
    assert capfd.readouterr().out == "dmesg\n"
    assert main(["ls", dump, "tusks"]) == 2
    assert "did you mean tasks?" in capfd.readouterr().err


@pytest.fixture
def crashes(tmp_path: Path, data: Callable[[str], Path]) -> Path:
    """A /var/crash with a whole dump, an incomplete one, a folder without one, and a cut file."""
    for stamp, name in (("1", "mkd-raw-d31.kdump"), ("2", "mkd-incomplete-zlib-d31.kdump")):
        (tmp_path / stamp).mkdir()
        shutil.copy(data(name), tmp_path / stamp / "vmcore")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "notes.txt").write_text("nothing\n")
    (tmp_path / "cut.kdump").write_bytes(data("mkd-raw-d31.kdump").read_bytes()[:3000])
    return tmp_path


def test_folder_of_dumps_is_a_table(crashes, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["info", str(crashes)]) == 4
    head, *rows = capfd.readouterr().out.splitlines()
    assert head.split() == ["dump", "crashed", "kernel", "state", "panic"]
    assert [row.split()[0] for row in rows] == ["1", "2", "cut.kdump"]
    assert rows[0].endswith("complete    sysrq triggered crash")
    assert "incomplete" in rows[1]
    assert "error" in rows[2]
    assert str(crashes) not in rows[2]
    assert all(len(row) <= 100 for row in rows)


def test_several_dumps_are_told_of_one_after_the_other(crashes, capfd):
    paths = [str(crashes / "cut.kdump"), str(crashes / "1" / "vmcore")]
    assert main(["info", *paths]) == 4
    out, err = capfd.readouterr()
    assert [line for line in out.splitlines() if line.startswith("==>")] == [f"==> {path} <==" for path in paths]
    assert "panic         Kernel panic" in out
    assert "the sub header" in err
    assert main(["info", "--json", *paths]) == 4
    told = json.loads(capfd.readouterr().out)
    assert [row["path"] for row in told] == paths
    assert set(told[0]) == {"path", "error", "hint", "exit"}
    assert told[1]["crash"]["message"] == "Kernel panic - not syncing: sysrq triggered crash"


def test_files_that_are_no_dumps_at_all_are_an_error(tmp_path, capfd):
    for name in "ab":
        (tmp_path / name).write_text("no dump\n")
    assert main(["info", str(tmp_path / "a"), str(tmp_path / "b")]) == 3
    assert main(["info", str(tmp_path)]) == 3
    assert capfd.readouterr().out == ""
