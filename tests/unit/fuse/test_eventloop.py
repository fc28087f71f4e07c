"""Waits for requests beside handlers that await: the lock among them comes back, whoever had it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading

import pytest

from dumpfs.fuse.eventloop import EventLoop
from dumpfs.native import AVAILABLE
from dumpfs.vfs.counters import SharedCounters

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")

LOOKUP, READ = 1, 15
ANSWER = struct.Struct("=IiQ")


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, 1, 0, 0, 1, 0) + body


class SlowReader:
    """Answers every read after a while."""

    on_file = staticmethod(lambda node: None)

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop

    def read_now(self, fh: int, off: int, size: int) -> None:
        return None

    async def read(self, fh: int, off: int, size: int) -> bytes:
        await self.loop.tasks.sleep(0.1)
        return b"late"


class Worker:
    """An event loop whose requests come from a socket, with tasks as pyfuse3 has them (3.4, 3.5)."""

    def __init__(self) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(10)
        self.session = os.open("/dev/null", os.O_RDWR)
        self.loop = EventLoop()
        self.loop.fd = self.session
        self.loop.serve()
        self.loop.take_over(device.detach(), SlowReader(self.loop), SharedCounters())
        self.lock = self.loop.Lock()
        self.active = 0

    async def session_loop(self, nursery) -> None:
        while self.active <= 1:
            self.active += 1
            try:
                async with self.lock:
                    await self.loop.lowlevel.wait_readable(self.session)
            except EventLoop.ClosedResourceError:
                return
            finally:
                self.active -= 1
            asked = os.read(self.session, 1 << 16)
            if not self.active:
                nursery.start_soon(self.session_loop, nursery)
            _, opcode, unique = struct.unpack_from("=IIQ", asked)
            if opcode == 2**31:
                self.loop.tasks.stop()
                return
            os.write(self.session, ANSWER.pack(ANSWER.size, 0, unique))

    async def main(self) -> None:
        async with self.loop.open_nursery() as nursery:
            nursery.start_soon(self.session_loop, nursery)

    def answers(self, count: int) -> set[int]:
        return {ANSWER.unpack_from(self.kernel.recv(1 << 16))[2] for _ in range(count)}

    def close(self) -> None:
        assert self.loop.requests is not None
        self.loop.requests.close()
        self.kernel.close()
        os.close(self.session)
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def worker():
    before = signal.getsignal(signal.SIGALRM)
    found = Worker()
    yield found
    found.close()
    signal.signal(signal.SIGALRM, before)


def test_requests_are_answered_after_slow_reads_in_a_row(worker):
    """A wait that began quickly and meets a slow read must not leave its mark on the next owner of the lock."""
    body = struct.pack("=QQIIQII", 8, 0, 4, 0, 0, 0, 0)
    answered = []

    def client() -> None:
        try:
            for turn in range(0, 60, 6):
                worker.kernel.send(request(LOOKUP, turn))
                answered.append(worker.answers(1) == {turn})
                worker.kernel.send(request(READ, turn + 1, body))
                worker.kernel.send(request(LOOKUP, turn + 2))
                answered.append(worker.answers(2) == {turn + 1, turn + 2})
                worker.kernel.send(request(LOOKUP, turn + 3))
                worker.kernel.send(request(READ, turn + 4, body))
                worker.kernel.send(request(LOOKUP, turn + 5))
                answered.append(worker.answers(3) == {turn + 3, turn + 4, turn + 5})
        except TimeoutError:
            answered.append(False)
        finally:
            worker.kernel.send(request(2**31, 0))

    thread = threading.Thread(target=client)
    thread.start()
    worker.loop.tasks.run(worker.main, timeout=30)
    thread.join(20)
    assert answered == [True] * 30
