"""The engine: what is committed, when it is flushed, and what is told when writing ends early."""

from __future__ import annotations

import errno
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from dumpfs.errors import DumpfsError, WriteError
from dumpfs.structs import Buffer
from dumpfs.writer.bytesink import NullSink
from dumpfs.writer.encode import Encoded
from dumpfs.writer.pipeline import worker
from dumpfs.writer.pipeline.engine import Job, Pipeline

PAGES = 4
BATCHES = 12
JOBS = [Job(0, number * PAGES, (number + 1) * PAGES, PAGES) for number in range(BATCHES)]


@dataclass
class Encoder:
    """Every page is one byte; it takes `seconds` to make a batch, and that of pfn `broken` cannot be made."""

    seconds: float = 0.0
    broken: int = -1

    def encode(self, first: int, stop: int) -> Encoded:
        time.sleep(self.seconds)
        if first == self.broken:
            raise DumpfsError("made up")
        count = stop - first
        ones = np.ones(count, dtype=np.uint32)
        return Encoded(ones, ones, np.zeros(count, dtype=np.uint8), [bytes(count)])


class Out(NullSink):
    """Has no room from an offset on."""

    def __init__(self, room: int, *, waits: bool = False) -> None:
        self._room = room
        self.waits = waits

    def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
        if offset + sum(map(len, chunks)) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")


@dataclass
class Sink:
    """Takes note of what it is told."""

    out: Out
    ordered: bool = False
    placed: int = 0
    waiting: int = 0
    flushed: list[int] = field(default_factory=list)
    """Batches committed by each flush that had something to do."""

    def place(self, first: int, stop: int, encoded: Encoded) -> list[tuple[int, int, int]]:
        self.placed += encoded.nbytes
        return [(self.placed - encoded.nbytes, 0, encoded.nbytes)]

    def commit(self, encoded: Encoded, pieces: list[tuple[int, int, int]]) -> None:
        self.waiting += 1

    def flush(self) -> None:
        if self.waiting:
            self.flushed.append(self.waiting)
        self.waiting = 0


def pipeline(encoder: Encoder, sink: Sink, workers: int = 2) -> Pipeline:
    return Pipeline(encoder, [sink], workers, lambda pages: None, str)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_everything_committed_is_flushed(workers, waits):
    sink = Sink(Out(1 << 20, waits=waits))
    totals = pipeline(Encoder(), sink, workers).run(JOBS)
    assert (totals.pages, totals.nbytes, totals.cause) == (BATCHES * PAGES, BATCHES * PAGES, "")
    assert sum(sink.flushed) == BATCHES


def test_slow_batches_are_flushed_on_the_way():
    """A writer that is killed has lost less than a second's work."""
    sink = Sink(Out(1 << 20))
    pipeline(Encoder(seconds=0.15), sink, workers=1).run(JOBS)
    assert sum(sink.flushed) == BATCHES
    assert len(sink.flushed) > 2


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("whole", [0, 1, 5, BATCHES - 1])
def test_batches_before_the_one_without_room_are_kept(whole, workers, ordered, waits):
    sink = Sink(Out(whole * PAGES, waits=waits), ordered)
    totals = pipeline(Encoder(), sink, workers).run(JOBS)
    assert (totals.errno, totals.cause) == (errno.ENOSPC, "No space left on device")
    assert (totals.pages, sum(sink.flushed)) == (whole * PAGES, whole)


@pytest.mark.parametrize("waits", [False, True])
def test_batches_before_a_failure_are_flushed(waits):
    sink = Sink(Out(1 << 20, waits=waits))
    with pytest.raises(DumpfsError, match="made up"):
        pipeline(Encoder(broken=8 * PAGES), sink, workers=1).run(JOBS)
    # Those that were encoded ahead of it may not have been placed yet.
    assert 0 < sum(sink.flushed) <= 8


class Full(Sink):
    """Cannot write about its batches."""

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


def test_output_that_fails_at_the_flush_ends_the_writing():
    totals = pipeline(Encoder(), Full(Out(1 << 20))).run(JOBS)
    assert (totals.errno, totals.cause) == (errno.EIO, "Input/output error")
    assert totals.pages == 0


def test_flush_that_fails_does_not_hide_a_failure():
    with pytest.raises(DumpfsError, match="made up"):
        pipeline(Encoder(broken=8 * PAGES), Full(Out(1 << 20))).run(JOBS)


