"""Types of the kernel's global variables, from a vmlinux's DWARF: what `symbol.member.member` means in memory.

The variable is found by the address in its location, searched for in .debug_info as it is, so that of a hundred
thousand units only one is parsed.

Sources: DWARF 4 and 5, section 2.6 (DW_OP_addr) and 7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpfs.errors import DumpfsError, FormatError, SourceError
from dumpfs.linux.types import MissingTypeError

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE
    from elftools.elf.elffile import ELFFile

_DW_OP_ADDR = 0x03
_MODIFIERS = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type")
_STRUCTS = ("DW_TAG_structure_type", "DW_TAG_union_type")
_MAX_DEPTH = 32
_MAX_INFO = 1 << 30

ReadWord = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies, and what it is."""

    vaddr: int
    size: int
    """Bytes; 0 when its type has none."""
    is_pointer: bool = False
    target_size: int = 0
    """Bytes of what a pointer points at; 0 for void and incomplete types."""
    is_string: bool = False
    """Whether it is a pointer to characters."""


def find_place(path: str, name: str, link_vaddr: int, vaddr: int, members: list[str], read_word: ReadWord) -> Place:
    """Where `name.member.member` lies; pointers on the way are followed.

    Args:
        path: the vmlinux.
        name: the variable.
        link_vaddr: its address in the file.
        vaddr: its address in memory.
        members: names of the members on the way.
        read_word: reads a pointer.

    Raises:
        MissingTypeError: the variable or a member is not known.
        DumpfsError: the file cannot be read, or a pointer on the way cannot.
    """
    from elftools.common.exceptions import DWARFError, ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            die = _variable(path, elf, name, link_vaddr)
            return _walk(_type(die), name, vaddr, members, read_word)
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
    except DumpfsError:
        raise
    except (ELFError, DWARFError, struct.error, ValueError, LookupError, TypeError, AttributeError) as exc:
        # pyelftools trusts headers and fails in any of these ways on a broken file.
        raise FormatError(path, f"broken DWARF ({exc})") from exc


def _variable(path: str, elf: ELFFile, name: str, link_vaddr: int) -> DIE:
    if not elf.has_dwarf_info():
        raise MissingTypeError(
            name, f"its type is not known: {path} has no DWARF", hint="-x the debug package's vmlinux"
        )
    dwarf = elf.get_dwarf_info()
    section = elf.get_section_by_name(".debug_info")
    if section is None or section.data_size > _MAX_INFO:
        raise MissingTypeError(name, f"its type is not known: {path} has no .debug_info")
    data = section.data()
    wanted = bytes((_DW_OP_ADDR,)) + link_vaddr.to_bytes(elf.elfclass // 8, "little" if elf.little_endian else "big")
    at = data.find(wanted)
    while at >= 0:
        unit = dwarf.get_CU_containing(at)
        for die in unit.iter_DIEs():
            if die.offset <= at < die.offset + die.size and die.tag == "DW_TAG_variable":
                return die
        at = data.find(wanted, at + 1)
    raise MissingTypeError(name, f"{path} has no variable at {link_vaddr:#x}")


def _type(die: DIE) -> DIE | None:
    """The type of a DIE behind typedefs and qualifiers; None for void."""
    for _ in range(_MAX_DEPTH):
        if "DW_AT_type" not in die.attributes and "DW_AT_specification" in die.attributes:
            die = die.get_DIE_from_attribute("DW_AT_specification")
        if "DW_AT_type" not in die.attributes:
            return None
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag not in _MODIFIERS:
            return die
    return None


def _walk(kind: DIE | None, name: str, vaddr: int, members: list[str], read_word: ReadWord) -> Place:
    from dumpfs.linux.dwarf import byte_size, find_member

    for member in members:
        while kind is not None and kind.tag == "DW_TAG_pointer_type":
            vaddr = read_word(vaddr)
            if not vaddr:
                raise MissingTypeError(name, f"the pointer on the way to {member} is null")
            kind = _type(kind)
        if kind is None or kind.tag not in _STRUCTS:
            raise MissingTypeError(name, f"what should have a member {member} is no structure")
        found = find_member(kind, member, 0)
        if found is None:
            raise MissingTypeError(name, f"has no member {member}")
        vaddr += found[1] // 8
        kind = _type(found[0])
    if kind is None:
        return Place(vaddr, 0)
    if kind.tag != "DW_TAG_pointer_type":
        return Place(vaddr, byte_size(kind))
    target = _type(kind)
    size = byte_size(kind)
    if target is None:
        return Place(vaddr, size, is_pointer=True)
    text = target.tag == "DW_TAG_base_type" and byte_size(target) == 1
    return Place(vaddr, size, is_pointer=True, target_size=byte_size(target), is_string=text)
