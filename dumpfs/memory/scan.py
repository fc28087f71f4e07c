"""Reading every page of a dump once, to learn which can be read.

`scan_image` yields what it found batch by batch, so that a caller can show progress and stop when it likes. With
more than one job the batches are dealt out to forked processes (decoding in Python threads would fight over the
interpreter), which share the image's open files by positional reads. Counts are in blocks of the image.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from dumpfs.errors import DumpfsError
from dumpfs.formats.base import DumpImage, SparseImage
from dumpfs.ranges import PfnSet
from dumpfs.units import PageState, Pfn

_WINDOW_BYTES = 4 << 20
"""Bytes of pages read at once: bounds memory."""
_GAP_BYTES = 64 << 10
"""Gap between stored pages that is read along: filling it with zeros costs as much as another call."""
_BATCH_BYTES = 4 << 20
"""Bytes of stored pages in one result: enough that a message to the parent costs nothing against decoding them."""

_MAX_RANGES = 65536
"""Bad ranges kept; a dump with more is beyond a list, and the counts still hold."""

_BAD = re.compile(
    b"|".join(re.escape(bytes((state,))) + b"+" for state in (PageState.LOST, PageState.CORRUPT)), re.DOTALL
)


class BadRange(NamedTuple):
    """Consecutive blocks `[first, stop)` in one bad state."""

    first: Pfn
    stop: Pfn
    state: PageState


class BatchResult(NamedTuple):
    """What reading some windows gave."""

    counts: tuple[int, ...]
    """Blocks by `PageState` value, of those that were asked for; EXCLUDED and ABSENT are 0."""
    bad: list[BadRange]

    @property
    def members(self) -> int:
        """Blocks that were asked for, for progress."""
        return sum(self.counts)


@dataclass(slots=True)
class ScanTotals:
    """What a whole scan gave: the windows' results and what the image knows by itself."""

    counts: list[int] = field(default_factory=lambda: [0] * len(PageState))
    """Blocks by `PageState` value, as far as the scan came; EXCLUDED and ABSENT have no meaning here."""
    bad: list[BadRange] = field(default_factory=list)
    dropped: int = 0
    """Bad ranges that were counted but not kept."""

    def add(self, result: BatchResult) -> None:
        """Count one batch."""
        for state, count in enumerate(result.counts):
            self.counts[state] += count
        room = max(_MAX_RANGES - len(self.bad), 0)
        self.bad += result.bad[:room]
        self.dropped += max(len(result.bad) - room, 0)

    def add_lost(self, lost: PfnSet) -> None:
        """Count the blocks that the image knows to be lost, which no scan asks for."""
        self.counts[PageState.LOST] += lost.count()
        room = max(_MAX_RANGES - len(self.bad), 0)
        runs = list(islice(lost.runs(), room + 1))
        self.bad += [BadRange(first, stop, PageState.LOST) for first, stop in runs[:room]]
        self.dropped += len(runs) - len(runs[:room])

    def bad_ranges(self) -> list[BadRange]:
        """The bad ranges in order, touching ones of the same state joined."""
        joined: list[BadRange] = []
        for item in sorted(self.bad):
            last = joined[-1] if joined else None
            if last is not None and last.stop == item.first and last.state == item.state:
                joined[-1] = BadRange(last.first, item.stop, item.state)
            else:
                joined.append(item)
        return joined


def written_runs(image: DumpImage) -> Iterator[tuple[Pfn, Pfn]]:
    """Runs of the stored blocks, ascending; those in holes of the file, which are zeros, left out where known."""
    if isinstance(image, SparseImage):
        return image.written_runs(0, image.stored.stop)
    return image.stored.runs()


def written_bytes(image: DumpImage) -> int:
    """Bytes of the stored blocks that do not lie in holes of the file."""
    if not isinstance(image, SparseImage):
        return image.stored.count() * image.meta.block_size
    return sum(stop - first for first, stop in written_runs(image)) * image.meta.block_size


