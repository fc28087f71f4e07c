"""The modules that were loaded: what /proc/modules and /proc/kallsyms tell of them.

Sources: Linux kernel/module/{procfs,kallsyms,main}.c and include/linux/module.h (structures, what /proc prints),
kernel/panic.c (letters of taint flags).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dumpfs.errors import CorruptDumpError, DumpfsError
from dumpfs.linux.records import Record, note_problem, read_record, walk_list
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import one_word

_MAX_MODULES = 10_000
_MAX_USERS = 1_000
_MAX_ALL_USERS = 20_000
"""Of all modules together."""
_MAX_EXPORTS = 200_000
_MAX_NAME = 512
"""KSYM_NAME_LEN, with its NUL; a longer name is cut."""
_LIVE, _COMING, _GOING, _UNFORMED = range(4)
_STATES = {_LIVE: "Live", _COMING: "Loading", _GOING: "Unloading"}
_TAINTS = "PFSRMBUDAWCIOELKXTNJ"
_MAX_MEMORIES = 16


@dataclass(slots=True)
class SymbolBudget:
    """What the symbols of all modules may take together: damage can have them all point at the same large table."""

    symbols: int = 500_000
    """Real systems have some 100,000."""
    nbytes: int = 128 << 20
    """Of tables and strings that are read."""

    def take(self, module: Module, symbols: int, nbytes: int) -> None:
        """Take from what is left.

        Raises:
            CorruptDumpError: there is less.
        """
        if not 0 <= symbols <= self.symbols or not 0 <= nbytes <= self.nbytes:
            what = f"module {module.name}"
            raise CorruptDumpError(what, f"{symbols:,} symbols in {nbytes:,} bytes are more than modules can have")
        self.symbols -= symbols
        self.nbytes -= nbytes


@dataclass(frozen=True, slots=True)
class Module:
    """One loaded module."""

    name: str
    vaddr: int
    """Of its struct module."""
    state: str
    """As /proc/modules has it: Live, Loading, Unloading."""
    base: int
    """Where its text begins."""
    size: int
    """Bytes of all its memory."""
    refcount: int | None
    """None when the kernel cannot unload modules."""
    users: tuple[str, ...]
    """Names of the modules that use it; '[permanent]' among them when it cannot be unloaded."""
    taints: str
    """Letters of the taint flags, or ''."""
    ranges: tuple[tuple[int, int], ...]
    """(address, bytes) of its memory."""

    def covers(self, vaddr: int) -> bool:
        """Whether an address lies in its memory."""
        return any(start <= vaddr < start + size for start, size in self.ranges)


def read_modules(space: AddressSpace, types: Types, head: int, problems: list[str]) -> tuple[Module, ...]:
    """The modules in the kernel's order.

    Args:
        space: kernel memory.
        types: structures of this kernel.
        head: address of the symbol `modules`.
        problems: told what could not be read.

    Raises:
        MissingTypeError: struct module is not known.
    """
    link = types.offset("module", "list")
    modules: list[Module] = []
    users = 0
    for node in walk_list(space, head, _MAX_MODULES, problems, "list of modules"):
        try:
            module = _read_module(space, types, node - link, min(_MAX_USERS, _MAX_ALL_USERS - users), problems)
        except DumpfsError as exc:
            note_problem(problems, f"module at {node - link:#x}: {exc}")
            continue
        if module is not None:
            modules.append(module)
            users += len(module.users)
    return tuple(modules)


def _read_module(
    space: AddressSpace, types: Types, vaddr: int, max_users: int, problems: list[str]
) -> Module | None:
    record = read_record(space, types, "module", vaddr)
    state = _STATES.get(record.value("state"))
    if state is None:
        return None  # unformed: /proc/modules leaves it out, too
    ranges = tuple(_memory_ranges(types, record))
    refcount = record.get("refcnt.counter", signed=True)
    users: list[str] = []
    if types.has("module", "source_list"):
        users = _users(space, types, record, max_users, problems)
        if record.get("init") and not record.get("exit"):
            users.append("[permanent]")
    else:
        refcount = None
    taints = record.get("taints") or 0
    return Module(
        name=one_word(record.text("name")),
        vaddr=vaddr,
        state=state,
        base=record.value("mem[0].base", "core_layout.base", "module_core"),
        size=sum(size for _, size in ranges),
        refcount=None if refcount is None else max(refcount - 1, 0),  # MODULE_REF_BASE
        users=tuple(users),
        taints="".join(letter for bit, letter in enumerate(_TAINTS) if taints >> bit & 1),
        ranges=ranges,
    )


def _memory_ranges(types: Types, record: Record) -> Iterator[tuple[int, int]]:
    """(address, bytes): struct module_memory since 6.4, core and init layouts since 4.5, single members before."""
    memories = types.find("module", "mem")
    if memories is not None:
        names = [(f"mem[{i}].base", f"mem[{i}].size") for i in range(min(memories.length, _MAX_MEMORIES))]
    elif types.has("module", "core_layout"):
        names = [(f"{n}_layout.base", f"{n}_layout.size") for n in ("core", "init", "data")]
    else:
        names = [("module_core", "core_size"), ("module_init", "init_size")]
    for base, size in names:
        start, length = record.get(base), record.get(size)
        if start and length:
            yield start, length


def _users(space: AddressSpace, types: Types, record: Record, limit: int, problems: list[str]) -> list[str]:
    link = types.offset("module_use", "source_list")
    source = types.offset("module_use", "source")
    name = types.member("module", "name")
    users = []
    what = f"users of module {record.text('name')}"
    for node in walk_list(space, record.address("source_list"), limit, problems, what):
        try:
            user = space.read_word(node - link + source)
            users.append(
                one_word(space.read_cstring(user + name.offset, name.size).decode("utf-8", "backslashreplace"))
            )
        except DumpfsError as exc:
            note_problem(problems, f"{what}: {exc}")
    return users


def render_modules(modules: Sequence[Module], word_size: int) -> str:
    """Lines as /proc/modules prints them for root."""
    lines = []
    for module in modules:
        used = " - -"
        if module.refcount is not None:
            used = f" {module.refcount} " + ("".join(f"{name}," for name in module.users) or "-")
        taints = f" ({module.taints})" if module.taints else ""
        lines.append(f"{module.name} {module.size}{used} {module.state} 0x{module.base:0{2 * word_size}x}{taints}\n")
    return "".join(lines)


def module_symbols(
    space: AddressSpace, types: Types, module: Module, budget: SymbolBudget | None = None
) -> list[tuple[int, str, str]]:
    """(address, type, name) of a module's symbols; upper-case types are its exported ones, as /proc/kallsyms does.

    Args:
        space: kernel memory.
        types: structures of this kernel.
        module: whose.
        budget: what all modules may take; of whoever asks for more than one.

    Raises:
        MissingTypeError: this kernel keeps none.
        DumpfsError: they cannot be read, or are more than the budget allows.
    """
    budget = budget if budget is not None else SymbolBudget()
    record = read_record(space, types, "module", module.vaddr)
    pointer = record.get("kallsyms")
    if pointer is None:  # before 4.5 the tables were members of struct module itself
        tables = record
    elif pointer == 0:
        return []
    else:
        tables = read_record(space, types, "mod_kallsyms", pointer)
    count = tables.value("num_symtab")
    prefix = "<" if space.byteorder == "little" else ">"
    # struct elf64_sym: name, info, other, shndx, value, size; elf32_sym: name, value, size, info, other, shndx.
    entry = struct.Struct(prefix + ("IBBHQQ" if space.word_size == 8 else "IIIBBH"))
    budget.take(module, count, count * (entry.size + 1))
    symtab = space.read(tables.value("symtab"), count * entry.size)
    typetab = tables.get("typetab")
    # Before 5.2 the type's letter replaced st_info.
    letters = space.read(typetab, count) if typetab else None
    rows = list(entry.iter_unpack(symtab))
    last = max((row[0] for row in rows), default=0)
    budget.take(module, 0, last + _MAX_NAME)
    strtab = _read_strings(space, tables.value("strtab"), last)
    exported = _exported(space, types, record, lambda nbytes: budget.take(module, 0, nbytes))
    symbols = []
    for index, row in enumerate(rows):
        value, info = (row[4], row[1]) if space.word_size == 8 else (row[1], row[3])
        end = strtab.find(b"\0", row[0], row[0] + _MAX_NAME)
        end = row[0] + _MAX_NAME - 1 if end < 0 else end
        name = strtab[row[0] : end].decode("utf-8", "surrogateescape")
        if not name:
            continue  # /proc/kallsyms leaves them out
        name = one_word(name)
        letter = chr(letters[index] if letters is not None else info)
        if not letter.isascii() or not letter.isprintable():
            letter = "?"
        symbols.append((value, letter.upper() if value in exported else letter.lower(), name))
    return symbols


def _read_strings(space: AddressSpace, vaddr: int, last: int) -> bytes:
    return space.read(vaddr, last) + space.read_cstring(vaddr + last, _MAX_NAME) + b"\0"


def _exported(space: AddressSpace, types: Types, record: Record, take: Callable[[int], None]) -> frozenset[int]:
    """Addresses of the symbols that a module exports; `take` is told the bytes before they are read."""
    found: set[int] = set()
    size = types.size("kernel_symbol")
    relative = types.find("kernel_symbol", "value_offset")
    value = types.offset("kernel_symbol", "value_offset", "value")
    for table, number in (("syms", "num_syms"), ("gpl_syms", "num_gpl_syms")):
        start, count = record.get(table), record.get(number)
        if not start or not count or count > _MAX_EXPORTS:
            continue
        take(size * count)
        data = space.read(start, size * count)
        for at in range(value, len(data), size):
            if relative is None:
                found.add(int.from_bytes(data[at : at + space.word_size], space.byteorder))
            else:  # counted from its own place, since 4.19
                found.add(start + at + int.from_bytes(data[at : at + 4], space.byteorder, signed=True))
    return frozenset(found)
