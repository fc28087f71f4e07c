"""The loop of a worker, in C: what it answers by itself, and what it leaves to others."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from array import array

import pytest

from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.formats.plain import open_pages
from dumpfs.native import AVAILABLE
from dumpfs.sources.local import FileSource
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")

PAGE = 4096
HANDLE = 77
READ, GETATTR = 15, 3
HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, nothing
READ_IN = struct.Struct("=QQIIQII")  # handle, offset, size, flags, lock owner, flags, nothing
ANSWER = struct.Struct("=IiQ")


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return HEADER.pack(HEADER.size + len(body), opcode, unique, 1, 0, 0, 1, 0) + body


def read_request(unique: int, offset: int, size: int, handle: int = HANDLE) -> bytes:
    return request(READ, unique, READ_IN.pack(handle, offset, size, 0, 0, 0, 0))


class Device:
    """A pair of sockets in place of /dev/fuse, with a loop at one end; offset 64 KiB of its file is address 0."""

    def __init__(self, tmp_path, **options) -> None:
        from dumpfs.native.loops import Loop

        rng = random.Random(2)
        stored = {pfn: Page(rng.randbytes(100) * 41, codec="zlib") for pfn in range(300)}
        stored = {pfn: Page(page.data[:PAGE], codec="zlib") for pfn, page in stored.items()}
        self.memory = Memory(PAGE, 400, stored | {300: Page(kind=Kind.EXCLUDED), 301: Page(b"\1" * PAGE, codec="lzo")})
        (tmp_path / "dump").write_bytes(build_kdump(self.memory, KdumpSpec(machine="x86_64")).data)
        self.image = KdumpImage.open([FileSource(tmp_path / "dump")])
        self.pages = open_pages(self.image.plain_pages(), PAGE, **options)
        self.kernel, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.worker):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.counters = array("Q", bytes(8 * 16))
        self.loop = Loop(
            device=self.worker.fileno(), room=1 << 20, counters=self.counters, reads=2, bytes=3, hits=4, misses=5
        )
        self.loop.add(HANDLE, self.pages, [(1 << 16, 302 * PAGE, 0), (1 << 24, PAGE, 301 * PAGE)])

    def ask(self, *requests: bytes) -> None:
        for each in requests:
            self.kernel.send(each)

    def answer(self) -> tuple[int, int, bytes]:
        """Unique, error number and data of the next answer."""
        data = self.kernel.recv(2 << 20, socket.MSG_DONTWAIT)
        length, error, unique = ANSWER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[ANSWER.size :]

    def stored(self, first: int, count: int) -> bytes:
        return b"".join(self.memory.content(first + i) for i in range(count))


@pytest.fixture
def device(tmp_path):
    found = Device(tmp_path, cache=1 << 16)
    yield found
    found.kernel.close()
    found.worker.close()
    found.image.close()


def test_reads_of_memory_are_answered(device):
    device.ask(
        read_request(5, 1 << 16, PAGE), read_request(6, (1 << 16) + 7 * PAGE + 100, 3 * PAGE), request(GETATTR, 7)
    )
    assert device.loop.next(False) == request(GETATTR, 7)
    assert device.answer() == (5, 0, device.stored(0, 1))
    assert device.answer() == (6, 0, device.stored(7, 4)[100 : 100 + 3 * PAGE])
    assert device.counters[2:4].tolist() == [2, 4 * PAGE]


def test_large_reads_are_answered(device):
    device.ask(read_request(5, (1 << 16) + PAGE, 64 * PAGE), request(GETATTR, 7))
    assert device.loop.next(False) == request(GETATTR, 7)
    assert device.answer() == (5, 0, device.stored(1, 64))


def test_a_page_that_is_kept_is_not_decoded_again(device):
    device.ask(*(read_request(i, (1 << 16) + 3 * PAGE, PAGE) for i in range(10)), request(GETATTR, 99))
    device.loop.next(False)
    assert [device.answer() for _ in range(10)] == [(i, 0, device.stored(3, 1)) for i in range(10)]
    assert device.counters[4:6].tolist() == [9, 1]


@pytest.mark.parametrize(
    ("offset", "size", "handle"),
    [
        (1 << 16, PAGE, HANDLE + 1),
        (0, PAGE, HANDLE),
        ((1 << 16) - 1, PAGE, HANDLE),
        ((1 << 16) + 301 * PAGE, 2 * PAGE, HANDLE),
        ((1 << 16) + 302 * PAGE, 1, HANDLE),
        ((1 << 24) + PAGE - 1, 2, HANDLE),
        ((1 << 64) - 1, PAGE, HANDLE),
        (1 << 16, (1 << 20) + 1, HANDLE),
        (1 << 16, (1 << 32) - 1, HANDLE),
        (1 << 16, 0, HANDLE),
        ((1 << 16) + 300 * PAGE, PAGE, HANDLE),  # excluded
        ((1 << 16) + 299 * PAGE, 3 * PAGE, HANDLE),
    ],
)
def test_other_reads_are_handed_over(device, offset, size, handle):
    asked = read_request(9, offset, size, handle)
    device.ask(asked)
    assert device.loop.next(False) == asked
    with pytest.raises(BlockingIOError):
        device.answer()
    assert device.counters[2] == 0


def test_the_second_extent_is_found(device):
    device.ask(read_request(5, (1 << 24) + 5, 100), request(GETATTR, 6))
    device.loop.next(False)
    assert device.answer() == (5, 0, b"\1" * 100)


@pytest.mark.parametrize("length", [1, 39, 40, 79])
def test_requests_that_are_cut_off_are_handed_over(device, length):
    cut = read_request(5, 1 << 16, PAGE)[:length]
    device.ask(cut)
    assert device.loop.next(False) == cut


def test_politely_it_returns_when_nothing_is_there(device):
    assert device.loop.next(True) is None
    device.ask(*(read_request(i, 1 << 16, PAGE) for i in range(40)))
    turns = 0
    while device.counters[2] < 40:
        assert device.loop.next(True) is None
        turns += 1
    assert turns > 1  # others had their turn between


def test_it_waits_for_a_request_without_holding_the_interpreter(device):
    found = []
    device.loop.linger()
    thread = threading.Thread(target=lambda: found.append(device.loop.next(False)))
    thread.start()
    device.ask(request(GETATTR, 5))
    thread.join(20)
    assert found == [request(GETATTR, 5)]


def test_a_device_that_fails_is_an_error(device, tmp_path):
    from dumpfs.native.loops import Loop

    fd = os.open(tmp_path, os.O_RDONLY)
    loop = Loop(device=fd, room=8192, counters=device.counters, reads=0, bytes=1, hits=2, misses=3)
    with pytest.raises(OSError, match="directory") as caught:
        loop.next(False)
    assert caught.value.errno == errno.EISDIR
    os.close(fd)


def test_impossible_arguments_are_refused(device):
    from dumpfs.native.loops import Loop

    places = {"reads": 0, "bytes": 1, "hits": 2, "misses": 3}
    for wrong in ({"misses": 16}, {"hits": -1}, {"room": 100}):
        with pytest.raises(ValueError):
            Loop(**({"device": 0, "room": 8192, "counters": device.counters} | places | wrong))
    with pytest.raises(ValueError, match="ascend"):
        device.loop.add(1, device.pages, [(0, 100, 0), (99, 100, 0)])
    with pytest.raises(ValueError, match="extents"):
        device.loop.add(1, device.pages, [])
    for beyond in ((1 << 63, 1, 0), (0, 1 << 63, 0), (0, 1, (1 << 64) - 4096), (-1, 5, -1)):
        with pytest.raises(ValueError, match="beyond"):
            device.loop.add(1, device.pages, [beyond])
    with pytest.raises(TypeError):
        device.loop.add(1, "pages", [(0, 100, 0)])