def plan_windows(runs: Iterable[tuple[Pfn, Pfn]], block_size: int) -> Iterator[tuple[Pfn, int]]:
    """(first, count) of windows that cover ascending runs; runs with little between them share one."""
    limit = max(_WINDOW_BYTES // block_size, 1)
    gap = _GAP_BYTES // block_size
    first = stop = -1
    for run_first, run_stop in runs:
        if first >= 0 and run_first > stop + gap:
            yield first, stop - first
            first = -1
        while run_first < run_stop:
            if first >= 0 and run_first >= first + limit:
                yield first, stop - first
                first = -1
            if first < 0:
                first = run_first
            run_first = stop = min(run_stop, first + limit)
    if first >= 0:
        yield first, stop - first


def plan_batches(runs: Iterable[tuple[Pfn, Pfn]], block_size: int) -> Iterator[list[tuple[Pfn, int]]]:
    """The windows of `plan_windows`, gathered until they are worth a result of their own."""
    wanted = max(_BATCH_BYTES // block_size, 1)
    batch: list[tuple[Pfn, int]] = []
    blocks = 0
    for window in plan_windows(runs, block_size):
        batch.append(window)
        blocks += window[1]
        if blocks >= wanted:
            yield batch
            batch, blocks = [], 0
    if batch:
        yield batch


def scan_batch(image: DumpImage, pages: PfnSet, batch: Sequence[tuple[Pfn, int]]) -> BatchResult:
    """Read the blocks of some windows and tell what came."""
    counts = [0] * len(PageState)
    bad: list[BadRange] = []
    for first, count in batch:
        _, states = image.read_run(first, count)
        for state in (PageState.STORED, PageState.PARTIAL):
            counts[state] += states.count(state)
        for match in _BAD.finditer(states):
            state = PageState(states[match.start()])
            # Not the gaps between members, which may be lost as well.
            found = [BadRange(*run, state) for run in pages.runs(first + match.start(), first + match.end())]
            counts[state] += sum(item.stop - item.first for item in found)
            bad += found
    return BatchResult(tuple(counts), bad)


def scan_image(image: DumpImage, jobs: int = 1) -> Generator[BatchResult, None, None]:
    """Read every block that is said to be stored; results come in any order.

    What lies in holes of the file is not read: it is zeros, and counted as good in the last result. Closing the
    generator ends the worker processes.

    Raises:
        DumpfsError: a worker process ended early.
    """
    left = image.stored.count()  # builds the rank index once, before the fork
    for result in _scan_forked(image, jobs) if jobs > 1 else _scan_here(image):
        left -= result.members
        yield result
    if left:
        counts = [0] * len(PageState)
        counts[PageState.STORED] = left
        yield BatchResult(tuple(counts), [])


def _scan_here(image: DumpImage) -> Iterator[BatchResult]:
    for batch in plan_batches(written_runs(image), image.meta.block_size):
        yield scan_batch(image, image.stored, batch)


def _scan_forked(image: DumpImage, jobs: int) -> Generator[BatchResult, None, None]:
    context = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    workers = []
    try:
        for number in range(jobs):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            worker = context.Process(
                target=_work, args=(image, number, jobs, writer, tuple(readers)), daemon=True
            )
            worker.start()
            writer.close()
            workers.append(worker)
        yield from _gather(readers)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        for reader in readers:
            reader.close()


def _gather(readers: Sequence[Connection]) -> Generator[BatchResult, None, None]:
    open_readers = list(readers)
    while open_readers:
        for reader in wait(open_readers):
            assert isinstance(reader, Connection)
            try:
                message: BatchResult | str | None = reader.recv()
            except EOFError:
                raise DumpfsError(
                    "a worker process ended early", hint="it may have been killed for lack of memory; try --jobs 1"
                ) from None
            if message is None:
                open_readers.remove(reader)
            elif isinstance(message, str):
                raise DumpfsError(message)
            else:
                yield message


def _work(
    image: DumpImage, number: int, jobs: int, writer: Connection, readers: tuple[Connection, ...]
) -> None:
    """Body of one worker: every `jobs`-th batch, then None.

    Read ends are closed so that writing fails, and the worker ends, once the parent is gone. Ctrl-C reaches the
    whole process group; the parent answers it for all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for reader in readers:
        reader.close()
    try:
        for index, batch in enumerate(plan_batches(written_runs(image), image.meta.block_size)):
            if index % jobs == number:
                writer.send(scan_batch(image, image.stored, batch))
        writer.send(None)
    except BrokenPipeError:
        return
    except DumpfsError as exc:
        writer.send(str(exc))
