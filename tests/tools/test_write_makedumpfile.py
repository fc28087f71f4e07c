"""`dumpfs write` beside makedumpfile: the same pages, the same headers, and each reads the other's files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dumpfs.formats import open_image

pytestmark = [
    pytest.mark.tool,
    pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="needs makedumpfile"),
]
SOURCE = "tiny/kdump-kaslr.vmcore"


def makedumpfile(*args: object, stdin: bytes | None = None) -> None:
    done = subprocess.run(["makedumpfile", *map(str, args)], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dumpfs(*args: object, stdin: bytes | None = None) -> bytes:
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", "--message-level", "4", *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def assert_same_dump(ours: Path, theirs: Path) -> None:
    """Both store the same pages with the same content, and their headers agree in every field."""
    a, b = open_image([str(ours)]), open_image([str(theirs)])
    try:
        assert a.meta.header == b.meta.header
        assert a.notes() == b.notes()
        assert list(a.stored.runs()) == list(b.stored.runs())
        for first, stop in b.stored.runs():
            for pfn in range(first, stop, 1024):
                count = min(1024, stop - pfn)
                assert a.read_run(pfn, count) == b.read_run(pfn, count)
    finally:
        a.close()
        b.close()


@pytest.mark.parametrize("level", range(32))
def test_level_stores_the_same_pages(corpus, tmp_path, level):
    source = corpus(SOURCE)
    makedumpfile("-l", "-d", level, source, tmp_path / "theirs")
    dumpfs("-l", "-d", level, source, tmp_path / "ours")
    assert_same_dump(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("codec", ["-c", "-l", None])
def test_makedumpfile_filters_what_we_wrote(corpus, tmp_path, codec):
    source = corpus(SOURCE)
    options = [codec] if codec else []
    dumpfs(*options, "-d", 0, source, tmp_path / "ours")
    makedumpfile("-c", "-d", 31, tmp_path / "ours", tmp_path / "again")
    makedumpfile("-c", "-d", 31, source, tmp_path / "direct")
    assert_same_dump(tmp_path / "again", tmp_path / "direct")


@pytest.mark.parametrize("form", ["-c", "-l", "-E"])
def test_makedumpfile_reads_the_log_of_what_we_wrote(corpus, tmp_path, form):
    dumpfs(form, "-d", 31, corpus(SOURCE), tmp_path / "ours")
    makedumpfile("--dump-dmesg", tmp_path / "ours", tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == corpus("tiny/kdump-kaslr.log.expected").read_bytes()


def test_makedumpfile_rearranges_our_flattened_stream(corpus, tmp_path):
    source = corpus(SOURCE)
    stream = dumpfs("-F", "-l", "-d", 31, source)
    makedumpfile("-R", tmp_path / "theirs", stdin=stream)
    dumpfs("-l", "-d", 31, source, tmp_path / "plain")
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "plain").read_bytes()


def test_we_rearrange_its_flattened_stream_as_it_does(corpus, tmp_path):
    done = subprocess.run(
        ["makedumpfile", "-F", "-c", "-d", "31", "--message-level", "0", corpus(SOURCE)],
        capture_output=True,
        check=True,
    )
    makedumpfile("-R", tmp_path / "theirs", stdin=done.stdout)
    dumpfs("-R", tmp_path / "ours", stdin=done.stdout)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_makedumpfile_joins_our_parts(corpus, tmp_path):
    source = corpus(SOURCE)
    parts = [tmp_path / name for name in "abc"]
    dumpfs("--split", "-l", "-d", 31, source, *parts)
    makedumpfile("--reassemble", *parts, tmp_path / "joined")
    dumpfs("-l", "-d", 31, source, tmp_path / "plain")
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "plain").read_bytes()


def test_we_join_its_parts(corpus, tmp_path):
    parts = [tmp_path / name for name in "ab"]
    makedumpfile("--split", "--splitblock-size", 1024, "-c", "-d", 31, corpus(SOURCE), *parts)
    makedumpfile("--reassemble", *parts, tmp_path / "theirs")
    dumpfs("--reassemble", *parts, tmp_path / "ours")
    assert_same_dump(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("form", ["-l", "-E"])
def test_no_more_secrets_than_its_kdump_at_level_31(corpus, tmp_path, form):
    source = corpus(SOURCE)
    makedumpfile("-d", 31, source, tmp_path / "theirs")
    dumpfs(form, "-d", 31, source, tmp_path / "packed")
    dumpfs("-d", 31, tmp_path / "packed", tmp_path / "ours")
    secret = b"USERSECRET-0123456789"
    assert (tmp_path / "ours").read_bytes().count(secret) <= (tmp_path / "theirs").read_bytes().count(secret)
