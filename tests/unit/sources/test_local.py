"""Local files: what became of them since they were opened, and what is fetched before it is read."""

from __future__ import annotations

import errno
import os
from contextlib import closing

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
    assert source.change() == "grown from 10 to 12 bytes: mount it again to see the rest"


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


MIB = 1 << 20


class Kernel:
    """Stands in for the kernel where it is asked what is in memory, and told what will be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: Exception | None) -> None:
        self.failure = failure
        self.asked: list[int] = []
        self.advised: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(os, "posix_fadvise", self.advise)

    def preadv(self, _fd: int, _buffers: object, offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        self.asked.append(offset)
        if self.failure is not None:
            raise self.failure
        return 1

    def advise(self, _fd: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        self.advised.append((offset, size))


NOT_IN_MEMORY = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (32 * MIB // 256))
    return path


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_piece_that_comes_after_those_of_all_readers_is_fetched(large, monkeypatch, readers):
    kernel = Kernel(monkeypatch, NOT_IN_MEMORY)
    with closing(FileSource(large, readers=readers)) as source:
        source.read_at(0, 2 * MIB)
        assert kernel.asked == []  # nobody knows yet in which order it will be read
        second = readers * 2 * MIB
        assert source.read_at(second, 2 * MIB) == bytes(range(256)) * (2 * MIB // 256)
    assert kernel.advised == [(second + (readers + 1) * 2 * MIB, 2 * MIB)]


def test_piece_is_looked_at_in_several_places(large, monkeypatch):
    kernel = Kernel(monkeypatch, None)
    with closing(FileSource(large, readers=1)) as source:
        for number in range(3):
            source.read_at(number * 6 * MIB, 6 * MIB)
    assert kernel.asked == [18 * MIB, 20 * MIB, 22 * MIB, 24 * MIB, 26 * MIB, 28 * MIB]
    assert kernel.advised == []


def test_reading_into_a_buffer_fetches_too(large, monkeypatch):
    real = os.preadv
    kernel = Kernel(monkeypatch, NOT_IN_MEMORY)
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, buffers, offset, *flags: (kernel.preadv if flags else real)(fd, buffers, offset, *flags),
    )
    with closing(FileSource(large, readers=1)) as source:
        for number in range(2):
            assert source.read_into(number * MIB, memoryview(bytearray(MIB))) == MIB
    assert kernel.advised == [(3 * MIB, MIB)]


@pytest.mark.parametrize(
    ("readers", "size", "second"), [(0, 4 * MIB, 4 * MIB), (2, MIB - 1, MIB), (2, MIB, 4 * MIB), (2, MIB, 0)]
)
def test_nothing_is_fetched_for_small_reads_or_such_in_no_order(large, monkeypatch, readers, size, second):
    kernel = Kernel(monkeypatch, NOT_IN_MEMORY)
    with closing(FileSource(large, readers=readers)) as source:
        source.read_at(0, size)
        source.read_at(second, size)
    assert kernel.asked == []


@pytest.mark.parametrize("failure", [OSError(errno.EOPNOTSUPP, "Operation not supported"), NotImplementedError()])
def test_file_that_does_not_say_what_is_in_memory_is_not_asked_again(large, monkeypatch, failure):
    kernel = Kernel(monkeypatch, failure)
    with closing(FileSource(large, readers=2)) as source:
        for number in range(4):
            assert len(source.read_at(number * MIB, MIB)) == MIB
    assert kernel.asked == [4 * MIB]
    assert kernel.advised == []


def test_python_that_cannot_ask_reads_as_ever(large, monkeypatch):
    kernel = Kernel(monkeypatch, NOT_IN_MEMORY)
    monkeypatch.setattr("dumpfs.sources.local._NOWAIT", 0)
    with closing(FileSource(large, readers=2)) as source:
        for number in range(4):
            assert len(source.read_at(number * MIB, MIB)) == MIB
    assert kernel.asked == []


def test_refused_advice_does_no_harm(large, monkeypatch):
    kernel = Kernel(monkeypatch, NOT_IN_MEMORY)

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with closing(FileSource(large, readers=2)) as source:
        for number in range(2):
            assert len(source.read_at(number * MIB, MIB)) == MIB
    assert kernel.asked == [4 * MIB]


def test_real_file_is_read_as_ever_with_readers(large):
    with closing(FileSource(large, readers=2)) as source, closing(FileSource(large)) as plain:
        for offset in range(0, 36 * MIB, 3 * MIB):
            assert source.read_at(offset, 3 * MIB) == plain.read_at(offset, 3 * MIB)
