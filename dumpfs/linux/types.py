"""C types of the dumped kernel: where members of its structures lie, from whatever source knows.

Sources of such knowledge, in this order: the BTF that the dump holds, the BTF or DWARF of a given vmlinux. A member is
named by a path as in C, `signal.thread_head.next` or `mem[0].base`; members of anonymous structures and unions belong
to their parent, as in C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from dumpfs.errors import DumpfsError


class MissingTypeError(DumpfsError):
    """A C type or member is not known, or this kernel does not have it."""

    exit_code = 6

    def __init__(self, name: str, problem: str = "no such type", *, hint: str | None = None) -> None:
        super().__init__(f"{name}: {problem}", hint=hint)
        self.name = name


class Member(NamedTuple):
    """Where a member lies in its structure."""

    offset: int
    """Bytes; of a bit-field, of the byte that holds its lowest-numbered bit."""
    size: int
    """Bytes of its type; 0 when that is unknown (a flexible array)."""
    bit_offset: int = 0
    """Of a bit-field: bits from `offset`, counted as the compiler numbers them (from the least significant bit on
    little-endian, from the most significant on big-endian)."""
    bit_size: int = 0
    """Of a bit-field: its width; else 0."""
    length: int = 1
    """Elements, when it is an array."""


class TypeInfo(Protocol):
    """Knowledge of C types. Structures, unions and typedefs of such are asked by name alone."""

    origin: str
    """Where the knowledge comes from, for people."""

    def member(self, struct: str, path: str) -> Member:
        """Where a member is.

        Raises:
            MissingTypeError: no such structure or member.
        """

    def size(self, struct: str) -> int:
        """Bytes of a structure, or MissingTypeError."""

    def enumerators(self, prefix: str) -> Mapping[str, int]:
        """Values of all enumerators whose names begin with `prefix`."""


class Types:
    """Shorthand over a `TypeInfo`, with a memory of what was asked. Any thread may use it."""

    def __init__(self, info: TypeInfo) -> None:
        self.info = info
        self.origin = info.origin
        self.known: dict[tuple[str, str], Member | None] = {}
        """Answers so far: DWARF is slow to ask."""
        self.sizes: dict[str, int | None] = {}

    def member(self, struct: str, path: str) -> Member:
        """See `TypeInfo.member`."""
        found = self.find(struct, path)
        if found is None:
            raise MissingTypeError(f"struct {struct}", f"has no member {path}")
        return found

    def find(self, struct: str, *paths: str) -> Member | None:
        """The first of `paths` that this kernel's structure has (members move and change names), or None."""
        for path in paths:
            key = (struct, path)
            if key not in self.known:
                try:
                    self.known[key] = self.info.member(struct, path)
                except MissingTypeError:
                    self.known[key] = None
            found = self.known[key]
            if found is not None:
                return found
        return None

    def offset(self, struct: str, *paths: str) -> int:
        """Byte offset of the first of `paths` that exists, or MissingTypeError."""
        found = self.find(struct, *paths)
        if found is None:
            raise MissingTypeError(f"struct {struct}", f"has no member {' or '.join(paths)}")
        return found.offset

    def has(self, struct: str, path: str) -> bool:
        """Whether the structure exists and has that member."""
        return self.find(struct, path) is not None

    def size(self, struct: str) -> int:
        """See `TypeInfo.size`."""
        if struct not in self.sizes:
            try:
                self.sizes[struct] = self.info.size(struct)
            except MissingTypeError:
                self.sizes[struct] = None
        size = self.sizes[struct]
        if size is None:
            raise MissingTypeError(f"struct {struct}", f"not in the {self.origin}")
        return size

    def enumerators(self, prefix: str) -> Mapping[str, int]:
        """See `TypeInfo.enumerators`."""
        return self.info.enumerators(prefix)


def split_path(path: str) -> list[tuple[str, int | None]]:
    """(member, index or None) of each step of 'a.b[2].c'.

    Raises:
        ValueError: it is no such path.
    """
    steps: list[tuple[str, int | None]] = []
    for part in path.split("."):
        name, bracket, rest = part.partition("[")
        if not name or (bracket and not rest.endswith("]")):
            raise ValueError(f"{path!r} is not a path of members")
        steps.append((name, int(rest[:-1]) if bracket else None))
    return steps
