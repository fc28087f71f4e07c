"""The log beside a dump, for dumps whose memory cannot give it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from dumpfs.vfs.savedlog import SavedLogs

RELEASE = "6.1.192-dumpfs-tiny"
LOG = f"[    0.000000] Linux version {RELEASE} (me)\n[    9.000000] Kernel panic - not syncing: \x1b[31mit\n"


@pytest.fixture
def folder(tmp_path: Path, data: Callable[[str], Path]) -> Path:
    """A dump that ends before the pages of its log."""
    shutil.copy(data("mkd-incomplete-zlib-d31.kdump"), tmp_path / "vmcore")
    return tmp_path


@pytest.mark.parametrize("name", ["vmcore-dmesg.txt", "vmcore-dmesg-incomplete.txt", "dmesg.202611200101", "dmesg"])
def test_saved_log_is_shown_and_named(folder, name, capfd):
    (folder / name).write_text(LOG)
    assert main(["dmesg", str(folder / "vmcore")]) == 0
    out, err = capfd.readouterr()
    first, *rest = out.splitlines()
    assert first.startswith(f"-- the log is that of {name} beside the dump; memory cannot give it: page ")
    assert rest == LOG.replace("\x1b", "\\x1b").splitlines()
    assert f"the log is that of {name}" in err
    assert main(["info", str(folder / "vmcore")]) == 0
    out, _ = capfd.readouterr()
    assert out.startswith("panic         Kernel panic - not syncing: \\x1b[31mit\nlog           that of " + name)
    assert main(["cat", str(folder / "vmcore"), "dmesg"]) == 0


def test_without_one_the_reason_is_told(folder, capfd):
    assert main(["dmesg", str(folder / "vmcore")]) == 4
    assert "page 0x" in capfd.readouterr().err


def test_log_of_another_kernel_is_none(folder):
    (folder / "vmcore-dmesg.txt").write_text(LOG.replace(RELEASE, "5.10.0"))
    logs = SavedLogs(str(folder / "vmcore"))
    assert logs.find(RELEASE) is None
    assert logs.find("") is not None
    (folder / "vmcore-dmesg.txt").write_text("its first lines were lost\n")
    assert logs.find(RELEASE) is not None
    logs.close()


def test_what_is_no_plain_file_of_the_owner_is_left_alone(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("root's own")
    (folder / "vmcore-dmesg.txt").symlink_to(secret)
    os.mkfifo(folder / "dmesg.1")
    (folder / "dmesg.2").mkdir()
    (folder / "dmesg.3").write_text("of somebody else")
    os.chown(folder / "dmesg.3", 12345, 12345)
    logs = SavedLogs(str(folder / "vmcore"))
    assert sorted(logs.names()) == ["dmesg.1", "dmesg.2", "dmesg.3", "vmcore-dmesg.txt"]
    assert logs.find("") is None
    logs.close()


def test_of_many_dumps_in_a_folder_each_has_its_own(tmp_path):
    for stamp in ("202601010000", "202602020000"):
        (tmp_path / f"dump.{stamp}").write_bytes(b"")
        (tmp_path / f"dmesg.{stamp}").write_text(stamp)
    logs = SavedLogs(str(tmp_path / "dump.202602020000"))
    found = logs.find("")
    assert found is not None
    assert (found.name, found.text) == ("dmesg.202602020000", b"202602020000")
    logs.close()
    (tmp_path / "dump.202603030000").write_bytes(b"")  # which has none: that of another is not shown for it
    logs = SavedLogs(str(tmp_path / "dump.202603030000"))
    assert logs.find("") is None
    logs.close()


def test_a_folder_that_is_gone_has_none():
    logs = SavedLogs("/nonexistent/folder/dump")
    assert logs.names() == []
    assert logs.find("") is None
    logs.close()
    logs.close()
