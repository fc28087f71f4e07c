"""Redaction: overwriting what a filter configuration names, in every page of the dump that holds it.

    [vmlinux]
    erase SYMBOL[.MEMBER...]                 all of it; what a pointer points at; a string up to its end
    erase SYMBOL[.MEMBER...] size N|SYMBOL   so many bytes
    erase SYMBOL[.MEMBER...] nullify         a pointer becomes null

Pages are changed by physical address before they are encoded, so no form of the output has the bytes, under whatever
virtual address they would be read. Names and sizes, never contents, are recorded as erase information.

Source: makedumpfile.conf(5) (grammar and meaning); erased bytes become 'X', nullified ones zero, as there.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from dumpfs.errors import DumpfsError, UsageError
from dumpfs.formats.base import DumpImage
from dumpfs.linux.debugfile import DebugFile
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.types import MissingTypeError
from dumpfs.linux.variables import Place, find_place
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import Pfn

ERASED, NULLIFIED = b"X", b"\0"
_MAX_STRING = 4096
_MAX_ERASE = 1 << 30
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_NUMBER = re.compile(r"(\d+)([KMkm]?)")
_LATER = ("for", "endfor")


@dataclass(frozen=True, slots=True)
class Rule:
    """One erase command."""

    path: str
    """symbol.member.member"""
    size: int | None = None
    size_path: str = ""
    """A variable that holds the size."""
    nullify: bool = False


class PhysicalEraser:
    """Overwrites ranges of physical memory; see `plan.Eraser`.

    Args:
        ranges: (paddr, bytes, fill byte), in any order.
        page_size: bytes of a page.
        first_paddr: physical address of pfn 0.
    """

    def __init__(self, ranges: Iterable[tuple[int, int, bytes]], page_size: int, first_paddr: int) -> None:
        self._ranges = sorted((start, start + size, fill) for start, size, fill in ranges if size > 0)
        self._reach: list[int] = []
        """Highest end among the ranges up to each: ranges may overlap."""
        for _, stop, _ in self._ranges:
            self._reach.append(max(stop, self._reach[-1] if self._reach else 0))
        self._starts = [start for start, _, _ in self._ranges]
        self._page_size, self._first_paddr = page_size, first_paddr

    def patch(self, first: Pfn, data: bytes) -> bytes:
        """See `plan.Eraser.patch`."""
        base = self._first_paddr + first * self._page_size
        end = base + len(data)
        i = bisect_right(self._starts, end - 1) - 1
        out: bytearray | None = None
        while i >= 0 and self._reach[i] > base:
            start, stop, fill = self._ranges[i]
            low, high = max(start, base), min(stop, end)
            if low < high:
                out = bytearray(data) if out is None else out
                out[low - base : high - base] = fill * (high - low)
            i -= 1
        return data if out is None else bytes(out)


@dataclass
class EraseRules:
    """The rules of one configuration file."""

    rules: list[Rule]
    name: str
    vmlinux: str | None
    _info: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: bytes, name: str, vmlinux: str | None) -> EraseRules:
        """The rules in `text`.

        Args:
            text: the configuration file.
            name: of the file, for messages.
            vmlinux: path of -x, or None.

        Raises:
            UsageError: a line is not understood, or its command is not offered.
        """
        rules: list[Rule] = []
        for number, raw in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if not line:
                continue
            where = f"{name}, line {number}"
            if line.startswith("["):
                if line != "[vmlinux]":
                    raise UsageError(
                        f"{where}: section {line} is not offered", hint="only [vmlinux] is, modules are not"
                    )
                continue
            rules.append(_parse_rule(line, where))
        return cls(rules, name, vmlinux)

    def resolve(self, kernel: Kernel, image: DumpImage) -> PhysicalEraser:
        """The memory that the rules name; also fills `eraseinfo`.

        Raises:
            DumpfsError: a symbol or member is not known, or where it lies is not in the dump: nothing is written then,
                for a dump that should have been redacted must not exist by mistake.
        """
        if kernel.space is None:
            raise UsageError(f"{self.name}: kernel memory cannot be translated, so nothing can be erased")
        finder = _Finder(kernel, kernel.space, self.vmlinux)
        ranges: list[tuple[int, int, bytes]] = []
        for rule in self.rules:
            vaddr, size = finder.extent(rule)
            if not 0 <= size <= _MAX_ERASE:
                raise UsageError(f"erase {rule.path}: {size} bytes are too many")
            fill = NULLIFIED if rule.nullify else ERASED
            ranges += [(paddr, run, fill) for paddr, run in kernel.space.runs(vaddr, size)]
            self._info.append(f"erase {rule.path} {'nullify' if rule.nullify else size}\n")
        return PhysicalEraser(ranges, image.meta.block_size, image.meta.first_paddr)

    def eraseinfo(self) -> bytes:
        """What was erased, in makedumpfile's words; after `resolve`."""
        return "".join(self._info).encode()


