"""Reading, encoding and writing at the same time: worker processes, and the parent that keeps their work in order.

Workers are forked (threads would fight over the interpreter), so they share the plan and the open files for nothing.
The parent hands out batches; a worker encodes one and reports its sizes; the parent, in batch order, says where its
bytes go; the worker writes them; and the parent, in batch order again and some times a second, writes the descriptors.
So the same plan gives the same file with any number of workers, and descriptors never run ahead of data.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import numpy as np

from dumpfs.errors import DumpfsError, WriteError
from dumpfs.units import Pfn
from dumpfs.writer.bytesink import ByteSink
from dumpfs.writer.encode import KIND_LOST, KIND_ZERO, Encoded
from dumpfs.writer.pipeline.worker import BatchEncoder, Piece, work

_QUEUED = 2
"""Batches handed to a worker ahead, so that it never waits for the parent."""
_UNPLACED = 2
"""Batches per worker that may be encoded or in work and not yet placed: bounds memory when one takes long. With 4 it is
no faster, and two workers take 40 MB more."""
_UNFLUSHED = 32
"""Batches whose descriptors may wait: copied as they are a thousand come in a second, and writing those of one takes
100 KB of memory.
"""
_TICK = 0.25
"""Seconds between two looks at whether to stop, and how long descriptors may wait to be written."""

_STALLED_SECONDS = 2.0
"""How long a stream's reader may take for what was begun when writing is to stop."""
_SALVAGE_SECONDS = 10.0
"""How long workers may take, after a failure, to write what they were told to."""


class Job(NamedTuple):
    """One batch."""

    sink: int
    first: Pfn
    stop: Pfn
    members: int


class DumpSink(Protocol):
    """One output file."""

    out: ByteSink
    ordered: bool
    """Whether a batch may be written only when all before it are."""

    def place(self, first: Pfn, stop: Pfn, encoded: Encoded) -> list[Piece]:
        """Where the bytes of the next batch go; `encoded` without them."""

    def commit(self, encoded: Encoded, pieces: list[Piece]) -> None:
        """The next batch's bytes are in the file."""

    def flush(self) -> None:
        """Write what waits to be written about the batches so far."""


@dataclass(slots=True)
class Totals:
    """What was written."""

    pages: int = 0
    """Pages committed."""
    zero: int = 0
    lost: int = 0
    nbytes: int = 0
    """Bytes of page data."""
    cause: str = ""
    """Why writing ended early, or ''."""
    errno: int = 0
    """Of the failed write, or 0."""
    stalled: bool = False
    """Whether a stream was given up amid a record: nothing can follow in it."""


@dataclass(slots=True)
class _Batch:
    job: Job
    worker: int
    encoded: Encoded | None = None
    pieces: list[Piece] | None = None
    written: bool = False


class _Failure(Exception):
    """A write failed or writing shall stop: what is committed stays."""

    def __init__(self, cause: str, errno: int = 0) -> None:
        super().__init__(cause)
        self.cause = cause
        self.errno = errno


@contextmanager
def _output() -> Iterator[None]:
    """What goes wrong in the body is the output's."""
    try:
        yield
    except OSError as exc:
        raise _Failure(exc.strerror or str(exc), exc.errno or 0) from exc


@dataclass(slots=True)
class _Worker:
    connection: Connection
    process: BaseProcess
    queued: int = 0


