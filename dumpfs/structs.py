"""Binary records: a `Layout` of named C fields, evaluated for an `Abi`.

One table of fields serves every byte order, word size and alignment rule, and the same table parses and
builds. Nothing in dumpfs counts offsets by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

ByteOrder = Literal["little", "big"]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Abi:
    """How a C compiler laid a record out."""

    byteorder: ByteOrder
    long_size: int
    """Bytes of `long` and pointers: 4 or 8."""
    u64_align: int
    """Alignment of a 64-bit field: 8, or 4 on i386, or 1 for records declared packed."""

    @property
    def prefix(self) -> str:
        """The `struct` byte-order character."""
        return "<" if self.byteorder == "little" else ">"


LE64 = Abi("little", 8, 8)
BE64 = Abi("big", 8, 8)

_CODES = {"u8": "B", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q"}


@dataclass(frozen=True, slots=True)
class _Compiled:
    struct: struct.Struct
    names: tuple[str, ...]
    offsets: Mapping[str, int]


@dataclass(frozen=True)
class Layout:
    """A C record as (field name, type) pairs.

    Types: u8 u16 u32 u64 i16 i32 i64, `ulong`/`long` (the Abi's word), and `char[N]` (raw bytes).
    Fields are padded to their natural alignment as the Abi says; the record's end is padded to the
    strictest field too unless `tail_padding` is False.
    """

    name: str
    fields: Sequence[tuple[str, str]]
    tail_padding: bool = True

    def __hash__(self) -> int:
        return id(self)

    def size(self, abi: Abi) -> int:
        """Bytes of the record."""
        return _compile(self, abi).struct.size

    def offset(self, abi: Abi, field: str) -> int:
        """Byte offset of `field`."""
        return _compile(self, abi).offsets[field]

    def parse(self, abi: Abi, data: Buffer, offset: int = 0) -> dict[str, int | bytes]:
        """Field values of the record at `offset` of `data`.

        Raises:
            struct.error: `data` is shorter than the record; callers check sizes first.
        """
        compiled = _compile(self, abi)
        return dict(zip(compiled.names, compiled.struct.unpack_from(data, offset), strict=True))

    def parse_ints(self, abi: Abi, data: Buffer, offset: int = 0) -> dict[str, int]:
        """Like `parse`, for the integer fields only."""
        return {k: v for k, v in self.parse(abi, data, offset).items() if isinstance(v, int)}

    def iter_rows(self, abi: Abi, table: Buffer) -> Iterator[tuple[int, ...]]:
        """The records of a table without padding between them, each a tuple in field order; for bulk tables.

        Raises:
            struct.error: `table` is not a whole number of records.
        """
        return _compile(self, abi).struct.iter_unpack(table)

    def build(self, abi: Abi, values: Mapping[str, int | bytes]) -> bytes:
        """The record's bytes; fields not in `values` are zero."""
        compiled = _compile(self, abi)
        types = dict(self.fields)
        return compiled.struct.pack(
            *(values.get(n, b"" if types[n].startswith("char[") else 0) for n in compiled.names)
        )


@lru_cache(maxsize=256)
def _compile(layout: Layout, abi: Abi) -> _Compiled:
    text = abi.prefix
    position = 0
    strictest = 1
    names = []
    offsets = {}
    for name, kind in layout.fields:
        if kind.startswith("char["):
            size, align, code = int(kind[5:-1]), 1, f"{kind[5:-1]}s"
        else:
            if kind in ("ulong", "long"):
                kind = ("u" if kind == "ulong" else "i") + str(8 * abi.long_size)
            code = _CODES[kind]
            size = struct.calcsize("=" + code)
            align = min(size, abi.u64_align)
        padding = -position % align
        text += f"{padding}x{code}" if padding else code
        offsets[name] = position + padding
        position += padding + size
        strictest = max(strictest, align)
        names.append(name)
    if layout.tail_padding and position % strictest:
        text += f"{-position % strictest}x"
    return _Compiled(struct.Struct(text), tuple(names), offsets)