def _parse_rule(line: str, where: str) -> Rule:
    words = line.split()
    if words[0] in _LATER:
        raise UsageError(
            f"{where}: loops (for ... within ... endfor) are not offered", hint="name each member with erase"
        )
    if words[0] != "erase" or len(words) < 2:
        raise UsageError(f"{where}: {words[0]!r} is no command", hint="erase SYMBOL[.MEMBER...] [size N | nullify]")
    path, rest = words[1], words[2:]
    if not _PATH.fullmatch(path):
        raise UsageError(f"{where}: {path!r} is not SYMBOL[.MEMBER...]")
    if not rest:
        return Rule(path)
    if rest == ["nullify"]:
        return Rule(path, nullify=True)
    if len(rest) == 2 and rest[0] == "size":
        number = _NUMBER.fullmatch(rest[1])
        if number:
            return Rule(path, size=int(number[1]) << {"": 0, "K": 10, "M": 20}[number[2].upper()])
        if _PATH.fullmatch(rest[1]):
            return Rule(path, size_path=rest[1])
    raise UsageError(f"{where}: {' '.join(rest)!r} is not understood", hint="size N, size SYMBOL, or nullify")


class _Finder:
    """Where in memory things are."""

    def __init__(self, kernel: Kernel, space: AddressSpace, vmlinux: str | None) -> None:
        self._kernel, self._space, self._vmlinux = kernel, space, vmlinux
        self._inspector = Inspector(kernel, DebugFile(vmlinux) if vmlinux is not None else None)

    def extent(self, rule: Rule) -> tuple[int, int]:
        """(vaddr, bytes) of what a rule erases."""
        place = self._place(rule.path, typed=rule.size is None and not rule.size_path)
        if rule.nullify:
            if not place.is_pointer:
                raise UsageError(f"erase {rule.path} nullify: is not a pointer")
            return place.vaddr, place.size
        size = self._size(rule)
        if size is not None:
            return (self._space.read_word(place.vaddr) if place.is_pointer else place.vaddr), size
        if not place.is_pointer:
            if not place.size:
                raise UsageError(f"erase {rule.path}: its size is not known", hint="say it with size N")
            return place.vaddr, place.size
        target = self._space.read_word(place.vaddr)
        if not target:
            return place.vaddr, 0
        if place.is_string:
            return target, len(self._space.read_cstring(target, _MAX_STRING))
        if not place.target_size:
            raise UsageError(f"erase {rule.path}: what it points at has no known size", hint="say it with size N")
        return target, place.target_size

    def _size(self, rule: Rule) -> int | None:
        if not rule.size_path:
            return rule.size
        place = self._place(rule.size_path, typed=True)
        if place.is_pointer or place.size not in (1, 2, 4, 8):
            raise UsageError(f"size {rule.size_path}: is not a number")
        return self._space.read_int(place.vaddr, place.size)

    def _place(self, path: str, *, typed: bool) -> Place:
        name, *members = path.split(".")
        vaddr = self._inspector.symbol(name)
        if self._vmlinux is None:
            if typed or members:
                raise MissingTypeError(
                    name, "its type is not known", hint="-x VMLINUX tells; or give size N, without members"
                )
            return Place(vaddr, 0)
        link = vaddr - (self._kernel.kaslr_offset or 0)
        try:
            return find_place(self._vmlinux, name, link, vaddr, members, self._space.read_word)
        except MissingTypeError:
            if typed or members:
                raise
            return Place(vaddr, 0)  # a symbol of assembly code: its own bytes are meant
        except DumpfsError:
            raise
