"""BTF: the types of a kernel in the compact form that it carries in its own memory.

    header | types: 12 bytes each and what their kind adds | strings

A kernel has some 100,000 types and we ask for some dozen: one array tells where each type begins, and names are looked
up only by the kinds that are asked for. No object is made per type.

Sources: Linux Documentation/bpf/btf.rst and include/uapi/linux/btf.h (layout, kinds).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

from dumpfs.errors import CorruptDumpError, TruncatedDumpError
from dumpfs.linux.types import Member, MissingTypeError, split_path
from dumpfs.structs import Abi, Buffer, ByteOrder, Layout

BTF_MAGIC = 0xEB9F
MAX_BTF = 64 << 20
"""Bytes; distributions have 4 to 10 MB."""
_MAX_DEPTH = 32
"""Anonymous structures inside each other, or modifiers in a row; real ones have under 10."""
_MAX_MEMBERS = 100_000
"""Members looked at for one question."""

_HEADER = Layout(
    "btf_header",
    [
        ("magic", "u16"),
        ("version", "u8"),
        ("flags", "u8"),
        ("hdr_len", "u32"),
        ("type_off", "u32"),
        ("type_len", "u32"),
        ("str_off", "u32"),
        ("str_len", "u32"),
    ],
)


class Kind(IntEnum):
    """What a type is."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_MODIFIERS = frozenset((Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG))
_COMPOSITES = frozenset((Kind.STRUCT, Kind.UNION))
_EXTRA = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
"""32-bit words behind the 12 bytes."""
_EXTRA_EACH = {Kind.STRUCT: 3, Kind.UNION: 3, Kind.ENUM: 2, Kind.FUNC_PROTO: 2, Kind.DATASEC: 3, Kind.ENUM64: 3}
"""The same, for each of `vlen`."""
_VLEN = 0xFFFF
_MAX_STEPS = 1 << 16
"""Different ones that are kept; real BTF has some thousand."""
_KIND_FLAG = 1 << 31


