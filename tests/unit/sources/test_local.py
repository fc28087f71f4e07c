"""Local files: what became of them since they were opened."""

from __future__ import annotations

import errno
import os

import pytest

from dumpfs.errors import SourceError
from dumpfs.sources.local import FileSource


@pytest.fixture
def source(tmp_path):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "dump"
    path.write_bytes(b"some bytes")
    opened = FileSource(path)
    yield opened
    opened.close()


def test_untouched_file_has_not_changed(source):
    assert source.change() is None


def test_truncated_file(source):
    os.truncate(source.path, 3)
    assert source.change() == "truncated from 10 to 3 bytes"


def test_grown_file(source):
    os.truncate(source.path, 12)
    assert source.change() == "grown from 10 to 12 bytes"


def test_removed_file(source):
    os.unlink(source.path)
    assert "removed" in source.change()


def test_replaced_file(source, tmp_path):
    (tmp_path / "other").write_bytes(b"some bytes")
    os.replace(tmp_path / "other", source.path)
    assert "replaced" in source.change()


def test_file_is_looked_for_in_its_folder_and_not_by_its_path(source, tmp_path):
    os.rename(tmp_path / "folder", tmp_path / "away")
    assert source.change() is None


def test_file_behind_a_link_has_not_changed(source, tmp_path):
    (tmp_path / "link").symlink_to(source.path)
    behind = FileSource(tmp_path / "link")
    assert behind.change() is None
    behind.close()


def test_closing_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "dump").write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        FileSource(tmp_path / "dump").close()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("number", "user", "hint"),
    [
        (errno.EACCES, 1000, "change its mode"),
        (errno.EACCES, 0, "kept out of other users' mounts"),
        (errno.ENOTCONN, 0, "dumpfs umount"),
    ],
)
def test_file_that_cannot_be_opened_has_a_hint(monkeypatch, number, user, hint):
    def refuse(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(SourceError) as failure:
        FileSource("dump")
    assert failure.value.message == f"dump: {os.strerror(number)}"
    assert hint in failure.value.hint
