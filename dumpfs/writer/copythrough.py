"""Whether pages are encoded anew or copied as they are stored."""

from __future__ import annotations

from typing import Protocol

from dumpfs.units import Pfn
from dumpfs.writer.encode import Encoded, Encoder
from dumpfs.writer.plan import WritePlan


class BatchEncoder(Protocol):
    """What turns a batch into stored bytes."""

    def encode(self, first: Pfn, stop: Pfn) -> Encoded:
        """See `Encoder.encode`."""


def choose_encoder(plan: WritePlan) -> BatchEncoder:
    """The fastest encoder that gives what `plan` asks for."""
    return Encoder(plan)
