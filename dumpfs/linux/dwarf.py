"""Types from the DWARF of a vmlinux: of the few compilation units that together know what we ask for.

Sources: DWARF 4 sections 5 (types) and 7, and dwz's manual (partial units).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from dumpfs.errors import DumpfsError, FormatError, UnknownFormatError
from dumpfs.linux.types import Member, MissingTypeError, split_path

if TYPE_CHECKING:
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.elf.elffile import ELFFile

_MAX_DIES = 200_000
"""Top-level entries of one compilation unit; the largest have some 20,000."""
_MAX_DEPTH = 32

_UNITS = (
    "init/main.c",
    "kernel/fork.c",
    "kernel/sched/core.c",
    "kernel/module/main.c",
    "kernel/module.c",
    "arch/x86/kernel/process_64.c",
    "arch/x86/kernel/unwind_orc.c",
    "arch/arm64/kernel/process.c",
    "fs/proc/task_mmu.c",
    "fs/proc/base.c",
    "mm/mmap.c",
    "lib/maple_tree.c",
    "fs/namespace.c",
    "arch/x86/entry/vdso/vma.c",
)
"""Compilation units that know the structures of tasks, modules, memory maps and stacks."""
_T = TypeVar("_T")


class DwarfTypes:
    """See `types.TypeInfo`; reads one compilation unit after another until a structure is found.

    Args:
        path: the file's name, for people.
        elf: the file; it is read from as long as this object lives.

    Raises:
        UnknownFormatError: it has no DWARF.
    """

    def __init__(self, path: str, elf: ELFFile) -> None:
        self.origin = f"DWARF of {path}"
        self._path = path
        self._lock = Lock()
        if not elf.has_dwarf_info():
            raise UnknownFormatError(
                path, "has neither BTF nor DWARF", hint="the vmlinux of a kernel's debug package has them"
            )
        self._elf = elf
        self._units: Iterator[CompileUnit] | None = None
        self._dies: dict[str, DIE] = {}
        self._imported: set[int] = set()

    def _wanted_units(self) -> Iterator[CompileUnit]:
        found: dict[str, CompileUnit] = {}
        for unit in self._elf.get_dwarf_info().iter_CUs():
            name = _text(unit.get_top_DIE(), "DW_AT_name")
            for wanted in _UNITS:
                if name.endswith(wanted) and wanted not in found:
                    found[wanted] = unit
        return iter([found[name] for name in _UNITS if name in found])

    def _find(self, struct_name: str) -> DIE:
        if self._units is None:
            self._units = self._wanted_units()
        while struct_name not in self._dies:
            unit = next(self._units, None)
            if unit is None:
                raise MissingTypeError(f"struct {struct_name}", f"not in the {self.origin}")
            self._collect(unit.get_top_DIE())
        return _strip(self._dies[struct_name])

    def _collect(self, top: DIE) -> None:
        """Take the named structures of a unit, and of the partial units that dwz moved shared ones to."""
        pending = [top]
        count = 0
        while pending and count < _MAX_DIES:
            for die in pending.pop().iter_children():
                count += 1
                if count >= _MAX_DIES:
                    break
                if die.tag == "DW_TAG_imported_unit":
                    shared = die.get_DIE_from_attribute("DW_AT_import")
                    if shared.offset not in self._imported:
                        self._imported.add(shared.offset)
                        pending.append(shared)
                elif die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_typedef"):
                    name = _text(die, "DW_AT_name")
                    if name and "DW_AT_declaration" not in die.attributes:
                        known = self._dies.get(name)
                        if known is None or known.tag == "DW_TAG_typedef":
                            self._dies[name] = die

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            with self._lock:  # the file has one position
                return work()
        except DumpfsError:
            raise
        except (struct.error, ValueError, LookupError, TypeError, AttributeError, OSError) as exc:
            raise FormatError(self._path, f"broken DWARF ({exc})") from exc

    def size(self, struct: str) -> int:
        """See `TypeInfo.size`."""
        return self._guarded(lambda: _number(self._find(struct), "DW_AT_byte_size"))

    def member(self, struct: str, path: str) -> Member:
        """See `TypeInfo.member`."""
        return self._guarded(lambda: self._member(struct, path))

    def _member(self, struct_name: str, path: str) -> Member:
        owner = self._find(struct_name)
        bits = width = 0
        for name, index in split_path(path):
            found = find_member(_strip(owner), name, 0)
            if found is None:
                raise MissingTypeError(f"struct {struct_name}", f"has no member {path}")
            die, inside = found
            bits += inside
            width = _number(die, "DW_AT_bit_size")
            owner = _strip(die.get_DIE_from_attribute("DW_AT_type"))
            if index is not None:
                if owner.tag != "DW_TAG_array_type":
                    raise MissingTypeError(f"struct {struct_name}", f"{path}: {name} is not an array")
                owner = _strip(owner.get_DIE_from_attribute("DW_AT_type"))
                bits += 8 * index * byte_size(owner)
        return Member(bits // 8, byte_size(owner), bits % 8 if width else 0, width, _length(owner))

    def enumerators(self, prefix: str) -> Mapping[str, int]:
        """See `TypeInfo.enumerators`: not looked for in DWARF."""
        return {}


def find_member(struct_die: DIE, name: str, depth: int) -> tuple[DIE, int] | None:
    """(member, bits from the start), in anonymous members too."""
    for die in struct_die.iter_children():
        if die.tag != "DW_TAG_member":
            continue
        bits = 8 * _number(die, "DW_AT_data_member_location") + _number(die, "DW_AT_data_bit_offset")
        if "DW_AT_bit_offset" in die.attributes:  # before DWARF 4: counted from the top of the storage unit
            unit = 8 * (_number(die, "DW_AT_byte_size") or byte_size(_strip(die.get_DIE_from_attribute("DW_AT_type"))))
            bits += unit - _number(die, "DW_AT_bit_offset") - _number(die, "DW_AT_bit_size")
        found = _text(die, "DW_AT_name")
        if found == name:
            return die, bits
        if not found and depth < _MAX_DEPTH:
            inner = find_member(_strip(die.get_DIE_from_attribute("DW_AT_type")), name, depth + 1)
            if inner is not None:
                return inner[0], bits + inner[1]
    return None


def _text(die: DIE, name: str) -> str:
    value = die.attributes[name].value if name in die.attributes else b""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _number(die: DIE, name: str) -> int:
    value = die.attributes[name].value if name in die.attributes else 0
    return value if isinstance(value, int) else 0


def _strip(die: DIE) -> DIE:
    """The type behind typedefs and qualifiers."""
    for _ in range(_MAX_DEPTH):
        if die.tag not in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type"):
            break
        if "DW_AT_type" not in die.attributes:
            break
        die = die.get_DIE_from_attribute("DW_AT_type")
    return die


def _length(die: DIE) -> int:
    """Elements of an array type in all its dimensions; 1 for any other type."""
    if die.tag != "DW_TAG_array_type":
        return 1
    count = 1
    for bound in die.iter_children():
        if "DW_AT_count" in bound.attributes:
            count *= _number(bound, "DW_AT_count")
        elif "DW_AT_upper_bound" in bound.attributes:
            count *= _number(bound, "DW_AT_upper_bound") + 1
        else:
            count = 0
    return count


def byte_size(die: DIE) -> int:
    """Bytes of a type."""
    count = 1
    for _ in range(_MAX_DEPTH):
        die = _strip(die)
        if die.tag != "DW_TAG_array_type":
            return count * _number(die, "DW_AT_byte_size")
        count *= _length(die)
        die = die.get_DIE_from_attribute("DW_AT_type")
    return 0
