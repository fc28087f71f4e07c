"""Flat images that are pieces of physical memory, in one file whose holes were squeezed out or in several files.

Such images come from emulators' backing files, snapshots of small hypervisors, and boards that dump each bank of RAM
(DDRCS0.BIN). Where the pieces belong is not in them, so the user says it: `FILE@ADDRESS` as crash takes it, or
`map=OFFSET:ADDRESS:SIZE` for each piece of one file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from dumpfs.errors import UsageError
from dumpfs.formats.segments import MAX_PADDR, Segment
from dumpfs.sources.base import ByteSource
from dumpfs.units import MIN_PAGE_SIZE

_PLACED = re.compile(r"(.+)@(0[xX][0-9a-fA-F]+|\d+[KMGTkmgt]?)", re.DOTALL)
_HINT = "offsets, addresses and sizes are multiples of 4096, in bytes, hexadecimal with 0x, or with K, M, G or T"


class Piece(NamedTuple):
    """Some bytes of a file, and where in physical memory they belong."""

    offset: int
    """In the file, bytes."""
    address: int
    """Physical, bytes."""
    size: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.offset:#x}:{self.address:#x}:{self.size:#x}"


def parse_number(text: str) -> int:
    """Bytes: decimal, hexadecimal with 0x, or decimal with K, M, G or T (powers of 1024).

    Raises:
        ValueError: it is none of these.
    """
    from dumpfs.units import parse_size

    return int(text, 16) if text[:2].lower() == "0x" else parse_size(text)


def parse_piece(text: str) -> Piece:
    """A piece by its `OFFSET:ADDRESS:SIZE`.

    Raises:
        ValueError: it is none.
    """
    words = text.split(":")
    if len(words) != 3:
        raise ValueError(f"{text!r} is not OFFSET:ADDRESS:SIZE")
    return Piece(*map(parse_number, words))


def split_address(name: str | os.PathLike[str]) -> tuple[str, int | None]:
    """File and address of `FILE@ADDRESS`; None for any other name, and for a file that is really called so."""
    path = os.fspath(name)
    match = _PLACED.fullmatch(path)
    if match is None or os.path.lexists(path):
        return path, None
    return match[1], parse_number(match[2])


def segments_of(
    sources: Sequence[ByteSource], pieces: Sequence[Piece], addresses: Sequence[int | None]
) -> list[Segment]:
    """What is where, with offsets into the files laid end to end.

    Args:
        sources: the files.
        pieces: what `map=` says of the one file, or nothing.
        addresses: what stands behind the @ of each file.

    Raises:
        UsageError: that does not fit the files, or each other.
    """
    if pieces and (len(sources) > 1 or addresses[0] is not None):
        raise UsageError("-o map= places the pieces of one file", hint="name several as FILE@ADDRESS, without map=")
    named = [(source.name, piece) for source in sources for piece in pieces]
    base = 0
    for source, address in zip(sources, addresses, strict=True):
        if pieces:
            break
        if address is None:
            problem = f"{source.name}: where in physical memory it belongs is not said"
            raise UsageError(problem, hint="name FILE@ADDRESS")
        named.append((source.name, Piece(base, address, source.size)))
        base += source.size
    total = sum(source.size for source in sources)
    for name, piece in named:
        _check(name, piece, total)
    ordered = sorted(named, key=lambda row: row[1].address)
    for (_, before), (name, piece) in pairwise(ordered):
        if before.address + before.size > piece.address:
            raise UsageError(f"{name}: the pieces {before} and {piece} overlap in physical memory", hint=_HINT)
    return [Segment(piece.address, piece.size, piece.offset, piece.size) for _, piece in ordered]


def _check(name: str, piece: Piece, total: int) -> None:
    if piece.address % MIN_PAGE_SIZE or piece.offset % MIN_PAGE_SIZE or piece.size <= 0:
        raise UsageError(f"{name}: the piece {piece} does not begin at a page, or is empty", hint=_HINT)
    if piece.address + piece.size > MAX_PADDR:
        raise UsageError(f"{name}: the piece {piece} reaches beyond {MAX_PADDR:#x}, where no memory is", hint=_HINT)
    if piece.offset + piece.size > total:
        raise UsageError(f"{name}: the piece {piece} reaches beyond the end of the file, {total:#x}", hint=_HINT)
