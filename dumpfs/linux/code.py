"""The code of the kernel and of its modules: which function an address is in, and how to leave it.

Sources: Linux kernel/kallsyms.c and kernel/module/kallsyms.c (what covers an address), arch/x86/kernel/unwind_orc.c
(symbols of the ORC tables, members of struct mod_arch_specific).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol, TypeVar

from dumpfs.errors import DumpfsError
from dumpfs.linux.kallsyms import Kallsyms, Symbol
from dumpfs.linux.modules import Module, SymbolBudget, module_symbols
from dumpfs.linux.orc import ENTRY_SIZE, OrcEntry, OrcFormat, OrcTable
from dumpfs.linux.records import note_problem, read_record
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace

_T = TypeVar("_T")
_TEXT = (("_stext", "_etext"), ("_sinittext", "_einittext"))


class Facts(Protocol):
    """What is asked of `inspect.Inspector`."""

    problems: list[str]

    @property
    def space(self) -> AddressSpace: ...

    @property
    def kallsyms(self) -> Kallsyms: ...

    @property
    def types(self) -> Types: ...

    @property
    def modules(self) -> tuple[Module, ...]: ...


class KernelCode:
    """See `unwind.Code`; modules are looked into when an address of theirs is asked for.

    Args:
        facts: where symbols, types and modules come from.
        orc: the kernel's own ORC table or the reason why there is none, when that is known already.
    """

    def __init__(self, facts: Facts, orc: OrcTable | DumpfsError | None = None) -> None:
        self._facts = facts
        symbols = facts.kallsyms
        self.ranges = tuple(
            (start, stop)
            for first, last in _TEXT
            if (start := symbols.address(first)) is not None and (stop := symbols.address(last)) is not None
        )
        """[start, stop) of the kernel's own code."""
        self._module_symbols: dict[int, Kallsyms | None] = {}
        self._budget = SymbolBudget()
        self._orcs: dict[int, OrcTable | None] = {}
        if orc is not None:
            self._orcs[0] = orc if isinstance(orc, OrcTable) else None
        self._formats: list[OrcFormat | None] = []

    # -- symbols

    def module_at(self, vaddr: int) -> Module | None:
        """The module whose memory holds an address."""
        modules = _try(self._facts, "modules", lambda: self._facts.modules) or ()
        return next((m for m in modules if m.covers(vaddr)), None)

    def is_text(self, vaddr: int) -> bool:
        """See `unwind.Code`."""
        if any(start <= vaddr < stop for start, stop in self.ranges):
            return True
        symbol = self._in_module(vaddr)
        return symbol is not None

    def lookup(self, vaddr: int) -> Symbol | None:
        """The function or variable that covers an address, in the kernel itself or a module."""
        return self._facts.kallsyms.lookup(vaddr) or self._in_module(vaddr)

    def _in_module(self, vaddr: int) -> Symbol | None:
        module = self.module_at(vaddr)
        if module is None:
            return None
        if module.vaddr not in self._module_symbols:
            self._module_symbols[module.vaddr] = _try(
                self._facts, f"symbols of module {module.name}", lambda: self._read_symbols(module)
            )
        symbols = self._module_symbols[module.vaddr]
        found = symbols.lookup(vaddr) if symbols is not None else None
        return found._replace(module=module.name) if found is not None else None

    def _read_symbols(self, module: Module) -> Kallsyms:
        rows = sorted(module_symbols(self._facts.space, self._facts.types, module, self._budget))
        # A last symbol without a successor ends with the memory it is in.
        ends = sorted({start + size for start, size in module.ranges})
        rows += [(end, "a", "") for end in ends]
        rows.sort(key=lambda row: row[0])
        addresses = array("Q", [row[0] & (1 << 64) - 1 for row in rows])
        return Kallsyms(addresses, [row[2] for row in rows], "".join([row[1] for row in rows]), module.name)

    # -- unwinding

    @property
    def orc_format(self) -> OrcFormat | None:
        """What makes sense of the entries of all tables; None when that is unknown."""
        if not self._formats:
            self._formats.append(_try(self._facts, "ORC", lambda: OrcFormat(self._facts.types)))
        return self._formats[0]

    @property
    def has_orc(self) -> bool:
        """Whether the kernel has ORC tables that can be read."""
        return self.orc_format is not None and self.kernel_orc is not None

    def find_orc(self, vaddr: int) -> OrcEntry | None:
        """See `unwind.Code`."""
        table = None
        if any(start <= vaddr < stop for start, stop in self.ranges):
            table = self.kernel_orc
        else:
            module = self.module_at(vaddr)
            table = None if module is None else self.module_orc(module)
        data = None if table is None else table.find(vaddr)
        return None if data is None or self.orc_format is None else self.orc_format.decode(data)

    @property
    def kernel_orc(self) -> OrcTable | None:
        """The kernel's own table."""
        if 0 not in self._orcs:
            self._orcs[0] = _try(self._facts, "ORC", self._read_kernel_orc)
        return self._orcs[0]

    def _read_kernel_orc(self) -> OrcTable:
        symbols = self._facts.kallsyms
        ips, ips_end = symbols.need("__start_orc_unwind_ip"), symbols.need("__stop_orc_unwind_ip")
        entries, entries_end = symbols.need("__start_orc_unwind"), symbols.need("__stop_orc_unwind")
        count = min((ips_end - ips) // 4, (entries_end - entries) // ENTRY_SIZE)
        return OrcTable(self._facts.space, ips, entries, count)

    def module_orc(self, module: Module) -> OrcTable | None:
        """A module's table; None when it has none that can be read."""
        if module.vaddr not in self._orcs:
            self._orcs[module.vaddr] = _try(
                self._facts, f"ORC of module {module.name}", lambda: self._read_module_orc(module)
            )
        return self._orcs[module.vaddr]

    def _read_module_orc(self, module: Module) -> OrcTable:
        record = read_record(self._facts.space, self._facts.types, "module", module.vaddr)
        ips, entries = record.value("arch.orc_unwind_ip"), record.value("arch.orc_unwind")
        return OrcTable(self._facts.space, ips, entries, record.value("arch.num_orcs"))


def _try(facts: Facts, what: str, make: Callable[[], _T]) -> _T | None:
    """What `make` returns, or None with a problem noted."""
    try:
        return make()
    except DumpfsError as exc:
        note_problem(facts.problems, f"{what}: {exc}")
        return None
