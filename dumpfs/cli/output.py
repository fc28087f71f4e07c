"""Standard output for the bytes of a file of the tree: as they are, with holes in a file, or escaped on a terminal.

What a dead kernel wrote may command a terminal, so a terminal gets it as `units.text_lines` has it. A pipe and a file
get every byte. In a file that ends where we write, zeros become holes: a copy of memory takes no more room than the
memory that the dump has.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from typing import Protocol

from dumpfs.cli.common import write_stdout
from dumpfs.units import text_lines, zeros

_BLOCK = 4096
"""Smallest hole of a file system worth the name."""


class Output(Protocol):
    """Takes the bytes one piece after the other; OSError when they cannot be written."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def finish(self) -> None:
        """There are no more, or none that can be had."""


def standard_output() -> Output:
    """The output that fits what standard output is."""
    sys.stdout.flush()
    if sys.stdout.isatty():
        return TerminalOutput()
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return PlainOutput()  # a file of Python's own
    return SparseOutput(descriptor) if _ends_here(descriptor) else PlainOutput()


def _ends_here(descriptor: int) -> bool:
    """Whether what is written next is the end of a regular file, so that bytes passed over are zeros.

    One that is open for appending (>>) has no position to move.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        return False
    return os.lseek(descriptor, 0, os.SEEK_CUR) >= status.st_size


class PlainOutput:
    """Every byte as it is."""

    def write(self, data: bytes) -> None:
        """See `Output`."""
        write_stdout(data)

    def finish(self) -> None:
        """See `Output`."""


class TerminalOutput:
    """Text for a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def write(self, data: bytes, final: bool = False) -> None:
        """See `Output`; a character whose end is in the next piece waits for it."""
        text = self._decoder.decode(data, final)
        write_stdout(text_lines(text.encode("utf-8", "surrogateescape")))

    def finish(self) -> None:
        """See `Output`."""
        self.write(b"", final=True)


class SparseOutput:
    """A regular file, in which runs of zeros become holes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """See `Output`."""
        for piece, is_hole in _split(data):
            # The descriptor may be shared, with programs before and after us: the position is theirs, too.
            if is_hole and _ends_here(self._descriptor):
                os.lseek(self._descriptor, len(piece), os.SEEK_CUR)
                continue
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """See `Output`: a hole at the end counts, too."""
        position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if position > os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, position)


def _split(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `data` in order, each with whether it is a run of whole blocks of zeros."""
    begin = 0
    before: bool | None = None
    if data == zeros(len(data)):
        yield data, len(data) >= _BLOCK
        return
    for offset in range(0, len(data), _BLOCK):
        is_hole = data[offset : offset + _BLOCK] == zeros(_BLOCK)
        if before is not None and is_hole != before:
            yield data[begin:offset], before
            begin = offset
        before = is_hole
    if before is not None:
        yield data[begin:], before
