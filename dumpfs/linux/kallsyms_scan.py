"""Where a kernel keeps its symbol table when VMCOREINFO does not tell: before 6.0, or without VMCOREINFO.

The token table gives itself away: most names hold digits, so ten of its tokens are the single digits in a row, and the
index behind it repeats the distances between its strings. From there the rest follows by the order in which the kernel
lays its tables out:

    before 6.4   offsets  relative_base  num_syms  names  markers ... token_table  token_index
    (before 4.6  addresses               num_syms  names  markers     token_table  token_index)
    since        num_syms  names  markers  token_table  token_index  offsets  relative_base ...

Sources: Linux scripts/kallsyms.c of several versions (order and alignment); vmlinux-to-elf (the digits as a sign).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice

from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.kallsyms import MAX_SYMBOLS, Kallsyms, KallsymsTables, read_kallsyms
from dumpfs.linux.records import find_bytes
from dumpfs.memory.virtual import AddressSpace

_DIGITS = b"".join(b"%d\0" % n for n in range(10))
_ZERO = ord("0")
_TOKENS = 256
_MAX_TABLE = 1 << 14
_MAX_NAMES = 16 << 20
"""Bytes before the token table that are searched for the number of symbols."""
_MAX_TOKEN = 256
_MIN_SYMBOLS = 500
_MAX_TRIES = 64
_MAX_TABLES = 16
_MAX_DIGITS = 100
"""Rows of digits to look at; a kernel image has under ten."""
_MAX_STEPS = 3_000_000
"""Names stepped over in all: what bounds the search of an image full of things that look like a table."""


def find_kallsyms(space: AddressSpace, ranges: Iterable[tuple[int, int]], stext: int | None) -> Kallsyms:
    """The kernel's symbol table, found by its looks.

    Args:
        space: kernel memory.
        ranges: (address, bytes) of the kernel image's parts.
        stext: address of `_stext` when it is known.

    Raises:
        ViewError: there is none that makes sense.
    """
    image = tuple(ranges)
    budget = [_MAX_STEPS]
    found = (
        tables
        for table, index in islice(_token_tables(space, image), _MAX_TABLES)
        for tables in _candidates(space, image, table, index, budget)
    )
    for tables in islice(found, _MAX_TRIES):
        try:
            return read_kallsyms(space, tables, stext, "kallsyms, found by a search of the kernel image")
        except DumpfsError:
            continue  # it only looked like one
    raise ViewError("no symbol table was found in the kernel image", hint="-o vmlinux=FILE supplies the symbols")


def _token_tables(space: AddressSpace, image: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(address of the table, address of its index) of everything that looks like one."""
    for start, size in image:
        for digits in islice(find_bytes(space, start, size, _DIGITS), _MAX_DIGITS):
            try:
                low = max(digits - _MAX_TABLE, start)
                before = space.read(low, digits - low)
                behind = space.read(digits, min(2 * _MAX_TABLE, start + size - digits))
            except DumpfsError:
                continue
            found = _measure(before, behind, space.byteorder == "little", digits)
            if found is not None:
                yield digits - found[0], digits + found[1]


def _measure(before: bytes, behind: bytes, little: bool, digits: int) -> tuple[int, int] | None:
    """(bytes before the digits, bytes from them to the index) when a table of 256 strings and its index are here.

    Args:
        before: what lies before the digits, up to them.
        behind: what lies from them on.
        little: byte order.
        digits: address of the digits.
    """
    second = len(before)
    for _ in range(_ZERO - 1):  # back to the second string
        second = before.rfind(b"\0", 0, second - 1) + 1 if second > 0 else 0
    ends = []
    table = before[second:] + behind
    end = -1
    for _ in range(_TOKENS - 1):
        end = table.find(b"\0", end + 1)
        if not 0 <= end <= _MAX_TABLE:
            return None
        ends.append(end + 1)
    # Nothing marks where the first string begins but that the index agrees.
    for first in range(2, min(_MAX_TOKEN, second) + 1):
        if (digits - len(before) + second - first) % 4:
            continue
        offsets = [0, first, *(first + e for e in ends[:-1])]
        packed = struct.pack(("<" if little else ">") + f"{_TOKENS}H", *offsets)
        index = table.find(packed, ends[-1], ends[-1] + 64 + len(packed))
        if index >= 0:
            size = len(before) - second
            return size + first, index - size
    return None


def _candidates(
    space: AddressSpace, image: tuple[tuple[int, int], ...], table: int, index: int, budget: list[int]
) -> Iterator[KallsymsTables]:
    """Places of the other tables that make sense, by either order."""
    word = space.word_size
    bottom = next((start for start, size in image if start <= table < start + size), table)
    low = max(bottom, table - _MAX_NAMES)
    low += -low % word
    try:
        data = space.read(low, table - low)
    except DumpfsError:
        data = b"".join(_readable(space, low, table))
        low = table - len(data)
    # The number is 32 bits and what follows is aligned to a word, so on 64-bit kernels zeros lie behind it.
    code = struct.Struct(("<" if space.byteorder == "little" else ">") + "I")
    zeros = bytes(word - 4)
    after = -(-(index + 2 * _TOKENS) // word) * word
    for at in range(len(data) - len(data) % word - word, -1, -word):
        if data[at + 4 : at + word] != zeros:
            continue
        (count,) = code.unpack_from(data, at)
        if not _MIN_SYMBOLS <= count <= MAX_SYMBOLS or count > table - low - at:
            continue
        number = low + at
        names = number + word
        budget[0] -= count
        if budget[0] < 0:
            return
        if not _walks(data, at + word, count):
            continue
        base = number - word
        offsets = base - -(-4 * count // word) * word
        if _in_image(space, image, base, word):
            yield KallsymsTables(names, number, table, index, offsets=offsets, relative_base=base)
            yield KallsymsTables(names, number, table, index, addresses=number - word * count)
        base = after + -(-4 * count // word) * word
        yield KallsymsTables(names, number, table, index, offsets=after, relative_base=base)
        yield KallsymsTables(names, number, table, index, offsets=after)


def _readable(space: AddressSpace, start: int, stop: int) -> list[bytes]:
    """What can be read right before `stop`, page by page."""
    pieces: list[bytes] = []
    while stop > start:
        step = stop % 4096 or 4096
        try:
            pieces.append(space.read(stop - step, step))
        except DumpfsError:
            break
        stop -= step
    return pieces[::-1]


def _walks(data: bytes, at: int, count: int) -> bool:
    """Whether `count` names fit from `at` on, and nearly fill what is there: the markers take 4 or 8 of 256 names."""
    start = at
    try:
        for _ in range(count):
            length = data[at]
            at += 1
            if length & 0x80:
                length = length & 0x7F | data[at] << 7
                at += 1
            if not length:
                return False
            at += length
    except IndexError:
        return False
    rest = len(data) - at
    # Behind the names: markers (up to 8 bytes for 256 names) and since 6.2 three bytes for each name.
    return 0 <= rest <= 4 * count + (at - start) // 8 + 4096


def _in_image(space: AddressSpace, image: tuple[tuple[int, int], ...], vaddr: int, word: int) -> bool:
    """Whether the word at `vaddr` is an address in the image (a relative base, or a last symbol)."""
    try:
        value = space.read_int(vaddr, word)
    except DumpfsError:
        return False
    return any(start - (1 << 21) <= value <= start + size + (1 << 21) for start, size in image)
