"""Build BTF from descriptions of C types."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 2, 3, 4, 5, 6, 8, 10


@dataclass
class BtfBuilder:
    """Types are added one by one; each method gives the new type's number."""

    byteorder: str = "little"
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    types: bytearray = field(default_factory=bytearray)
    count: int = 0

    @property
    def _prefix(self) -> str:
        return "<" if self.byteorder == "little" else ">"

    def _name(self, text: str) -> int:
        if not text:
            return 0
        needle = b"\0" + text.encode() + b"\0"
        found = self.strings.find(needle)
        if found >= 0:
            return found + 1
        offset = len(self.strings)
        self.strings += needle[1:]
        return offset

    def _add(self, name: str, kind: int, vlen: int, size: int, extra: bytes = b"", flag: bool = False) -> int:
        info = kind << 24 | vlen | (1 << 31 if flag else 0)
        self.types += struct.pack(self._prefix + "III", self._name(name), info, size) + extra
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, bits: int | None = None) -> int:
        """An integer of `size` bytes, of which `bits` are used."""
        return self._add(name, INT, 0, size, struct.pack(self._prefix + "I", 8 * size if bits is None else bits))

    def pointer(self, target: int = 0) -> int:
        """A pointer."""
        return self._add("", PTR, 0, target)

    def array(self, element: int, length: int) -> int:
        """An array."""
        return self._add("", ARRAY, 0, 0, struct.pack(self._prefix + "III", element, 1, length))

    def struct(
        self, name: str, size: int, members: list[tuple[str, int, int]], *, union: bool = False, flag: bool = False
    ) -> int:
        """A structure of (name, type, bit offset) members; with `flag` the offset holds a width in its top byte."""
        extra = b"".join(struct.pack(self._prefix + "III", self._name(n), t, b) for n, t, b in members)
        return self._add(name, UNION if union else STRUCT, len(members), size, extra, flag)

    def typedef(self, name: str, target: int) -> int:
        """A typedef."""
        return self._add(name, TYPEDEF, 0, target)

    def enum(self, name: str, values: dict[str, int]) -> int:
        """An enumeration of 32-bit values."""
        extra = b"".join(struct.pack(self._prefix + "Ii", self._name(n), v) for n, v in values.items())
        return self._add(name, ENUM, len(values), 4, extra)

    def build(self) -> bytes:
        """The whole blob."""
        header = struct.pack(
            self._prefix + "HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + bytes(self.types) + bytes(self.strings)
