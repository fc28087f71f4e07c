"""Reading a dump back and comparing it with its source, page by page (--check)."""

from __future__ import annotations

import numpy as np

from dumpfs.errors import WriteError
from dumpfs.formats import open_image
from dumpfs.formats.base import DumpImage
from dumpfs.units import PageState, Pfn
from dumpfs.writer.bitmaps import runs_of, window
from dumpfs.writer.bytesink import ByteSink, NullSink
from dumpfs.writer.encode import KIND_DATA, KIND_LOST, Encoded, Encoder
from dumpfs.writer.pipeline.engine import Job, Pipeline
from dumpfs.writer.pipeline.run import WriteReport
from dumpfs.writer.plan import WritePlan

_READABLE = (PageState.STORED, PageState.PARTIAL)


class Comparer:
    """Calls a page lost when the dump does not give what the source gives."""

    def __init__(self, plan: WritePlan, written: DumpImage) -> None:
        self._plan, self._written = plan, written
        self._encoder = Encoder(plan)

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """Compare a batch; without content."""
        data, lost = self._encoder.read(first, stop)
        size = self._plan.facts.page_size
        kinds = np.full(len(data) // size, KIND_DATA, dtype=np.uint8)
        index = 0
        view = memoryview(data)
        for low, high in runs_of(window(self._plan.dump, first, stop), first):
            got, states = self._written.read_run(low, high - low)
            count = high - low
            same = got == view[index * size : (index + count) * size]
            for i in range(count) if not same or states.strip(bytes(_READABLE)) else ():
                gone = lost is not None and bool(lost[index + i])
                page = view[(index + i) * size : (index + i + 1) * size]
                good = states[i] in _READABLE and page == got[i * size : (i + 1) * size]
                if not good and not gone:
                    kinds[index + i] = KIND_LOST
            index += count
        empty = np.zeros(len(kinds), dtype=np.uint32)
        return Encoded(empty, empty, kinds, [])


class _Counter:
    """Takes the batches; the pipeline counts."""

    ordered = False

    def __init__(self) -> None:
        self.out: ByteSink = NullSink()

    def place(self, first: Pfn, stop: Pfn, encoded: Encoded) -> list[tuple[int, int, int]]:
        """Nothing is written."""
        return []

    def commit(self, encoded: Encoded, pieces: list[tuple[int, int, int]]) -> None:
        """Nothing is kept."""

    def flush(self) -> None:
        """Nothing waits."""


def verify_dump(report: WriteReport, threads: int) -> None:
    """Compare the files of `report` with their source, which is still open.

    Raises:
        WriteError: pages differ.
        DumpfsError: the files cannot be opened.
    """
    plan = report.plan
    written = open_image(report.names)
    try:
        totals = Pipeline(Comparer(plan, written), [_Counter()], threads, lambda pages: None, str).run(
            Job(0, *batch) for batch in plan.batches()
        )
    finally:
        written.close()
    if totals.cause:
        raise WriteError(f"the check was not finished: {totals.cause}")
    if totals.lost:
        raise WriteError(
            f"{', '.join(report.names)}: {totals.lost} pages do not read back as they were in the source",
            hint="the disk that was written to may be failing",
        )