@dataclass
class Pipeline:
    """Runs the jobs of one dump.

    Args:
        encoder: made before the fork, used in each worker.
        sinks: the output files, begun.
        workers: number of processes.
        progress: called with the pages of each committed batch.
        stop: asked every now and then; the reason to stop early, or ''.
    """

    encoder: BatchEncoder
    sinks: list[DumpSink]
    workers: int
    progress: Callable[[int], None]
    stop: Callable[[], str]
    totals: Totals = field(default_factory=Totals)
    _workers: list[_Worker] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _batches: dict[int, _Batch] = field(default_factory=dict)
    _issued: int = 0
    _placed: int = 0
    _committed: int = 0
    _flushed: float = field(default_factory=time.monotonic)
    _unflushed: dict[int, list[Encoded]] = field(default_factory=dict)
    """By sink: batches committed since then."""

    def run(self, jobs: Iterable[Job]) -> Totals:
        """Write every job; an early end is told in `Totals.cause`, not raised.

        Raises:
            DumpfsError: a worker failed for a reason that is not the output's.
        """
        self._start()
        try:
            try:
                self._loop(iter(jobs))
            except BaseException:
                if not self.totals.stalled:
                    self._salvage()
                raise
            self._flush()
        except _Failure as exc:
            self.totals.cause, self.totals.errno = exc.cause, exc.errno
        finally:
            self._end()
        return self.totals

    def _salvage(self) -> None:
        """Hear of all that workers have written and not told yet, which ends them, and commit what can be."""
        until = time.monotonic() + _SALVAGE_SECONDS
        owing = self._workers if self._committed < self._placed else []
        for worker in owing:
            with socket.socket(fileno=os.dup(worker.connection.fileno())) as end, suppress(OSError):
                end.shutdown(socket.SHUT_WR)  # after the orders it has, that is an end
        for worker in owing:
            while worker.connection.poll(max(until - time.monotonic(), 0)) and self._hear(worker) is not None:
                pass
        with suppress(_Failure):
            self._commit()
        with suppress(_Failure):
            self._flush()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            open_ends = [worker.connection for worker in self._workers] + [ours]
            outs = [sink.out for sink in self.sinks]
            arguments = (theirs, open_ends, self.encoder, outs, any(sink.ordered for sink in self.sinks))
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._selector.register(ours, selectors.EVENT_READ, len(self._workers))
            self._workers.append(_Worker(ours, process))

    def _end(self) -> None:
        self._selector.close()
        for worker in self._workers:
            worker.connection.close()  # a worker that waits for work ends itself
        for worker in self._workers:
            worker.process.join(timeout=0 if self.totals.cause else 5)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()

    def _loop(self, jobs: Iterator[Job]) -> None:
        more = self._issue(jobs)
        stopping, patience = "", 0.0
        while self._committed < self._issued or more:
            ready = self._selector.select(_TICK)
            if not stopping:
                stopping, patience = self.stop(), time.monotonic() + _STALLED_SECONDS
            if stopping and self._committed == self._placed:
                raise _Failure(stopping)
            if stopping and time.monotonic() > patience and not all(sink.out.concurrent for sink in self.sinks):
                self.totals.stalled = True
                raise _Failure(stopping)
            for key, _ in ready:
                self._receive(self._workers[key.data])
            if time.monotonic() - self._flushed > _TICK:
                self._flush()
            if not stopping:
                self._place()
                more = self._issue(jobs)

    def _issue(self, jobs: Iterator[Job]) -> bool:
        """Hand out jobs while workers have room; returns whether more may come."""
        while self._issued - self._placed < _UNPLACED * len(self._workers):
            number, worker = min(enumerate(self._workers), key=lambda pair: pair[1].queued)
            if worker.queued >= _QUEUED:
                return True
            job = next(jobs, None)
            if job is None:
                return False
            self._batches[self._issued] = _Batch(job, number)
            self._send(worker, ("encode", self._issued, job.first, job.stop))
            worker.queued += 1
            self._issued += 1
        return True

    def _send(self, worker: _Worker, message: tuple[object, ...]) -> None:
        try:
            worker.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while True:  # its last words tell why, or there are none
                self._receive(worker)

    def _receive(self, worker: _Worker) -> None:
        """Take one message; whether there are more, the selector knows, and at less cost than the connection."""
        message = self._hear(worker)
        if message is None:
            raise _Failure("a worker process was killed, perhaps for lack of memory")
        kind, *rest = message
        if kind == "refused":
            raise _Failure(rest[1], rest[0])
        if kind == "failed":
            raise rest[0] if isinstance(rest[0], DumpfsError) else WriteError(str(rest[0]))
        self._commit()

    def _hear(self, worker: _Worker) -> tuple[Any, ...] | None:
        """Take note of what a message says was done; the message, or None when the worker has ended."""
        try:
            kind, written, *rest = worker.connection.recv()
        except (EOFError, OSError):  # an OSError amid a message
            return None
        for number in written:
            self._batches[number].written = True
        if kind == "encoded":
            worker.queued -= 1
            number, sizes, flags, kinds = rest
            self._batches[number].encoded = Encoded(
                np.frombuffer(sizes, np.uint32), np.frombuffer(flags, np.uint32), np.frombuffer(kinds, np.uint8), []
            )
        return kind, *rest

    def _place(self) -> None:
        """Say where encoded batches go, in order; on a stream only one at a time is let in."""
        while (batch := self._batches.get(self._placed)) is not None and batch.encoded is not None:
            sink = self.sinks[batch.job.sink]
            if sink.ordered and self._committed < self._placed:
                return
            batch.pieces = sink.place(batch.job.first, batch.job.stop, batch.encoded)
            self._send(self._workers[batch.worker], ("write", self._placed, batch.job.sink, batch.pieces))
            self._placed += 1

    def _commit(self) -> None:
        while (batch := self._batches.get(self._committed)) is not None and batch.written:
            assert batch.encoded is not None
            assert batch.pieces is not None
            with _output():
                self.sinks[batch.job.sink].commit(batch.encoded, batch.pieces)
            waiting = self._unflushed.setdefault(batch.job.sink, [])
            waiting.append(batch.encoded)
            del self._batches[self._committed]
            self._committed += 1
            if len(waiting) >= _UNFLUSHED:
                self._flush()

    def _flush(self) -> None:
        """Have every sink write what waits, whatever happens to the others, and count it."""
        self._flushed = time.monotonic()
        failure: _Failure | None = None
        for number, sink in enumerate(self.sinks):
            try:
                with _output():
                    sink.flush()
            except _Failure as exc:
                failure = failure or exc
            else:
                for encoded in self._unflushed.pop(number, ()):
                    self._count(encoded)
        if failure is not None:
            raise failure

    def _count(self, encoded: Encoded) -> None:
        totals = self.totals
        totals.pages += len(encoded.kinds)
        totals.zero += int((encoded.kinds == KIND_ZERO).sum())
        totals.lost += int((encoded.kinds == KIND_LOST).sum())
        totals.nbytes += encoded.nbytes
        self.progress(len(encoded.kinds))
