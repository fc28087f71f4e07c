"""How many pages a dump has of each state, as far as its bitmaps and headers tell; no page is read."""

from __future__ import annotations

from dataclasses import dataclass

from dumpfs.vfs.context import Dump


@dataclass(frozen=True, slots=True)
class Census:
    """Counts of kernel pages."""

    ram: int
    """Pages the machine had."""
    stored: int
    """Pages whose content is said to be in the dump; damage shows only when they are read."""
    partial: int
    """Of the stored ones, those in which RAM begins or ends."""
    excluded: int
    """Pages left out by the dump level."""
    lost: int
    """Pages that should be in the dump, but are missing because it is incomplete."""


def take_census(dump: Dump) -> Census:
    """Count the pages of `dump`.

    Costs a pass over both bitmaps, once per process: 130 ms for 1 TiB.
    """
    image, phys = dump.image, dump.phys
    scale = image.meta.block_size // phys.page_size
    ram, stored = phys.ram.count(), phys.stored.count()
    lost = 0 if image.meta.complete else dump.lost.count()
    partial = sum(scale for block in image.partial if block in image.stored)
    return Census(ram, stored, partial, max(ram - stored - lost, 0), lost)
