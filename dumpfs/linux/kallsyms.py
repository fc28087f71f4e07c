"""The kernel's own symbol table, as the kernel keeps it in its read-only data.

Names are packed: each is a length (one byte, or two when bit 7 of the first is set) and that many token numbers; the
tokens' texts make the name, whose first character is the symbol's type. Addresses come in one of four ways, told apart
by which of them puts `_stext` where VMCOREINFO has it:

    absolute    kallsyms_addresses, one word each (before 4.6, and where relative ones were not chosen)
    per-CPU     kallsyms_offsets: not negative is the address itself, negative is relative_base - 1 - offset
    relative    kallsyms_offsets: relative_base + offset, unsigned
    self        kallsyms_offsets: address of the entry + offset, signed (no relative_base any more)

    num_syms | names ......... | markers | token_table | token_index      (and offsets, relative_base before or behind)

Sources: Linux kernel/kallsyms.c and scripts/kallsyms.c (encoding, order of tables, what /proc/kallsyms prints),
makedumpfile kallsyms.c (VMCOREINFO keys, telling the schemes apart).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from dumpfs.errors import CorruptDumpError, DumpfsError, ViewError
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import one_word
from dumpfs.vmcoreinfo import Vmcoreinfo

MAX_SYMBOLS = 1_500_000
"""Real kernels have under 300,000."""
_MAX_NAMES = 64 << 20
_MAX_TEXT = 64 << 20
"""Bytes of all names, packed and not; real ones have 2 and 5 MB."""
_TOKENS = 256
_MAX_TOKEN_TABLE = 1 << 15
_SEPARATOR = 0x100
"""A character that is no token, to part the names while they are decoded."""


class Symbol(NamedTuple):
    """Where an address lies."""

    name: str
    offset: int
    """Bytes from the symbol's address."""
    size: int
    """Bytes to the next symbol."""
    module: str = ""
    """'' for the kernel itself."""

    def __str__(self) -> str:
        text = f"{self.name}+{self.offset:#x}/{self.size:#x}"
        return f"{text} [{self.module}]" if self.module else text


class Kallsyms:
    """Symbols in the table's order; immutable, any thread may ask.

    Args:
        addresses: one each.
        names: one each.
        types: one letter each, as nm has them.
        origin: where the table came from, for people.
    """

    def __init__(self, addresses: array[int], names: Sequence[str], types: str, origin: str) -> None:
        if not len(addresses) == len(names) == len(types):
            raise ValueError("addresses, names and types differ in number")
        self.addresses = addresses
        self.types = types
        self.origin = origin
        # One text and one array instead of an object per symbol: 170,000 names are 5 MB here and 20 MB as a dict.
        self._text = ("\n" + "\n".join(names) + "\n").encode("utf-8", "surrogateescape")
        coded = names if self._text.isascii() else [name.encode("utf-8", "surrogateescape") for name in names]
        # The line feed before the names, and one behind each.
        self._starts = array("I", accumulate(map((1).__add__, map(len, coded)), initial=1))
        self._order: array[int] | None = None
        self._sorted: array[int] | None = None

    @classmethod
    def thaw(cls, origin: str, parts: Sequence[bytes]) -> Kallsyms:
        """The symbols that `freeze` gave the parts of, on this machine; nothing is checked again."""
        self = cls.__new__(cls)
        addresses, types, self._text, starts = parts
        self.origin, self.types = origin, types.decode("latin-1")
        self.addresses, self._starts = array("Q", addresses), array("I", starts)
        self._order = self._sorted = None
        return self

    def freeze(self) -> tuple[bytes, ...]:
        """What `thaw` makes the same symbols of, in another process of this machine."""
        return self.addresses.tobytes(), self.types.encode("latin-1"), self._text, self._starts.tobytes()

    def __len__(self) -> int:
        return len(self.addresses)

    def name(self, index: int) -> str:
        """Name of the symbol with that index."""
        return self._text[self._starts[index] : self._starts[index + 1] - 1].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """(address, type, name) in the table's order."""
        names = self._text[1:-1].decode("utf-8", "surrogateescape").split("\n") if len(self) else []
        return zip(self.addresses, self.types, names, strict=True)

    def indexes(self, name: str) -> Iterator[int]:
        """Every symbol of that name; static ones may share it."""
        needle = b"\n" + name.encode("utf-8", "surrogateescape") + b"\n"
        found = self._text.find(needle)
        while found >= 0:
            yield bisect_left(self._starts, found + 1)
            found = self._text.find(needle, found + 1)

    def address(self, name: str) -> int | None:
        """Address of the first symbol of that name, or None."""
        index = next(self.indexes(name), None)
        return None if index is None else self.addresses[index]

    def need(self, name: str) -> int:
        """Like `address`.

        Raises:
            ViewError: there is no such symbol.
        """
        found = self.address(name)
        if found is None:
            raise ViewError(f"the kernel has no symbol {name}")
        return found

    def _by_address(self) -> tuple[array[int], array[int] | None]:
        """(ascending addresses, indexes in that order or None when that is the table's own)."""
        if self._sorted is None:
            plain = self.addresses
            if all(map(int.__le__, plain[:-1], plain[1:])):
                self._sorted = plain
            else:
                self._order = array("I", sorted(range(len(plain)), key=plain.__getitem__))
                self._sorted = array("Q", [plain[i] for i in self._order])
        return self._sorted, self._order

    def lookup(self, vaddr: int) -> Symbol | None:
        """The symbol that covers `vaddr`, the first of several at one address; None before the first, after the last.

        Per-CPU symbols are offsets, not addresses, and so never cover anything.
        """
        addresses, order = self._by_address()
        after = bisect_right(addresses, vaddr)
        if not 0 < after < len(addresses):
            return None
        start = addresses[after - 1]
        first = bisect_left(addresses, start)
        index = first if order is None else order[first]
        # Between the last per-CPU offset and the first real address nothing is covered.
        if self.types[index] in "Aa" and start < self._lowest_real():
            return None
        return Symbol(self.name(index), vaddr - start, addresses[after] - start)

    def _lowest_real(self) -> int:
        found = self.address("_stext") or self.address("_text")
        return found if found is not None else 0


