"""A symbol table for volatility3 (ISF) of a kernel's BTF, /proc/kallsyms and banner.

Source: volatility3's schema-6.2.0.json; Linux Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = range(1, 14)
VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(14, 20)
TEXT = 0xFFFFFFFF80000000
"""The kernel image lies above; what KASLR moves is told by KERNELOFFSET."""
NEEDED = [
    "file",
    "list_head",
    "hlist_head",
    "mm_struct",
    "super_block",
    "task_struct",
    "vm_area_struct",
    "qstr",
    "dentry",
    "fs_struct",
    "files_struct",
    "kobject",
    "cred",
    "inode",
    "idr",
    "address_space",
    "page",
    "vfsmount",
    "net",
    "socket",
    "sock",
    "inet_sock",
    "unix_sock",
]
"""Structures without which volatility3 refuses a table; a kernel without network has not all of them."""
TYPED = {"init_task": "task_struct", "init_mm": "mm_struct", "init_files": "files_struct"}
_EXTRA = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_EACH = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
_VOID = {"kind": "base", "name": "void"}

Json = dict[str, Any]


class _Btf:
    """The types of a BTF blob, by number: kind, name, size or type, kind flag, and the words behind."""

    def __init__(self, blob: bytes) -> None:
        _, _, _, length, types, size, strings, strings_size = struct.unpack_from("<HBB5I", blob)
        self._strings = blob[length + strings : length + strings + strings_size]
        self.rows: list[tuple[int, str, int, int, list[tuple[int, ...]]]] = [(0, "", 0, 0, [])]
        at, end = length + types, length + types + size
        self._seen: dict[tuple[bool, str], int] = {}
        while at < end:
            name, info, value = struct.unpack_from("<3I", blob, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            step = _EACH.get(kind, 0)
            more = _EXTRA.get(kind, 0) + step * count
            words = struct.unpack_from(f"<{more // 4}I", blob, at + 12)
            width = (step or more) // 4 or 1
            parts = [words[i : i + width] for i in range(0, len(words), width)]
            self.rows.append((kind, self.text(name), value, info >> 31, parts))
            at += 12 + more

    def text(self, at: int) -> str:
        """A string by its offset."""
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def name(self, number: int) -> str:
        """A name that no other type has: several structures may share one."""
        kind, name, *_ = self.rows[number]
        if not name:
            return f"unnamed_{number:x}"
        first = self._seen.setdefault((kind in (ENUM, ENUM64), name), number)
        return name if first == number else f"{name}_{number:x}"

    def strip(self, number: int) -> int:
        """The type behind typedefs and the like."""
        while self.rows[number][0] in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
            number = self.rows[number][2]
        return number


def _base(size: int, signed: bool, kind: str = "int") -> Json:
    return {"size": size, "signed": signed, "kind": kind, "endian": "little"}


class _Table:
    """What is collected for the file."""

    def __init__(self, btf: _Btf) -> None:
        self.btf = btf
        self.base = {"void": _base(0, False, "void"), "pointer": _base(8, False), "int": _base(4, True)}
        self.base |= {"unsigned int": _base(4, False), "char": _base(1, True, "char")}
        self.base |= {"long unsigned int": _base(8, False), "unsigned char": _base(1, False, "char")}
        self.user: dict[str, Json] = {}
        self.enums: dict[str, Json] = {}
        for number, (kind, _, size, flag, parts) in enumerate(btf.rows):
            if kind in (STRUCT, UNION):
                self.user[btf.name(number)] = {
                    "kind": "union" if kind == UNION else "struct",
                    "size": size,
                    "fields": dict(self._fields(parts, flag)),
                }
            elif kind in (ENUM, ENUM64):
                values = {btf.text(p[0]): p[1] | (p[2] << 32 if kind == ENUM64 else 0) for p in parts}
                name = {1: "unsigned char", 8: "long unsigned int"}.get(size, "unsigned int")
                self.enums[btf.name(number)] = {"size": size, "base": name, "constants": values}
        for name in NEEDED:
            self.user.setdefault(name, {"kind": "struct", "size": 0, "fields": {}})

    def _fields(self, parts: list[tuple[int, ...]], flag: int) -> Iterator[tuple[str, Json]]:
        for index, (name, number, place) in enumerate(parts):
            bits, offset = (place >> 24, place & 0xFFFFFF) if flag else (0, place)
            field: Json = {"type": self.describe(number), "offset": offset // 8}
            if bits:
                size = self.btf.rows[self.btf.strip(number)][2]
                start = offset // 8 // size * size
                place = {"kind": "bitfield", "bit_position": offset - start * 8, "bit_length": bits}
                field = {"type": place | {"type": field["type"]}, "offset": start}
            if not name:
                field["anonymous"] = True
            yield self.btf.text(name) or f"unnamed_field_{index:x}", field

    def describe(self, number: int) -> Json:
        """A type as a field has it."""
        number = self.btf.strip(number)
        kind, name, value, flag, parts = self.btf.rows[number]
        if kind == INT:
            encoding = parts[0][0] >> 24
            self.base.setdefault(
                name, _base(value, bool(encoding & 1), "bool" if encoding & 4 else "char" if value == 1 else "int")
            )
            return {"kind": "base", "name": name}
        if kind == FLOAT:
            self.base.setdefault(name, _base(value, True, "float"))
            return {"kind": "base", "name": name}
        if kind == PTR:
            return {"kind": "pointer", "subtype": self.describe(value)}
        if kind == ARRAY:
            return {"kind": "array", "subtype": self.describe(parts[0][0]), "count": parts[0][2]}
        if kind in (STRUCT, UNION):
            return {"kind": "union" if kind == UNION else "struct", "name": self.btf.name(number)}
        if kind in (ENUM, ENUM64):
            return {"kind": "enum", "name": self.btf.name(number)}
        if kind == FWD:
            self.user.setdefault(name, {"kind": "union" if flag else "struct", "size": 0, "fields": {}})
            return {"kind": self.user[name]["kind"], "name": name}
        return {"kind": "function"} if kind in (FUNC, FUNC_PROTO) else _VOID


def build_isf(btf: bytes, kallsyms: str, banner: bytes, offset: int) -> Json:
    """The table as JSON.

    Args:
        btf: the kernel's, of a little-endian 64-bit machine.
        kallsyms: as /proc/kallsyms.
        banner: `linux_banner` as it stands in memory, without its NUL.
        offset: KERNELOFFSET; the table has addresses as they were linked.
    """
    table = _Table(_Btf(btf))
    symbols: dict[str, Json] = {}
    for line in kallsyms.splitlines():
        address, _, name, *module = line.split()
        if not module and name not in symbols:
            value = int(address, 16)
            kind = {"kind": "struct", "name": TYPED[name]} if name in TYPED else _VOID
            symbols[name] = {"address": value - offset if value >= TEXT else value, "type": kind}
    symbols["linux_banner"] |= {
        "type": {"kind": "array", "subtype": {"kind": "base", "name": "char"}, "count": len(banner) + 1},
        "constant_data": base64.b64encode(banner).decode(),
    }
    producer = {"name": "dumpfs tests", "version": "1"}
    return {
        "metadata": {"linux": {"symbols": [], "types": []}, "producer": producer, "format": "6.2.0"},
        "base_types": table.base,
        "user_types": table.user,
        "enums": table.enums,
        "symbols": symbols,
    }
