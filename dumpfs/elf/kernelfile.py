"""Symbol files of a dead kernel, made of what it knew of itself.

Two kinds. The whole one has all functions and variables of the kernel and its modules. The other adds to a real vmlinux
what that lacks: functions of modules, and where stacks end. Both have call frame information made of ORC tables, or of
frame pointers where the kernel has no ORC.

User programs' addresses are one function called "<user mode>", which nothing called: a debugger that comes there at the
end of a stack stops without a word instead of guessing on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dumpfs.elf.callframes import Coverage, FrameSection, def_cfa
from dumpfs.elf.framerows import FrameRows, add_rows
from dumpfs.elf.orcframes import CALL, END, SYSTEM_CALL_ENTRIES, Functions, orc_rows, sorted_set
from dumpfs.elf.pointerframes import pointer_coverages
from dumpfs.elf.symbolfile import Region, SymbolFile, SymbolTable
from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.frames import Frame
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.kallsyms import Kallsyms
from dumpfs.linux.modules import Module, SymbolBudget, module_symbols
from dumpfs.linux.records import note_problem

USER_MODE = "<user mode>"
_USER_STOP = 1 << 55
"""No 64-bit kernel lets programs have higher addresses."""
_USER_STARTS = {"x86_64": 1 << 20}
"""Below lie a vmlinux's per-CPU variables, whose section is linked at 0: a debugger knows no section that shares its
addresses with another. Programs are loaded at 4 MiB or above."""
_USER_START = 0x1000
"""Of other machines: no program has the first page."""
_CODE_LETTERS = frozenset("tTwWiI")
_MAX_FRAME = 1 << 16
_TOP = 1 << 64
_MAX_CODE = 1 << 31
"""Bytes of one stretch of code: calls in it reach no farther."""
MAX_SYMBOLS = 1_000_000
MAX_ORC_ENTRIES = 3_000_000
"""Of the kernel and all modules; real ones have a third of each at most. More would take minutes and much memory."""
Rows = Sequence[tuple[int, str, str]]


def build_symbol_file(inspector: Inspector, *, whole: bool) -> bytes:
    """The bytes of an ELF file.

    Args:
        inspector: of the kernel.
        whole: whether the kernel's own symbols are wanted, and not only what a vmlinux lacks.

    Raises:
        DumpfsError: the kernel's symbols cannot be found.
    """
    kernel = inspector.kernel
    modules = _read_modules(inspector)
    count = len(inspector.kallsyms) + sum(len(rows) for _, rows in modules)
    if count > MAX_SYMBOLS:
        raise ViewError(f"vmlinux: {count} symbols cannot be")
    image = _image_regions(inspector)
    user = _USER_STARTS.get(kernel.machine, _USER_START)
    regions = [*_user_region(kernel.word_size, user), *(image if whole else ()), *_module_regions(modules)]
    tables = [_table(rows) for _, rows in modules]
    if kernel.word_size == 8:
        tables.append(_table([(user, "T", USER_MODE)]))
    if whole:
        tables.insert(0, _kernel_table(inspector.kallsyms))
    return SymbolFile(
        kernel.machine,
        kernel.word_size,
        kernel.byteorder,
        _build_id(kernel.build_id) if whole else b"",
        _disjoint(regions),
        tables,
        _build_frames(inspector, modules, user),
    ).build()


def _build_id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""  # VMCOREINFO is what the dump makes of it


# -- symbols


def _kernel_table(symbols: Kallsyms) -> SymbolTable:
    _, types, text, starts = symbols.freeze()
    names = memoryview(starts).cast("I")[: len(symbols)]
    return SymbolTable(symbols.addresses, types.decode("latin-1"), text.replace(b"\n", b"\0"), names)


def _table(rows: Rows) -> SymbolTable:
    strings = bytearray()
    names = []
    for _, _, name in rows:
        names.append(len(strings))
        strings += name.encode("utf-8", "surrogateescape") + b"\0"
    mask = (1 << 64) - 1
    return SymbolTable([row[0] & mask for row in rows], "".join([row[1] for row in rows]), bytes(strings), names)


def _read_modules(inspector: Inspector) -> list[tuple[Module, Rows]]:
    """The modules with their symbols; what cannot be read is left out and noted."""
    found: list[tuple[Module, Rows]] = []
    try:
        modules = inspector.modules
    except DumpfsError as exc:
        note_problem(inspector.problems, f"vmlinux: without modules: {exc}")
        return found
    budget = SymbolBudget()
    for module in modules:
        try:
            rows = module_symbols(inspector.space, inspector.types, module, budget)
        except DumpfsError as exc:
            note_problem(inspector.problems, f"vmlinux: without symbols of module {module.name}: {exc}")
            continue
        found.append((module, [row for row in rows if module.covers(row[0])]))
    return found


# -- sections


def _user_region(word_size: int, start: int) -> Iterator[Region]:
    if word_size == 8:
        yield Region(".user", start, _USER_STOP, True)


def _image_regions(inspector: Inspector) -> list[Region]:
    """The kernel image: its code, and what lies between and behind as data."""
    symbols = inspector.kallsyms
    code = sorted(inspector.code.ranges)
    first = min((found for name in ("_text", "_stext") if (found := symbols.address(name))), default=None)
    stop = symbols.address("_end")
    text = inspector.kernel.text
    if stop is None and text is not None:
        stop = text[0] + text[2]
    if first is None or stop is None or stop <= first:
        return [Region(".text", start, end, True) for start, end in code if start < end]
    regions: list[Region] = []
    names = iter((".text", ".init.text"))
    data = iter((".data", ".data.init", ".data.more"))
    here = first
    for start, end in code:
        if not here <= start < end <= stop:
            continue
        if start - here < _MAX_FRAME and not regions:
            start = here  # what lies before _stext is code, too
        elif here < start:
            regions.append(Region(next(data), here, start, False))
        regions.append(Region(next(names), start, end, True))
        here = end
    if here < stop:
        regions.append(Region(".bss", here, stop, False))
    return regions


def _module_regions(modules: Iterable[tuple[Module, Rows]]) -> Iterator[Region]:
    for module, _ in modules:
        for start, size in module.ranges:
            yield Region(f"[{module.name}]", start, start + size, True)


def _disjoint(regions: Iterable[Region]) -> list[Region]:
    """The regions by address, without those that overlap one before."""
    found: list[Region] = []
    for region in sorted(regions, key=lambda r: r.start):
        if region.start < region.stop <= _TOP and (not found or found[-1].stop <= region.start):
            found.append(region)
    return found


# -- frames


def _build_frames(inspector: Inspector, modules: Sequence[tuple[Module, Rows]], user: int) -> bytes:
    kernel = inspector.kernel
    section = FrameSection(kernel.word_size, kernel.byteorder)
    if kernel.machine == "x86_64" and inspector.code.has_orc:
        known = [np.empty((2, 0), np.uint64)]
        for rows in _orc(inspector, modules):
            add_rows(section, rows)
            known.append(np.stack((rows.starts, rows.stops)))
        section.add(_learned(inspector, np.concatenate(known, axis=1)))
    else:
        functions = _pairs(_functions(inspector.kallsyms.addresses, inspector.code.ranges))
        for module, symbols in modules:
            functions += _pairs(_module_functions(module, symbols))
        section.add(pointer_coverages(inspector, sorted(functions)))
    if kernel.machine == "x86_64":
        section.add([Coverage(user, _USER_STOP, END, ((user, b""),))])
    return section.build()


def _orc(inspector: Inspector, modules: Sequence[tuple[Module, Rows]]) -> Iterator[FrameRows]:
    """FDEs by the ORC tables of the kernel and of each module."""
    code = inspector.code
    if code.orc_format is None:
        return
    decode = code.orc_format.decode
    left = MAX_ORC_ENTRIES
    if code.kernel_orc is not None and len(code.kernel_orc) <= left:
        left -= len(code.kernel_orc)
        found = (inspector.kallsyms.address(name) for name in SYSTEM_CALL_ENTRIES)
        ends = frozenset(address for address in found if address is not None)
        functions = _functions(inspector.kallsyms.addresses, code.ranges)
        yield from orc_rows(code.kernel_orc, decode, functions, ends)
    for module, rows in modules:
        table = code.module_orc(module)
        if table is not None and len(table) <= left:
            left -= len(table)
            yield from orc_rows(table, decode, _module_functions(module, rows))


def _module_functions(module: Module, rows: Rows) -> Functions:
    ranges = [(start, start + size) for start, size in module.ranges]
    return _functions([row[0] & _TOP - 1 for row in rows if row[1] in _CODE_LETTERS], ranges)


def _functions(addresses: Sequence[int], ranges: Iterable[tuple[int, int]]) -> Functions:
    """Every function: from each address to the next, inside ranges of code."""
    ordered = sorted_set(np.array(addresses, np.uint64))
    starts, stops = [ordered[:0]], [ordered[:0]]
    for first, last in sorted(ranges):
        if not first < last < _TOP or last - first > _MAX_CODE:
            continue
        bounds = np.array((first, last), np.uint64)
        low, high = np.searchsorted(ordered, bounds)
        if low < high:
            starts.append(ordered[low:high])
            stops += ordered[low + 1 : high], bounds[1:]
    return Functions(np.concatenate(starts), np.concatenate(stops))


def _pairs(functions: Functions) -> list[tuple[int, int]]:
    return list(zip(functions.starts.tolist(), functions.stops.tolist(), strict=True))


def _learned(inspector: Inspector, known: npt.NDArray[np.uint64]) -> Iterator[Coverage]:
    """FDEs for functions of which ORC says nothing, but through which a processor's stack was walked all the same.

    `__crash_kexec`, in which dumping kernels end, is one: objtool takes it for a function that does not return.

    Args:
        inspector: of the kernel.
        known: starts and stops of what has FDEs.
    """
    learned: set[int] = set()
    try:
        tasks = [task for task in inspector.tasks if task.running]
    except DumpfsError as exc:
        note_problem(inspector.problems, f"vmlinux: {exc}")
        return
    for task in tasks:
        try:
            frames = inspector.stack(task).frames
        except DumpfsError:
            continue  # a processor without registers; nothing can be learned of it
        for frame, caller in pairwise(frames):
            pc = np.uint64(frame.lookup_pc)
            if ((known[0] <= pc) & (pc < known[1])).any():
                continue
            coverage = _learn(inspector, frame, caller)
            if coverage is not None and coverage.start not in learned:
                learned.add(coverage.start)
                yield coverage


def _learn(inspector: Inspector, frame: Frame, caller: Frame) -> Coverage | None:
    symbol = inspector.code.lookup(frame.lookup_pc)
    size = caller.sp - frame.sp
    if symbol is None or caller.guessed or not 0 < size < _MAX_FRAME:
        return None
    start = frame.lookup_pc - symbol.offset
    return Coverage(start, start + symbol.size, CALL, ((start, def_cfa(7, size)),))
