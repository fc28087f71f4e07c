"""What a worker process does: encode batches, and write each where the parent says.

A write that waits for the disk is done in a thread beside the encoding of the next batch. With the loops in C the two
do not fight over the interpreter: one is in C and the other in a system call, nearly all of their time.
"""

from __future__ import annotations

import os
import select
import signal
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from dumpfs.errors import DumpfsError
from dumpfs.structs import Buffer
from dumpfs.units import Pfn
from dumpfs.writer.bytesink import ByteSink
from dumpfs.writer.encode import Encoded

Piece = tuple[int, int, int]
"""(offset in the file, first byte, bytes): where a stretch of a batch's bytes goes."""


class BatchEncoder(Protocol):
    """What turns a batch into stored bytes."""

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """See `encode.Encoder.encode`."""


def work(
    connection: Connection,
    foreign: list[Connection],
    encoder: BatchEncoder,
    outs: list[ByteSink],
    ordered: bool,
) -> None:
    """Body of a worker: encodes and writes what the parent says until it hangs up.

    The parent's ends are closed so that reading ends once the parent is gone. Ctrl-C reaches the whole process group;
    the parent answers it for all, and SIGTERM has its default effect again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in foreign:
        end.close()
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent has gone
        connection.send(_serve(connection, encoder, outs, at_once=ordered))
    os._exit(0)


def _serve(connection: Connection, encoder: BatchEncoder, outs: list[ByteSink], *, at_once: bool) -> tuple[object, ...]:
    """Do what the parent says; a worker's last words: why it could not, or what it has written.

    What was written is told along with the next batch, for the parent's turns cost time that workers need; unless
    there is nothing else to do, or others wait for it: then `at_once`.
    """
    events = select.poll()
    events.register(connection, select.POLLIN)
    writes = _Writes(events)
    held: dict[int, list[Buffer]] = {}
    try:
        while True:
            writes.collect()
            if writes.done and (at_once or not events.poll(0)):
                connection.send(("written", writes.take()))
            if all(fd != connection.fileno() for fd, _ in events.poll()):
                continue  # what was written in the thread is told first
            try:
                kind, number, *rest = connection.recv()
            except EOFError:
                writes.collect(wait=True)
                return "written", writes.take()
            if kind == "encode":
                encoded = encoder.encode(*rest)
                held[number] = encoded.chunks
                arrays = (encoded.sizes.tobytes(), encoded.flags.tobytes(), encoded.kinds.tobytes())
                connection.send(("encoded", writes.take(), number, *arrays))
            else:
                writes.add(number, outs[rest[0]], held.pop(number), rest[1])
    except _Refused as exc:
        return "refused", writes.take(), exc.errno, exc.cause
    except (BrokenPipeError, ConnectionResetError):  # the parent has gone
        raise
    except DumpfsError as exc:
        return "failed", writes.last(), exc
    except Exception:  # noqa: BLE001 - a bug: the parent must hear of it, with the traceback
        return "failed", writes.last(), traceback.format_exc()


class _Refused(Exception):
    """The output did not take what was to be written."""

    def __init__(self, exc: OSError) -> None:
        super().__init__(str(exc))
        self.errno = exc.errno or 0
        self.cause = exc.strerror or str(exc)


class _Writes:
    """The writes of one worker, in order: at once, or in a thread where they wait for the disk.

    Args:
        events: hears of what the thread has done.
    """

    def __init__(self, events: select.poll) -> None:
        self.done: list[int] = []
        """Batches that are in the file and were not told yet."""
        self._events = events
        self._thread: Thread | None = None
        self._tried = False
        self._finished = -1
        """An eventfd: readable when the thread has done something."""
        self._given: SimpleQueue[tuple[int, ByteSink, list[Buffer], list[Piece]]] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, Exception | None]] = SimpleQueue()
        self._running = False
        """Whether the thread has a batch; it gets one at a time, for each is megabytes."""

    def add(self, number: int, out: ByteSink, chunks: list[Buffer], pieces: list[Piece]) -> None:
        """Write a batch, or begin to, when the one before it is written.

        Raises:
            _Refused: it, or the one before it, cannot be written.
        """
        self.collect(wait=True)
        if out.waits and self._start():
            self._given.put((number, out, chunks, pieces))
            self._running = True
        else:
            _write(out, chunks, pieces)
            self.done.append(number)

    def collect(self, *, wait: bool = False) -> None:
        """Take note of what the thread has written, with `wait` of what it has yet to write.

        Raises:
            _Refused: it cannot be written.
        """
        if self._thread is None:
            return
        with suppress(BlockingIOError):
            os.eventfd_read(self._finished)  # also when it is told a moment after its result was taken
        if self._running and (wait or not self._results.empty()):
            number, failure = self._results.get()
            self._running = False
            if failure is not None:
                raise failure
            self.done.append(number)

    def take(self) -> list[int]:
        """What is to be told now."""
        done, self.done = self.done, []
        return done

    def last(self) -> list[int]:
        """What is to be told when something else has failed."""
        with suppress(Exception):  # the first failure is the one to tell
            self.collect(wait=True)
        return self.take()

    def _start(self) -> bool:
        """Have a thread; where none is to be had, writing is waited for."""
        if not self._tried:
            self._tried = True
            try:
                self._finished = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                thread = Thread(target=self._run, daemon=True)
                thread.start()
            except (OSError, RuntimeError):  # a limit of descriptors or of tasks
                return False
            self._thread = thread
            self._events.register(self._finished, select.POLLIN)
        return self._thread is not None

    def _run(self) -> None:
        while True:
            number, out, chunks, pieces = self._given.get()
            failure = None
            try:
                _write(out, chunks, pieces)
            except Exception as exc:  # noqa: BLE001 - raised where it is collected
                failure = exc
            del chunks
            self._results.put((number, failure))
            os.eventfd_write(self._finished, 1)


def _write(out: ByteSink, chunks: list[Buffer], pieces: list[Piece]) -> None:
    try:
        if len(pieces) == 1:
            out.write_data(pieces[0][0], chunks)
            return
        data = memoryview(b"".join(chunks))
        for offset, start, size in pieces:
            out.write_data(offset, [data[start : start + size]])
    except OSError as exc:
        raise _Refused(exc) from exc