@dataclass(frozen=True, slots=True)
class KallsymsTables:
    """Where the tables are; virtual addresses."""

    names: int
    num_syms: int
    token_table: int
    token_index: int
    offsets: int | None = None
    relative_base: int | None = None
    """None with `offsets`: each offset counts from its own place."""
    addresses: int | None = None


def tables_from_vmcoreinfo(info: Vmcoreinfo) -> KallsymsTables:
    """The tables as VMCOREINFO tells them (6.0 and newer).

    Raises:
        ViewError: it does not.
    """
    found = {name: info.symbol(f"kallsyms_{name}") for name in KallsymsTables.__slots__}
    names, num_syms = found["names"], found["num_syms"]
    table, index = found["token_table"], found["token_index"]
    if names is None or num_syms is None or table is None or index is None:
        raise ViewError("VMCOREINFO does not tell where kallsyms is (kernels before 6.0, or without CONFIG_KALLSYMS)")
    if found["offsets"] is None and found["addresses"] is None:
        raise ViewError("VMCOREINFO does not tell where the addresses of kallsyms are")
    return KallsymsTables(names, num_syms, table, index, found["offsets"], found["relative_base"], found["addresses"])


def read_kallsyms(space: AddressSpace, tables: KallsymsTables, stext: int | None, origin: str) -> Kallsyms:
    """Decode the kernel's symbol table.

    Args:
        space: kernel memory.
        tables: where it is.
        stext: address of `_stext`, which tells how addresses are coded; None takes the likeliest way.
        origin: for people.

    Raises:
        CorruptDumpError: the tables contradict themselves.
        DumpfsError: part of them is not in the dump.
    """
    count = space.read_u32(tables.num_syms)
    if not 0 < count <= MAX_SYMBOLS:
        raise CorruptDumpError("kallsyms", f"{count} symbols cannot be")
    tokens = read_tokens(space, tables)
    names = _read_names(space, tables, count, tokens)
    if not all(names):
        raise CorruptDumpError("kallsyms", "a symbol without type and name")
    types = "".join(map(itemgetter(0), names))
    names = list(map(itemgetter(slice(1, None)), names))
    schemes = _read_addresses(space, tables, count)
    return Kallsyms(_choose(schemes, names, stext), names, types, origin)


def read_tokens(space: AddressSpace, tables: KallsymsTables) -> list[str]:
    """The texts of the 256 tokens."""
    raw = array("H", space.read(tables.token_index, 2 * _TOKENS))
    if space.byteorder != sys.byteorder:
        raw.byteswap()
    if any(map(int.__ge__, raw[:-1], raw[1:])) or raw[-1] >= _MAX_TOKEN_TABLE:
        raise CorruptDumpError("kallsyms", "the token index does not ascend", offset=tables.token_index)
    last = space.read_cstring(tables.token_table + raw[-1], 1024)
    table = space.read(tables.token_table, raw[-1]) + last + b"\0"
    tokens = [table[at : table.index(b"\0", at)].decode("latin-1") for at in raw]
    if any("\n" in token for token in tokens):
        raise CorruptDumpError("kallsyms", "a token holds a line feed", offset=tables.token_table)
    return [one_word(token) for token in tokens]  # so that all names are fit for a terminal


