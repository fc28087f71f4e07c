"""What may lie under the name of a dump that is about to be written, and who else may be writing it."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dumpfs.errors import DumpfsError, IncompleteDumpError, UsageError, WriteError
from dumpfs.writer.target import Target
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Memory, Page

NOBODY = 65534
PAGE = 4096
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "dump.partial"


@pytest.fixture
def dst(tmp_path: Path) -> str:
    return str(tmp_path / "dump")


def finished(target: Target, data: bytes = b"whole") -> None:
    os.pwrite(target.fd, data, 0)
    target.finish()
    target.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A file that nobody may touch."""
    path = tmp_path / "elsewhere"
    path.write_bytes(b"precious")
    path.chmod(0o644)
    yield path
    assert path.read_bytes() == b"precious"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_symbolic_link_is_never_followed(dst, partial, elsewhere, tmp_path, force, dangling):
    partial.symlink_to(tmp_path / "nowhere" if dangling else elsewhere)
    if not force:
        with pytest.raises(UsageError, match="is not a file"):
            Target(dst)
        assert partial.is_symlink()
    else:
        finished(Target(dst, force=True))
        assert not Path(dst).is_symlink()
        assert Path(dst).read_bytes() == b"whole"
    assert not (tmp_path / "nowhere").exists()


def test_symbolic_link_is_not_resumed(dst, partial, elsewhere):
    partial.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="symbolic link"):
        Target(dst, resume=True)


@needs_root
@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_file_of_another_user_is_not_adopted(dst, partial, mode):
    partial.write_bytes(b"left")
    partial.chmod(mode)
    os.chown(partial, NOBODY, NOBODY)
    for more in ({}, {"resume": True}):
        with pytest.raises(UsageError, match="belongs to user 65534"):
            Target(dst, **more)
    finished(Target(dst, force=True))
    what = Path(dst).stat()
    assert (what.st_uid, stat.S_IMODE(what.st_mode)) == (0, 0o600)


def test_file_with_a_second_name_is_not_resumed(dst, partial, tmp_path):
    partial.write_bytes(b"left")
    os.link(partial, tmp_path / "second")
    with pytest.raises(UsageError, match="has 2 names"):
        Target(dst, resume=True)
    finished(Target(dst, force=True))
    assert (tmp_path / "second").read_bytes() == b"left"


def test_resumed_file_is_closed_to_others(dst, partial):
    partial.write_bytes(b"left")
    partial.chmod(0o644)
    target = Target(dst, resume=True)
    assert stat.S_IMODE(os.fstat(target.fd).st_mode) == 0o600
    target.close()


@pytest.mark.parametrize("more", [{}, {"force": True}, {"resume": True}], ids=str)
def test_second_writer_is_refused_and_told_who_writes(dst, partial, more):
    first = Target(dst)
    with pytest.raises(WriteError, match=rf"is being written by process {os.getpid()} \(.+\)"):
        Target(dst, **more)
    finished(first)
    assert Path(dst).read_bytes() == b"whole"


def test_name_of_a_process_is_a_strangers(dst, partial, monkeypatch):
    first = Target(dst)
    name = Path("/proc/self/comm").read_bytes()
    Path("/proc/self/comm").write_bytes(b"\x1b[31m\nx")
    try:
        with pytest.raises(WriteError) as caught:
            Target(dst, force=True)
    finally:
        Path("/proc/self/comm").write_bytes(name)
    assert str(caught.value).isprintable()
    first.close()


def test_lock_lasts_while_a_worker_has_the_file(dst, partial):
    target = Target(dst)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    target.close()
    with pytest.raises(WriteError, match="being written"):
        Target(dst, force=True)
    os.close(writer)
    os.waitpid(pid, 0)
    os.close(reader)
    finished(Target(dst, force=True))


def test_file_that_was_replaced_is_not_renamed(dst, partial):
    target = Target(dst)
    partial.unlink()
    partial.write_bytes(b"another's")
    with pytest.raises(WriteError, match="removed or replaced"):
        target.finish()
    assert target.abandon() == dst
    target.discard()
    target.close()
    assert partial.read_bytes() == b"another's"
    assert not Path(dst).exists()


@pytest.mark.parametrize("force", [False, True])
def test_dst_that_appears_meanwhile_is_replaced_only_by_force(dst, partial, force):
    target = Target(dst, force=force)
    os.pwrite(target.fd, b"whole", 0)
    Path(dst).write_bytes(b"appeared")
    if force:
        target.finish()
        assert Path(dst).read_bytes() == b"whole"
    else:
        with pytest.raises(WriteError, match="appeared while the dump was written"):
            target.finish()
        assert Path(dst).read_bytes() == b"appeared"
        assert partial.read_bytes() == b"whole"
    target.close()