def test_flush_that_fails_keeps_no_other_from_it():
    full, good = Full(Out(1 << 20)), Sink(Out(1 << 20))
    jobs = [job._replace(sink=job.first // PAGES % 2) for job in JOBS]
    totals = Pipeline(Encoder(), [full, good], 2, lambda pages: None, str).run(jobs)
    assert totals.errno == errno.EIO
    assert sum(good.flushed) == BATCHES // 2
    assert totals.pages == PAGES * BATCHES // 2


def test_source_that_stalls_keeps_nothing_from_being_flushed():
    """What is known of is written while workers wait for a slow disk."""
    sink = Sink(Out(1 << 20))
    seen: list[int] = []

    class Stalls(Encoder):
        def encode(self, first: int, stop: int) -> Encoded:
            time.sleep(1.5 if first == 6 * PAGES else 0)
            return super().encode(first, stop)

    run = Pipeline(Stalls(), [sink], 1, lambda pages: None, lambda: seen.append(sum(sink.flushed)) or "")
    run.run(JOBS)
    assert sum(0 < count < BATCHES for count in seen) >= 3, seen


def test_ordered_output_is_told_of_before_the_next_batch_is_made():
    """Others wait for it: writing an ELF core took a fifth longer."""
    committed = shared_numbers()
    sink = Sink(Out(1 << 20), ordered=True)

    class Waits(Encoder):
        def encode(self, first: int, stop: int) -> Encoded:
            if first == 2 * PAGES:
                # The first is written when the second has been made; its commit does not wait for the third.
                until = time.monotonic() + 30
                while not committed[0] and time.monotonic() < until:
                    time.sleep(0.001)
                committed[1] = committed[0]
            return super().encode(first, stop)

    def commit(encoded: Encoded, pieces: object) -> None:
        committed[0] += 1

    sink.commit = commit  # type: ignore[method-assign]
    pipeline(Waits(), sink, workers=1).run(JOBS[:3])
    assert committed[1] >= 1
    assert committed[0] == 3


def shared_numbers() -> memoryview:
    """Numbers that forked processes share."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")


def test_batch_is_encoded_while_another_waits_for_the_disk():
    """The first write ends once the third batch, which is begun after it, has seen it under way."""
    state = shared_numbers()

    def wait_for(number: int) -> None:
        until = time.monotonic() + 3
        while state[0] != number and time.monotonic() < until:
            time.sleep(0.001)

    class Looks(Encoder):
        def encode(self, first: int, stop: int) -> Encoded:
            if first == 2 * PAGES:
                wait_for(1)
                state[0] += 1
            return super().encode(first, stop)

    class Waits(Out):
        def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
            if offset == 0:
                state[0] = 1
                wait_for(2)
                state[1] = state[0]

    totals = pipeline(Looks(), Sink(Waits(1 << 20, waits=True)), workers=1).run(JOBS)
    assert (totals.pages, totals.cause) == (BATCHES * PAGES, "")
    assert state[1] == 2


def test_worker_does_not_encode_far_ahead_of_a_slow_disk():
    """What is encoded and not written takes memory."""
    begun = shared_numbers()

    class Counts(Encoder):
        def encode(self, first: int, stop: int) -> Encoded:
            begun[0] += 1
            return super().encode(first, stop)

    class Slow(Out):
        def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
            time.sleep(0.05)
            begun[1] = max(begun[1], begun[0] - offset // PAGES)

    totals = pipeline(Counts(), Sink(Slow(1 << 20, waits=True)), workers=1).run(JOBS)
    assert totals.pages == BATCHES * PAGES
    assert begun[1] <= 5


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files")]
)
def test_worker_that_can_have_no_thread_waits_for_the_disk(monkeypatch, error):
    def start(*args: object) -> int:
        raise error

    monkeypatch.setattr(*(("os.eventfd", start) if isinstance(error, OSError) else (worker.Thread, "start", start)))
    sink = Sink(Out(1 << 20, waits=True))
    totals = pipeline(Encoder(), sink).run(JOBS)
    assert (totals.pages, totals.cause) == (BATCHES * PAGES, "")
    assert sum(sink.flushed) == BATCHES


def test_failure_of_both_threads_is_told():
    """The encoder's is, which keeps its words although the write fails as well."""

    class Bug(Out):
        def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
            time.sleep(0.2)
            raise ZeroDivisionError

    class Slow(Encoder):
        def encode(self, first: int, stop: int) -> Encoded:
            time.sleep(0.1 if first == 2 * PAGES else 0)
            return super().encode(first, stop)

    with pytest.raises(DumpfsError, match="made up"):
        pipeline(Slow(broken=2 * PAGES), Sink(Bug(0, waits=True)), workers=1).run(JOBS)


@pytest.mark.parametrize("waits", [False, True])
def test_bug_in_an_output_is_told_with_its_traceback(waits):
    class Bug(Out):
        def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
            raise ZeroDivisionError("made up")

    with pytest.raises(WriteError, match="ZeroDivisionError: made up"):
        pipeline(Encoder(), Sink(Bug(0, waits=waits))).run(JOBS)


def test_closed_pipe_is_the_outputs_failure():
    class Closed(Out):
        def write_at(self, offset: int, chunks: Sequence[Buffer]) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    totals = pipeline(Encoder(), Sink(Closed(0), ordered=True)).run(JOBS)
    assert (totals.errno, totals.cause) == (errno.EPIPE, "Broken pipe")
