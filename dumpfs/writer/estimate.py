"""How large a dump will be, told from some of its pages before any is written.

Memory is alike over megabytes and unlike over gigabytes, so the sample is many short runs of pages at even distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import Batches, bits_of, count_bits
from dumpfs.writer.bytesink import NullSink
from dumpfs.writer.copythrough import choose_encoder
from dumpfs.writer.plan import WritePlan
from dumpfs.writer.sink_elf import ElfSink
from dumpfs.writer.sink_kdump import KdumpSink

_PLACES = 256
"""Runs of a sample, each of 64 pages of 4 KiB: half a second of the slowest codec's work. Of larger pages fewer."""
_LEAST_PLACES = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """The size of the finished files together."""

    nbytes: int
    sampled: int
    """Pages it was told from; 0 where they need not be looked at, for the size is known."""


def estimate_size(plan: WritePlan, *, elf: bool, files: int, tick: Callable[[], None] = lambda: None) -> Estimate:
    """How large the files of `plan` will be, not counting what the flattened form adds.

    Args:
        plan: the dump.
        elf: whether it becomes an ELF core.
        files: 1, or the parts of a split set, each of which has all headers.
        tick: called every now and then; may raise to stop.

    Raises:
        DumpfsError: a codec's library fails; pages that cannot be read take no room.
    """
    if elf:
        return Estimate(ElfSink(plan, NullSink()).end, 0)
    headers = KdumpSink(plan, NullSink()).end * files
    if not plan.codec_flag and not plan.shares_zero_pages:
        lost = count_bits(plan.dump & bits_of(plan.image.lost, plan.facts.max_mapnr))
        return Estimate(headers + (plan.count - lost) * plan.facts.page_size, 0)
    encoder = choose_encoder(plan)
    pages = nbytes = 0
    for first, stop in _sample(plan):
        tick()
        encoded = encoder.encode(first, stop)
        pages += len(encoded.kinds)
        nbytes += encoded.nbytes
    return Estimate(headers + nbytes * plan.count // max(pages, 1), pages)


def _sample(plan: WritePlan) -> list[tuple[Pfn, Pfn]]:
    """The pfns to look at: all of a small dump."""
    places = max(_PLACES * 4096 // plan.facts.page_size, _LEAST_PLACES)
    if plan.count <= places * Batches.GRANULE:
        return [(first, stop) for first, stop, _ in plan.batches()]
    stop = plan.facts.max_mapnr
    return [(first, min(first + Batches.GRANULE, stop)) for first in plan.batches().granules_apart(places)]