class Btf:
    """The types of one BTF blob; immutable. Any thread may ask.

    Args:
        data: the blob.
        word_size: bytes of the kernel's pointers, which BTF does not tell.
        origin: where it came from.

    Raises:
        CorruptDumpError: it is not well-formed BTF.
    """

    def __init__(self, data: Buffer, word_size: int, origin: str = "BTF in the dump") -> None:
        self.origin = origin
        self.word_size = word_size
        self.byteorder, types, self.strings = _sections(bytes(data))
        words = array("I", types)
        if self.byteorder != sys.byteorder:
            words.byteswap()
        self._words = words
        self._starts = _index(words)
        self._named: dict[Kind, dict[int, int]] = {}

    @classmethod
    def thaw(cls, word_size: int, origin: str, parts: Sequence[bytes]) -> Btf:
        """The types that `freeze` gave the parts of, on this machine; nothing is checked again."""
        self = cls.__new__(cls)
        self.origin, self.word_size = origin, word_size
        order, words, starts, self.strings = parts
        self.byteorder = "little" if order == b"little" else "big"
        self._words, self._starts = array("I", words), array("I", starts)
        self._named = {}
        return self

    def freeze(self) -> tuple[bytes, ...]:
        """What `thaw` makes the same types of, in another process of this machine."""
        return self.byteorder.encode(), self._words.tobytes(), self._starts.tobytes(), self.strings

    def __len__(self) -> int:
        return len(self._starts)

    # -- types by number

    def kind(self, type_id: int) -> int:
        """Kind of a type; 0 for void and for numbers that are none."""
        if 0 < type_id < len(self._starts):
            return self._words[self._starts[type_id] + 1] >> 24 & 0x1F
        return 0

    def name(self, type_id: int) -> str:
        """Name of a type, or ''."""
        return self.string(self._words[self._starts[type_id]]) if 0 < type_id < len(self._starts) else ""

    def string(self, offset: int) -> str:
        """The string at `offset` of the string section, or ''."""
        end = self.strings.find(b"\0", offset)
        return self.strings[offset:end].decode("utf-8", "replace") if end > offset else ""

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs, const and the like; 0 (void) when there is none."""
        for _ in range(_MAX_DEPTH):
            if self.kind(type_id) not in _MODIFIERS:
                return type_id
            type_id = self._words[self._starts[type_id] + 2]
        return 0

    def type_size(self, type_id: int) -> int:
        """Bytes of a type; 0 when it has no size."""
        count = 1
        for _ in range(_MAX_DEPTH):
            type_id = self.resolve(type_id)
            kind = self.kind(type_id)
            if not kind:
                return 0
            start = self._starts[type_id]
            if kind == Kind.ARRAY:
                type_id = self._words[start + 3]
                count *= self._words[start + 5]
            elif kind == Kind.PTR:
                return count * self.word_size
            elif kind in (Kind.FWD, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG):
                return 0
            else:
                return count * self._words[start + 2]
        return 0

    # -- types by name

    def find(self, name: str, *kinds: Kind) -> int:
        """Number of the first type of that name and one of `kinds`; 0 when there is none."""
        needle = b"\0" + name.encode() + b"\0"
        at = self.strings.find(needle)
        while at >= 0:
            for kind in kinds:
                found = self._by_name(kind).get(at + 1)
                if found is not None:
                    return found
            at = self.strings.find(needle, at + 1)
        return 0

    def _by_name(self, kind: Kind) -> dict[int, int]:
        """Name offset to type number of every named type of a kind, the first of several."""
        named = self._named.get(kind)
        if named is None:
            words, code = self._words, int(kind)
            named = {}
            for type_id in range(len(self._starts) - 1, 0, -1):
                start = self._starts[type_id]
                if words[start + 1] >> 24 & 0x1F == code and words[start]:
                    named[words[start]] = type_id
            self._named[kind] = named
        return named

    def _need_struct(self, name: str) -> int:
        found = self.find(name, Kind.STRUCT, Kind.UNION)
        if not found:
            found = self.resolve(self.find(name, Kind.TYPEDEF))
        if self.kind(found) not in _COMPOSITES:
            raise MissingTypeError(f"struct {name}", f"not in the {self.origin}")
        return found

    def size(self, struct: str) -> int:
        """See `TypeInfo.size`."""
        return self.type_size(self._need_struct(struct))

    def members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        """(name, type, bit offset, bits of a bit-field or 0) of the members of a struct or union, as they stand."""
        if self.kind(type_id) not in _COMPOSITES:
            return
        start = self._starts[type_id]
        words = self._words
        flagged = words[start + 1] & _KIND_FLAG
        for at in range(start + 3, start + 3 + 3 * (words[start + 1] & _VLEN), 3):
            bits = words[at + 2]
            if flagged:
                yield self.string(words[at]), words[at + 1], bits & 0xFFFFFF, bits >> 24
            else:
                yield self.string(words[at]), words[at + 1], bits, self._old_width(words[at + 1])

    def _old_width(self, type_id: int) -> int:
        """Width by the integer type itself, as BTF had it before the kind flag (4.20)."""
        if self.kind(type_id) != Kind.INT:
            return 0
        start = self._starts[type_id]
        width = self._words[start + 3] & 0xFF
        return width if width != 8 * self._words[start + 2] else 0

    def member(self, struct: str, path: str) -> Member:
        """See `TypeInfo.member`."""
        owner = self._need_struct(struct)
        bits = width = 0
        for name, index in split_path(path):
            owner = self.resolve(owner)
            budget = [_MAX_MEMBERS]
            found = self._find_member(owner, name, 0, budget) if self.kind(owner) in _COMPOSITES else None
            if found is None:
                raise MissingTypeError(f"struct {struct}", f"has no member {path}")
            owner, inside, width = found
            bits += inside
            if index is not None:
                array_id = self.resolve(owner)
                if self.kind(array_id) != Kind.ARRAY:
                    raise MissingTypeError(f"struct {struct}", f"{path}: {name} is not an array")
                owner = self._words[self._starts[array_id] + 3]
                bits += 8 * index * self.type_size(owner)
        last = self.resolve(owner)
        count = self._words[self._starts[last] + 5] if self.kind(last) == Kind.ARRAY else 1
        return Member(bits // 8, self.type_size(owner), bits % 8 if width else 0, width, count)

    def _find_member(self, type_id: int, name: str, depth: int, budget: list[int]) -> tuple[int, int, int] | None:
        """(type, bit offset, width) of a member, looked for in anonymous members too."""
        anonymous = []
        for found, member_type, bits, width in self.members(type_id):
            budget[0] -= 1
            if found == name:
                return member_type, bits, width
            if not found:
                anonymous.append((member_type, bits))
        for member_type, bits in anonymous:
            inner = self.resolve(member_type)
            if self.kind(inner) in _COMPOSITES and depth < _MAX_DEPTH and budget[0] > 0:
                nested = self._find_member(inner, name, depth + 1, budget)
                if nested is not None:
                    return nested[0], bits + nested[1], nested[2]
        return None

    def enumerators(self, prefix: str) -> Mapping[str, int]:
        """See `TypeInfo.enumerators`."""
        wanted = set()
        needle = b"\0" + prefix.encode()
        at = self.strings.find(needle)
        while at >= 0:
            wanted.add(at + 1)
            at = self.strings.find(needle, at + 1)
        out: dict[str, int] = {}
        words = self._words
        for type_id in range(1, len(self._starts)):
            start = self._starts[type_id]
            info = words[start + 1]
            kind = info >> 24 & 0x1F
            if kind not in (Kind.ENUM, Kind.ENUM64):
                continue
            step = _EXTRA_EACH[Kind(kind)]
            for at in range(start + 3, start + 3 + step * (info & _VLEN), step):
                if words[at] in wanted:
                    value = words[at + 1] | (words[at + 2] << 32 if step == 3 else 0)
                    bits = 64 if step == 3 else 32
                    signed = info & _KIND_FLAG or step == 2
                    out[self.string(words[at])] = value - (1 << bits) if signed and value >> (bits - 1) else value
        return out


def _sections(data: bytes) -> tuple[ByteOrder, bytes, bytes]:
    """Byte order, type section and string section of a blob."""
    if len(data) < _HEADER.size(Abi("little", 8, 8)):
        raise TruncatedDumpError("BTF", f"{len(data)} bytes are too few for its header")
    order: ByteOrder = "little"
    if int.from_bytes(data[:2], "little") != BTF_MAGIC:
        order = "big"
    header = _HEADER.parse_ints(Abi(order, 8, 8), data)
    if header["magic"] != BTF_MAGIC or header["version"] != 1:
        raise CorruptDumpError("BTF", f"magic {header['magic']:#x} version {header['version']} are not BTF's")
    types_at = header["hdr_len"] + header["type_off"]
    strings_at = header["hdr_len"] + header["str_off"]
    types_end = types_at + header["type_len"]
    strings_end = strings_at + header["str_len"]
    if types_at % 4 or header["type_len"] % 4 or max(types_end, strings_end) > len(data):
        raise CorruptDumpError("BTF", f"sections reach to {max(types_end, strings_end):#x} of {len(data):#x} bytes")
    strings = data[strings_at:strings_end]
    if not strings or strings[0] or strings[-1]:
        raise CorruptDumpError("BTF", "the string section does not begin and end with a NUL", offset=strings_at)
    return order, data[types_at:types_end], strings


class _Steps(dict[int, int]):
    """The second word of a type to the words of all of it; most of those that occur do so often."""

    def __missing__(self, info: int) -> int:
        kind = info >> 24 & 0x1F
        if not 0 < kind <= Kind.ENUM64:
            raise CorruptDumpError("BTF", f"a type is of unknown kind {kind}")
        step = 3 + _EXTRA.get(Kind(kind), 0) + _EXTRA_EACH.get(Kind(kind), 0) * (info & _VLEN)
        if len(self) < _MAX_STEPS:
            self[info] = step
        return step


def _index(words: array[int]) -> array[int]:
    """Word index of every type by number; entry 0 stands for void."""
    starts = [0]
    append = starts.append
    steps = _Steps()
    at, end = 0, len(words)
    try:
        while at < end:
            append(at)
            at += steps[words[at + 1]]
    except IndexError:
        at = end + 1
    if at != end:
        raise TruncatedDumpError("BTF", f"type {len(starts) - 1} reaches past the end of the types")
    return array("I", starts)
