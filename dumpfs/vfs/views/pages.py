"""/pages: one file per stored page, by page frame number.

Nothing is kept per page: the inode number is the pfn, and a listing comes straight from the dump's bitmap. A page's
name is its pfn in decimal; 0x... is understood too, but not listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import ClassVar

from dumpfs.errors import page_error
from dumpfs.ranges import PfnSet
from dumpfs.units import PageState, Pfn
from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import INDEX_BITS, DirNode, Entry, FileNode, Node, make_ino

SPACE = 1
"""Inode space of the pages; the row in `tree.ROWS` says the same."""
MAX_LISTED = 1 << 20
"""Pages that `pages=auto` lists: each name costs the reader's kernel about 1.1 KiB, and `find` a second a million."""

_FIRST_WINDOW = 1024
_LARGEST_WINDOW = 32768
"""Pfns turned into names at once: few at first, since most requests of the kernel take some 200 names and begin anew
with the next, then ever more, for who walks on."""
_SPARSENESS = 4
"""Where pages lie scattered, a window of this many times the pfns has as many names."""
_LONG_RUN = 64
"""Pages from which on a run is worth its own round."""
_DENSE = 8
"""One member in so many pfns, from which on testing each bit is cheaper than finding each that is set."""
_BITS = bytes.maketrans(b"01", b"\0\1")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


@dataclass(slots=True)
class PageFile(FileNode):
    """One page; its content, or why there is none."""

    dump: Dump
    pfn: Pfn

    def size(self) -> int:
        """See `FileNode.size`."""
        return self.dump.phys.page_size

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        return self.dump.phys.info(self.pfn).size

    def check_open(self) -> None:
        """Refuse an excluded page here; a lost or damaged one can be opened, and fails when it is read."""
        state = self.dump.phys.state(self.pfn)
        if state in (PageState.EXCLUDED, PageState.ABSENT):
            raise page_error(self.pfn, state)

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        data = self.dump.phys.read_page(self.pfn)
        return data if not offset and size >= len(data) else data[offset : offset + size]

    def xattrs(self) -> Mapping[str, bytes]:
        """Where and how the page is stored."""
        info = self.dump.phys.info(self.pfn)
        values = {
            "state": info.state.name.lower(),
            "codec": info.codec,
            "offset": str(info.offset),
            "size": str(info.size),
            "flags": f"{info.flags:#x}",
        }
        if len(self.dump.paths) > 1:
            values["source"] = info.source
        if info.detail:
            values["detail"] = info.detail
        return {f"user.dumpfs.{name}": os.fsencode(value) for name, value in values.items()}


@dataclass(slots=True)
class PagesDir(DirNode):
    """The directory of pages."""

    ABOUT: ClassVar[str] = (
        "one file per page that the dump holds, named by its page frame number in decimal (0x... can be opened too)."
        " Its attributes user.dumpfs.* say how it is stored."
    )

    BARE: ClassVar[bool] = True

    dump: Dump

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`: every dump has pages."""
        return None

    @property
    def listed(self) -> bool:
        """Whether `entries` names the pages; otherwise they can only be opened by name."""
        mode = self.dump.options.pages
        return mode == "list" or (mode == "auto" and self.dump.phys.stored.count() <= MAX_LISTED)

    def lookup(self, name: str) -> Node | None:
        """The page of that name, unless it is not RAM."""
        pfn = _parse_pfn(name)
        if pfn is None or pfn >> INDEX_BITS or self.dump.phys.state(pfn) is PageState.ABSENT:
            return None
        return PageFile(make_ino(SPACE, pfn), self.dump, pfn)

    def member(self, ino: int, index: int) -> PageFile:
        """See `tree.MemberDir`."""
        return PageFile(ino, self.dump, index)

    def entries(self, cookie: int) -> Iterator[Entry]:
        """See `DirNode.entries`; the cookie of a page is its pfn + 1."""
        if not self.listed:
            return iter(())
        return chain.from_iterable(map(_entries, _batches(self.dump.phys.stored, cookie)))


def _entries(pfns: Sequence[Pfn]) -> Iterator[tuple[int, bytes, int]]:
    """(cookie, name, inode number) of each page: a million of them should take less than a second."""
    first_ino = make_ino(SPACE, 0)
    names = (b"%d " * len(pfns) % tuple(pfns)).split()
    return zip([pfn + 1 for pfn in pfns], names, [first_ino + pfn for pfn in pfns], strict=True)


def _batches(members: PfnSet, first: Pfn) -> Iterator[Sequence[Pfn]]:
    """The members from `first` on, ascending, in batches that suit how dense they are."""
    window = _FIRST_WINDOW
    while (run := next(iter(members.runs(first)), None)) is not None:
        start, stop = run
        if stop - start >= _LONG_RUN:
            first = min(stop, start + window // _SPARSENESS)
            yield range(start, first)
        else:
            first = start + window
            yield _members(members, start, first)
        window = min(2 * window, _LARGEST_WINDOW)


def _members(members: PfnSet, start: Pfn, stop: Pfn) -> Sequence[Pfn]:
    """The members in `[start, stop)`."""
    base = start // 8
    bits = int.from_bytes(members.read_bits(base, -(-stop // 8) - base), "little") >> (start - 8 * base)
    bits &= (1 << (stop - start)) - 1
    digits = f"{bits:b}".encode()[::-1]
    if bits.bit_count() * _DENSE >= stop - start:
        return list(compress(range(start, start + len(digits)), digits.translate(_BITS)))
    found = []
    at = digits.find(b"1")
    while at >= 0:
        found.append(start + at)
        at = digits.find(b"1", at + 1)
    return found


def _parse_pfn(name: str) -> Pfn | None:
    """The pfn that a file name stands for: decimal without leading zeros, or 0x and hex digits."""
    if len(name) > 18 or not name.isascii():
        return None
    if name.isdigit():
        return int(name) if name[0] != "0" or name == "0" else None
    if name[:2] in ("0x", "0X") and name[2:] and _HEX_DIGITS.issuperset(name[2:]):
        return int(name, 16)
    return None
