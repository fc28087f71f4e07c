"""Reading every page of a dump once, to learn which can be read.

`scan_image` yields what it found window by window, so that a caller can show progress and stop when it likes. With
more than one job the windows are dealt out to forked processes (decoding in Python threads would fight over the
interpreter), which share the image's open files by positional reads. Counts are in blocks of the image.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from dumpfs.errors import DumpfsError
from dumpfs.formats.base import DumpImage
from dumpfs.ranges import PfnSet
from dumpfs.units import PageState, Pfn

_WINDOW_BYTES = 4 << 20
"""Bytes of pages read at once: bounds memory, and one message per window costs nothing against decoding it."""

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


class WindowResult(NamedTuple):
    """What reading some consecutive blocks gave."""

    counts: tuple[int, ...]
    """Blocks by `PageState` value; EXCLUDED and ABSENT have no meaning: nobody asked for such blocks."""
    bad: list[BadRange]
    members: int
    """Blocks that were asked for, for progress."""


@dataclass(slots=True)
class ScanTotals:
    """What a whole scan gave: the windows' results and what the image knows by itself."""

    counts: list[int] = field(default_factory=lambda: [0] * len(PageState))
    """Blocks by `PageState` value, as far as the scan came; EXCLUDED and ABSENT have no meaning here."""
    bad: list[BadRange] = field(default_factory=list)
    dropped: int = 0
    """Bad ranges that were counted but not kept."""
    members: int = 0

    def add(self, result: WindowResult) -> None:
        """Count one window."""
        for state, count in enumerate(result.counts):
            self.counts[state] += count
        room = max(_MAX_RANGES - len(self.bad), 0)
        self.bad += result.bad[:room]
        self.dropped += max(len(result.bad) - room, 0)
        self.members += result.members

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


def plan_windows(pages: PfnSet, block_size: int) -> Iterator[tuple[Pfn, int]]:
    """(first, count) of windows that cover `pages`, ascending; near runs share a window, gaps included."""
    limit = max(_WINDOW_BYTES // block_size, 1)
    first = stop = -1
    for run_first, run_stop in pages.runs():
        while run_first < run_stop:
            if first < 0:
                first = run_first
            if run_first >= first + limit:
                yield first, stop - first
                first = -1
                continue
            run_first = stop = min(run_stop, first + limit)
    if first >= 0:
        yield first, stop - first


def scan_window(image: DumpImage, pages: PfnSet, first: Pfn, count: int) -> WindowResult:
    """Read the blocks of one window and tell what came."""
    _, states = image.read_run(first, count)
    bad = [
        BadRange(low, high, PageState(states[match.start()]))
        for match in _BAD.finditer(states)
        for low, high in pages.runs(first + match.start(), first + match.end())  # not the gaps between members
    ]
    counts = [states.count(state) for state in PageState]
    for state in (PageState.LOST, PageState.CORRUPT):
        counts[state] = sum(item.stop - item.first for item in bad if item.state is state)
    return WindowResult(tuple(counts), bad, pages.rank(first + count) - pages.rank(first))


def scan_image(image: DumpImage, jobs: int = 1) -> Generator[WindowResult, None, None]:
    """Read every block that is said to be stored; results come in any order.

    Closing the generator ends the worker processes.

    Raises:
        DumpfsError: a worker process ended early.
    """
    pages = image.stored
    pages.count()  # builds the rank index once, before the fork
    if jobs <= 1:
        for first, count in plan_windows(pages, image.meta.block_size):
            yield scan_window(image, pages, first, count)
        return
    yield from _scan_forked(image, pages, jobs)


def _scan_forked(image: DumpImage, pages: PfnSet, jobs: int) -> Generator[WindowResult, None, None]:
    context = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    workers = []
    try:
        for number in range(jobs):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            worker = context.Process(
                target=_work, args=(image, pages, number, jobs, writer, tuple(readers)), daemon=True
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


def _gather(readers: Sequence[Connection]) -> Generator[WindowResult, None, None]:
    open_readers = list(readers)
    while open_readers:
        for reader in wait(open_readers):
            assert isinstance(reader, Connection)
            try:
                message: WindowResult | str | None = reader.recv()
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
    image: DumpImage, pages: PfnSet, number: int, jobs: int, writer: Connection, readers: tuple[Connection, ...]
) -> None:
    """Body of one worker: every `jobs`-th window, then None.

    Read ends are closed so that writing fails, and the worker ends, once the parent is gone. Ctrl-C reaches the
    whole process group; the parent answers it for all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for reader in readers:
        reader.close()
    try:
        for index, (first, count) in enumerate(plan_windows(pages, image.meta.block_size)):
            if index % jobs == number:
                writer.send(scan_window(image, pages, first, count))
        writer.send(None)
    except BrokenPipeError:
        return
    except DumpfsError as exc:
        writer.send(str(exc))
