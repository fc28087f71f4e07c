"""Structures and lists in the dumped kernel's memory, read so that nothing in them can do harm.

A dead kernel's lists may be cut, circular or wild. A walk therefore ends after a limit, at the first node seen twice
and at the first that cannot be read, and says so in a list of problems instead of failing: what was found so far is
still worth having.
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.errors import DumpfsError
from dumpfs.linux.types import Member, Types
from dumpfs.memory.virtual import AddressSpace
from dumpfs.ranges import merge_runs
from dumpfs.structs import ByteOrder
from dumpfs.units import one_line

MAX_STRUCT = 1 << 20
"""Bytes of one structure; task_struct has some 10,000."""
_MAX_PROBLEMS = 100
_PIECE = 1 << 16
_PAGE = 1 << 12


class Record:
    """One structure, read at once."""

    __slots__ = ("_types", "byteorder", "data", "struct", "vaddr")

    def __init__(self, types: Types, byteorder: ByteOrder, struct: str, vaddr: int, data: bytes) -> None:
        self._types = types
        self.byteorder: ByteOrder = byteorder
        self.struct = struct
        self.vaddr = vaddr
        self.data = data

    def raw(self, *paths: str) -> bytes:
        """Bytes of the first of `paths` that the structure has; MissingTypeError when it has none."""
        member = self._member(paths)
        return self.data[member.offset : member.offset + member.size]

    def value(self, *paths: str, signed: bool = False) -> int:
        """Value of an integer, pointer or bit-field; MissingTypeError when there is none of `paths`."""
        return member_value(self.data, self._member(paths), self.byteorder, signed=signed)

    def get(self, *paths: str, signed: bool = False) -> int | None:
        """Like `value`, but None when this kernel's structure has none of `paths`."""
        member = self._types.find(self.struct, *paths)
        return None if member is None else member_value(self.data, member, self.byteorder, signed=signed)

    def text(self, *paths: str) -> str:
        """A fixed array of characters up to its NUL."""
        return self.raw(*paths).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def address(self, *paths: str) -> int:
        """Virtual address of a member."""
        return self.vaddr + self._member(paths).offset

    def _member(self, paths: tuple[str, ...]) -> Member:
        found = self._types.find(self.struct, *paths)
        return found if found is not None else self._types.member(self.struct, paths[0])


def member_value(data: bytes, member: Member, byteorder: ByteOrder, *, signed: bool = False) -> int:
    """The integer in `data` that `member` describes."""
    if not member.bit_size:
        return int.from_bytes(data[member.offset : member.offset + member.size], byteorder, signed=signed)
    bits = member.bit_offset + member.bit_size
    size = (bits + 7) // 8
    value = int.from_bytes(data[member.offset : member.offset + size], byteorder)
    value >>= member.bit_offset if byteorder == "little" else 8 * size - bits
    value &= (1 << member.bit_size) - 1
    if signed and value >> (member.bit_size - 1):
        value -= 1 << member.bit_size
    return value


def read_record(space: AddressSpace, types: Types, struct: str, vaddr: int, *, size: int | None = None) -> Record:
    """The structure at `vaddr`.

    Raises:
        MissingTypeError: its type is not known.
        DumpfsError: it cannot be read.
    """
    size = types.size(struct) if size is None else size
    if not 0 < size <= MAX_STRUCT:
        raise DumpfsError(f"struct {struct} of {size} bytes cannot be")
    return Record(types, space.byteorder, struct, vaddr, space.read(vaddr, size))


def read_pieces(space: AddressSpace, vaddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(address, bytes) of what can be read of a range, in pieces of at most 64 KiB; gaps are left out page by page.

    Where the range is mapped in one, what the dump does not have is passed over at once: of the hundreds of megabytes
    that a kernel image may take, a small or filtered dump has few.
    """
    for position, stop in merge_runs(space.stored_ranges(vaddr, size)):
        while position < stop:
            step = min(_PIECE - position % _PIECE, stop - position)
            try:
                yield position, space.read(position, step)
            except DumpfsError:
                yield from _read_pages(space, position, step)
            position += step


def _read_pages(space: AddressSpace, vaddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    for page in range(vaddr & -_PAGE, vaddr + size, _PAGE):
        start, stop = max(page, vaddr), min(page + _PAGE, vaddr + size)
        try:
            data = space.read(start, stop - start)
        except DumpfsError:
            continue  # a gap is what the caller asked to be spared
        yield start, data


def find_bytes(space: AddressSpace, vaddr: int, size: int, needle: bytes) -> Iterator[int]:
    """Addresses at which `needle` begins in what can be read of a range."""
    tail, stop = b"", -1
    for start, data in read_pieces(space, vaddr, size):
        if start != stop:
            tail = b""
        text = tail + data
        at = text.find(needle)
        while at >= 0:
            yield start - len(tail) + at
            at = text.find(needle, at + 1)
        tail, stop = text[len(text) - len(needle) + 1 :], start + len(data)


def note_problem(problems: list[str], problem: str) -> None:
    """Add a sentence to a bounded list, once; in one line, whatever it quotes."""
    problem = one_line(problem)
    if len(problems) < _MAX_PROBLEMS and problem not in problems:
        problems.append(problem)


def walk_list(space: AddressSpace, head: int, limit: int, problems: list[str], what: str) -> Iterator[int]:
    """Addresses of the `list_head`s on a list, without its head.

    Where the list is cut or runs in a circle, what lies behind that is found from its end, by the pointers back.

    Args:
        space: kernel memory.
        head: address of the list's head.
        limit: nodes to follow at most.
        problems: told why the walk ended early.
        what: name of the list, for `problems`.
    """
    seen = {head}
    node = head
    while True:
        try:
            node = space.read_word(node)
        except DumpfsError as exc:
            damage = f"cut after {len(seen) - 1} entries: {exc}"
            break
        if node == head:
            return
        if node in seen:
            damage = f"runs in a circle after {len(seen) - 1} entries"
            break
        if len(seen) > limit:
            note_problem(problems, f"{what}: more than {limit} entries, the rest is left out")
            return
        seen.add(node)
        yield node
    behind = _walk_back(space, head, limit, seen)
    more = f"; {len(behind)} more are found from its end" if behind else ""
    note_problem(problems, f"{what}: {damage}{more}")
    yield from reversed(behind)


def _walk_back(space: AddressSpace, head: int, limit: int, seen: set[int]) -> list[int]:
    """The nodes from a list's end on that were not `seen`, each followed by the one before by both pointers."""
    found: list[int] = []
    node = head
    while len(seen) <= limit:
        try:
            before = space.read_word(node + space.word_size)
            if before in seen or space.read_word(before) != node:
                break
        except DumpfsError:
            break  # the damage, seen from the other side
        found.append(before)
        seen.add(before)
        node = before
    return found