def _read_names(space: AddressSpace, tables: KallsymsTables, count: int, tokens: Sequence[str]) -> list[str]:
    """Types and names, unpacked; all tokens of all names are translated in one go."""
    blob = _NamesBlob(space, tables)
    data, text = blob.data, blob.text
    parts = []
    position = 0
    try:
        for _ in range(count):
            length = data[position]
            position += 1
            if length & 0x80:
                length = length & 0x7F | data[position] << 7
                position += 1
            end = position + length
            parts.append(text[position:end])
            position = end
    except IndexError:
        position = len(data) + 1
    if position > len(data):
        problem = blob.problem or CorruptDumpError("kallsyms", f"{count} names do not fit in {len(data)} bytes")
        raise problem
    _check_size(data[:position], tokens)
    joined = chr(_SEPARATOR).join(parts).translate([*tokens, "\n"])
    names = joined.split("\n")
    if len(names) != count:
        raise CorruptDumpError("kallsyms", "names hold line feeds")
    return names


def _check_size(data: bytes, tokens: Sequence[str]) -> None:
    """Refuse tokens that would blow the names up to more than memory may hold."""
    if len(data) * max(map(len, tokens)) <= _MAX_TEXT:
        return
    total = sum(data.count(number) * len(token) for number, token in enumerate(tokens))
    if total > _MAX_TEXT:
        raise CorruptDumpError("kallsyms", f"names of {total} bytes cannot be")


class _NamesBlob:
    """The packed names: up to the token table when that follows, else as far as memory goes."""

    def __init__(self, space: AddressSpace, tables: KallsymsTables) -> None:
        size = tables.token_table - tables.names
        if not 0 < size <= _MAX_NAMES:
            size = _MAX_NAMES
        pieces: list[bytes] = []
        self.problem: DumpfsError | None = None
        position = 0
        while position < size:
            step = min(1 << 16, size - position)
            try:
                pieces.append(space.read(tables.names + position, step))
            except DumpfsError as exc:
                self.problem = exc
                break
            position += step
        self.data = b"".join(pieces)
        self.text = self.data.decode("latin-1")


def _read_addresses(space: AddressSpace, tables: KallsymsTables, count: int) -> Iterator[array[int]]:
    """The addresses under every scheme that is possible, likeliest first."""
    mask = (1 << 8 * space.word_size) - 1
    if tables.offsets is not None:
        offsets = array("i", space.read(tables.offsets, 4 * count))
        if space.byteorder != sys.byteorder:
            offsets.byteswap()
        if tables.relative_base is not None:
            base = space.read_word(tables.relative_base)
            if any(map((0).__gt__, offsets)):
                before = base - 1
                yield array("Q", [o if o >= 0 else before - o & mask for o in offsets])
            yield array("Q", [base + (o & 0xFFFFFFFF) & mask for o in offsets])
        places = range(tables.offsets, tables.offsets + 4 * count, 4)
        yield array("Q", [place + o & mask for place, o in zip(places, offsets, strict=True)])
    if tables.addresses is not None:
        words = array("Q" if space.word_size == 8 else "I", space.read(tables.addresses, space.word_size * count))
        if space.byteorder != sys.byteorder:
            words.byteswap()
        yield array("Q", words)


def _choose(schemes: Iterable[array[int]], names: Sequence[str], stext: int | None) -> array[int]:
    """The first scheme that puts `_stext` where it is known to be; without that knowledge the first that ascends."""
    try:
        index = names.index("_stext")
    except ValueError:
        raise CorruptDumpError("kallsyms", "there is no symbol _stext") from None
    seen = None
    for addresses in schemes:
        if stext is None:
            ascends = all(map(int.__le__, addresses[:-1], addresses[1:]))
            if ascends:
                return addresses
            continue
        seen = addresses[index]
        if seen == stext:
            return addresses
    if stext is None:
        raise CorruptDumpError("kallsyms", "under no known coding do the addresses ascend")
    where = "nowhere" if seen is None else f"at {seen:#x}"
    raise CorruptDumpError("kallsyms", f"_stext is {where}, not at {stext:#x} as VMCOREINFO has it")


def render_kallsyms(symbols: Iterable[tuple[int, str, str]], word_size: int, module: str = "") -> str:
    """Lines as /proc/kallsyms prints them for root; `module` is added in brackets."""
    suffix = f"\t[{module}]\n" if module else "\n"
    if word_size == 8:
        return "".join([f"{a:016x} {t} {n}{suffix}" for a, t, n in symbols])
    return "".join([f"{a:08x} {t} {n}{suffix}" for a, t, n in symbols])
