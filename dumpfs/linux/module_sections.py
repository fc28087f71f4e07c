"""Where the sections of a loaded module lie: what /sys/module/NAME/sections tells, and what a debugger needs.

Sources: Linux kernel/module/sysfs.c (struct module_sect_attrs; since 6.14 its attributes are bin_attributes whose
private pointer is the address), kernel/module/main.c (module.build_id, percpu_modalloc).
"""

from __future__ import annotations

from collections.abc import Mapping

from dumpfs.errors import DumpfsError
from dumpfs.linux.modules import Module
from dumpfs.linux.records import read_record
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace
from dumpfs.notes import find_note

PER_CPU_SECTION = ".data..percpu"
_MAX_SECTIONS = 1000
_MAX_NAME = 256
_NT_GNU_BUILD_ID = 3
_NOTE_SIZE = 36
"""A header, "GNU" and 20 bytes."""


def module_sections(space: AddressSpace, types: Types, module: Module) -> dict[str, int]:
    """Section name to address; empty where this kernel does not keep them.

    The kernel's own list lacks the per-CPU variables, which are laid out apart; their address is an offset, to which
    that of a processor is added.

    Raises:
        DumpfsError: they cannot be read.
    """
    record = read_record(space, types, "module", module.vaddr)
    pointer = record.get("sect_attrs")
    if not pointer:
        return {}
    table = read_record(space, types, "module_sect_attrs", pointer)
    if types.has("module_sect_attr", "address"):
        struct, address, paths = "module_sect_attr", "address", ("battr.attr.name", "name")
    else:
        struct, address, paths = "bin_attribute", "private", ("attr.name", "name")
    count = table.get("nsections")
    if count is not None and not 0 <= count <= _MAX_SECTIONS:
        raise DumpfsError(f"module {module.name}: {count} sections cannot be")
    first, size = table.address("attrs"), types.size(struct)
    sections: dict[str, int] = {}
    per_cpu = record.get("percpu")
    if per_cpu and record.get("percpu_size"):
        sections[PER_CPU_SECTION] = per_cpu
    for number in range(_MAX_SECTIONS if count is None else count):
        row = read_record(space, types, struct, first + number * size)
        name = row.value(*paths)
        if not name:
            break
        sections[space.read_cstring(name, _MAX_NAME).decode("utf-8", "replace")] = row.value(address)
    return sections


def module_build_id(space: AddressSpace, types: Types, module: Module, sections: Mapping[str, int]) -> str:
    """A module's build-id in lower-case hex; '' where neither its structure nor a note tells it.

    Raises:
        DumpfsError: it cannot be read.
    """
    if types.has("module", "build_id"):  # with CONFIG_STACKTRACE_BUILD_ID
        raw = read_record(space, types, "module", module.vaddr).raw("build_id")
        if any(raw):
            return raw.hex()
    note = sections.get(".note.gnu.build-id")
    if not note:
        return ""
    found = find_note(space.read(note, _NOTE_SIZE), space.byteorder, b"GNU", _NT_GNU_BUILD_ID)
    return found.desc.hex() if found is not None else ""
