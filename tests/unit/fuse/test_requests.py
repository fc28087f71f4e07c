"""How requests come to libfuse and answers to the device, where the loop in C takes them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from pyfuse3 import FUSEError

from dumpfs.errors import SourceError
from dumpfs.native import AVAILABLE
from dumpfs.vfs.counters import Count, SharedCounters
from dumpfs.vfs.node import DirNode, Entry, FileNode, Node

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")

LOOKUP, FORGET, READ, READDIR, INTERRUPT, BATCH_FORGET, READDIRPLUS = 1, 2, 15, 28, 36, 42, 44
ANSWER = struct.Struct("=IiQ")


def request(opcode: int, unique: int = 1, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, 1, 0, 0, 1, 0) + body


def read_body(fh: int, offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", fh, offset, size, 0, 0, 0, 0)


class Text(FileNode):
    """A file that is no memory."""

    def size(self) -> int:
        return 1 << 20

    def read(self, offset: int, size: int) -> bytes:
        return b"x" * size


class Numbers(DirNode):
    """Lists a thousand bare files."""

    BARE = True

    def lookup(self, name: str) -> Node | None:
        return None

    def entries(self, cookie: int) -> Iterator[Entry]:
        return ((i, b"%d" % i, 100 + i) for i in range(cookie + 1, 1001))


class Broken(Numbers):
    """Cannot be listed."""

    def entries(self, cookie: int) -> Iterator[Entry]:
        raise SourceError("dump", "made up")


class Buggy(Numbers):
    """Fails amid a listing, as nothing should."""

    def entries(self, cookie: int) -> Iterator[Entry]:
        yield 1, b"1", 101
        raise ValueError("made up")


class Tree:
    """Inode 1 is a file, 2 to 4 are directories; there is no other."""

    times_ns = 0

    def node(self, ino: int) -> Node:
        return {1: Text(1), 2: Numbers(2), 3: Broken(3), 4: Buggy(4)}[ino]


class Reader:
    """Reads file 7 at once, file 8 slowly, and has no other."""

    tree = Tree()
    on_file = staticmethod(lambda node: None)

    def read_now(self, fh: int, off: int, size: int) -> bytes | None:
        if fh == 8:
            return None
        if fh != 7:
            raise FUSEError(errno.EIO)
        return b"%d" % off * size

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if off:
            raise FUSEError(errno.ESTALE)
        return b"late"


class Worker:
    """Requests between a device and a session that are pairs of sockets."""

    def __init__(self) -> None:
        from dumpfs.fuse.requests import Requests

        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session = os.open("/dev/null", os.O_RDWR)
        self.counters = SharedCounters()
        self.later: list = []
        self.requests = Requests(device.detach(), self.session, Reader(), self.counters, self.later.append)

    def libfuse_reads(self) -> bytes:
        os.set_blocking(self.session, False)
        return os.read(self.session, 1 << 20)

    def kernel_hears(self) -> tuple[int, int, bytes]:
        data = self.kernel.recv(1 << 20, socket.MSG_DONTWAIT)
        length, error, unique = ANSWER.unpack_from(data)
        assert length == len(data)
        return unique, error, data[ANSWER.size :]

    def close(self) -> None:
        self.requests.close()
        self.kernel.close()
        os.close(self.session)


@pytest.fixture
def worker():
    found = Worker()
    yield found
    found.close()


def test_what_libfuse_is_to_answer_comes_to_it_and_its_answer_to_the_device(worker):
    asked = request(LOOKUP, 5, b"name\0")
    worker.kernel.send(asked)
    assert worker.requests.take(polite=False)
    assert worker.libfuse_reads() == asked
    os.writev(worker.session, [ANSWER.pack(20, 0, 5), b"node"])
    worker.requests.carry()
    assert worker.kernel_hears() == (5, 0, b"node")
    worker.requests.carry()  # and nothing more
    with pytest.raises(BlockingIOError):
        worker.kernel_hears()


def test_reads_never_go_through_libfuse(worker):
    worker.kernel.send(request(READ, 5, read_body(7, 3, 4)))
    worker.kernel.send(request(READ, 6, read_body(9, 0, 4)))
    assert not worker.requests.take(polite=True)
    assert worker.kernel_hears() == (5, 0, b"3333")
    assert worker.kernel_hears() == (6, -errno.EIO, b"")
    with pytest.raises(BlockingIOError):
        worker.libfuse_reads()


@pytest.mark.parametrize(("offset", "answer"), [(0, (5, 0, b"late")), (1, (5, -errno.ESTALE, b""))])
def test_reads_that_must_wait_are_left_to_a_task(worker, offset, answer):
    worker.kernel.send(request(READ, 5, read_body(8, offset, 4)))
    assert not worker.requests.take(polite=False)
    [read] = worker.later
    with pytest.raises(StopIteration):
        read().send(None)
    assert worker.kernel_hears() == answer


def test_what_has_no_answer_is_dropped(worker):
    for opcode in (FORGET, BATCH_FORGET, INTERRUPT):
        worker.kernel.send(request(opcode))
    assert not worker.requests.take(polite=True)
    with pytest.raises(BlockingIOError):
        worker.libfuse_reads()


@pytest.mark.parametrize("opcode", [READDIR, READDIRPLUS])
@pytest.mark.parametrize(("asked", "passed"), [(4096, 4096), (1 << 15, 1 << 15), (1 << 20, 1 << 15)])
def test_listings_fit_into_the_socket(worker, opcode, asked, passed):
    worker.kernel.send(request(opcode, 5, read_body(1, 10, asked)))
    assert worker.requests.take(polite=False)
    assert worker.libfuse_reads() == request(opcode, 5, read_body(1, 10, passed))
    os.writev(worker.session, [ANSWER.pack(16 + passed, 0, 5), bytes(passed)])
    worker.requests.carry()
    assert worker.kernel_hears() == (5, 0, bytes(passed))


def test_bare_files_are_listed_without_libfuse(worker):
    worker.kernel.send(request(READDIRPLUS, 5, read_body(2, 997, 4096)))
    assert not worker.requests.take(polite=True)
    unique, error, answer = worker.kernel_hears()
    assert (unique, error, len(answer)) == (5, 0, 3 * 160)
    assert [answer[at + 152 : at + 160].rstrip(b"\0") for at in (0, 160, 320)] == [b"998", b"999", b"1000"]
    assert worker.counters.total(Count.REQUESTS) == 1


@pytest.mark.parametrize("ino", [1, 3, 4, 5], ids=["file", "broken", "buggy", "stale"])
def test_listing_that_fails_is_for_libfuse_to_tell(worker, ino):
    worker.kernel.send(request(READDIRPLUS, 5, read_body(ino, 0, 4096)))
    assert worker.requests.take(polite=False)
    assert worker.libfuse_reads() == request(READDIRPLUS, 5, read_body(ino, 0, 4096))


def test_many_answers_fit_into_the_socket(worker):
    """As many tasks as a worker has may answer before the socket is looked after."""
    worker.kernel.send(request(LOOKUP))
    assert worker.requests.take(polite=False)
    worker.libfuse_reads()
    for unique in range(128):
        os.writev(worker.session, [ANSWER.pack(16 + 144, 0, unique), bytes(144)])
    worker.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    worker.requests.carry()
    assert [worker.kernel_hears()[0] for _ in range(128)] == list(range(128))


@pytest.mark.logs("an answer was refused")
def test_an_answer_that_the_kernel_refuses_is_logged(worker, caplog):
    worker.kernel.send(request(READ, 5, read_body(7, 0, 4)))
    device = worker.requests.device
    worker.requests.device = os.open("/dev/null", os.O_RDONLY)
    assert not worker.requests.take(polite=True)
    assert "an answer was refused: Bad file descriptor" in caplog.text
    os.close(worker.requests.device)
    worker.requests.device = device


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV])
def test_an_answer_that_nobody_waits_for_any_more_is_no_error(worker, monkeypatch, caplog, error):
    def refuse(*_: object) -> int:
        raise OSError(error, "refused")

    worker.kernel.send(request(READ, 5, read_body(7, 0, 4)))
    monkeypatch.setattr(os, "writev", refuse)
    assert not worker.requests.take(polite=True)
    assert not caplog.text


def test_files_without_memory_stay_with_the_reader(worker):
    node = Text(7)
    worker.requests._add(node)
    worker.requests._add(node)
    worker.kernel.send(request(READ, 5, read_body(7, 0, 4)))
    assert not worker.requests.take(polite=True)
    assert worker.kernel_hears() == (5, 0, b"0000")
    assert worker.counters.mine[Count.READS] == 0  # the reader counts its own