def test_incomplete_dump_takes_no_name_that_something_has(dst, partial):
    target = Target(dst)
    Path(dst).write_bytes(b"appeared")
    assert target.abandon() == str(partial)
    target.close()
    assert Path(dst).read_bytes() == b"appeared"


@needs_root
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_link_or_pipe_of_another_user_gets_no_dump(dst, kind):
    if kind == "link":
        os.symlink("/dev/null", dst)
    else:
        os.mkfifo(dst)
    os.chown(dst, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UsageError, match="of user 65534"):
        Target(dst)


def test_link_to_a_device_of_ours_is_written(dst):
    os.symlink("/dev/null", dst)
    target = Target(dst)
    assert target.direct
    target.close()


def test_pipe_without_a_reader_is_waited_for_until_told_to_stop(dst):
    os.mkfifo(dst)
    asked = iter(["", "", "ended by SIGTERM"])
    with pytest.raises(IncompleteDumpError, match="nobody reads this pipe: ended by SIGTERM"):
        Target(dst, stop=lambda: next(asked))


def test_locks_are_done_without_where_there_are_none(dst, monkeypatch):
    def refuse(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    finished(Target(dst))
    assert Path(dst).read_bytes() == b"whole"


def test_folder_under_the_name_is_refused(dst, partial):
    partial.mkdir()
    for force in (False, True):
        with pytest.raises(DumpfsError, match="is not a file"):
            Target(dst, force=force)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claim") / "source.kdump"
    pages = {pfn: Page(os.urandom(PAGE)) for pfn in range(800)}
    path.write_bytes(build_kdump(Memory(PAGE, 900, pages), KdumpSpec()).data)
    return path


def start(*words: object, **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


def said(process: subprocess.Popen[bytes]) -> bytes:
    """What an ended process has said on standard error."""
    assert process.stderr is not None
    with process.stderr as stream:
        return stream.read()


def wait_for(what, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def is_waiting(process: subprocess.Popen[bytes]) -> bool:
    """Whether it sleeps, and hears of SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return "State:\tS" in status and bool(caught >> signal.SIGTERM - 1 & 1)


def waiting_in(pipe: int) -> int:
    """Bytes that wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("form", [["-c"], ["-F", "-c"]], ids=" ".join)
def test_signal_ends_a_write_to_a_pipe_that_nobody_reads(source, tmp_path, form):
    os.mkfifo(tmp_path / "pipe")
    process = start(*form, source, tmp_path / "pipe")
    wait_for(lambda: is_waiting(process), process)
    process.terminate()
    assert process.wait(60) == 8
    assert b"ended by SIGTERM" in said(process)


@pytest.mark.parametrize("signals", [1, 2])
def test_signal_ends_a_write_to_a_reader_that_stalls(source, tmp_path, signals):
    reader, writer = os.pipe()
    process = start("-F", "--num-threads", "1", source, "-", stdout=writer)
    os.close(writer)
    seen = [0]
    wait_for(lambda: seen.append(waiting_in(reader)) or (seen[-1] and len(set(seen[-30:])) == 1), process)
    for _ in range(signals):
        process.terminate()
        time.sleep(0.3)
    code = process.wait(60)
    said(process)
    os.close(reader)
    assert code in (8, -signal.SIGTERM)


def test_signal_ends_a_rearranging_of_a_stream_that_stalls(tmp_path):
    reader, writer = os.pipe()
    process = start("-R", tmp_path / "dump", stdin=reader)
    wait_for(lambda: is_waiting(process), process)
    process.terminate()
    assert process.wait(60) == 8
    assert b"ended by SIGTERM" in said(process)
    os.close(writer)
    os.close(reader)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["-f"]], ids=["plain", "force"])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_of_several_writers_one_writes(source, tmp_path, form, count):
    for number in range(3):
        dst = tmp_path / f"dump{number}"
        writers = [start(*form, "-c", "--num-threads", "1", source, dst) for _ in range(count)]
        codes = [writer.wait(200) for writer in writers]
        texts = [said(writer).decode() for writer in writers]
        assert codes.count(0) >= 1, texts
        assert form or codes.count(0) == 1, texts
        refused = [text for code, text in zip(codes, texts, strict=True) if code]
        words = ("being written by", "exists", "took its place", "left of", "one writer at a time")
        assert all(any(word in text for word in words) for text in refused), refused
        check = subprocess.run([sys.executable, "-m", "dumpfs.cli.main", "check", "-q", dst], check=False)
        assert check.returncode == 0
        assert not Path(f"{dst}.partial").exists()
