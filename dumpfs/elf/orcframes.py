"""Call frame information made of ORC tables, so that a debugger walks kernel stacks without debug information.

ORC knows less than DWARF: where the caller's frame is and where %rbp was saved, but not the other registers, which are
taken as unchanged. It knows more, too: every entry from user mode and every interrupt, of which a kernel's own DWARF
says nothing. Entries become FDEs of four kinds, cut at functions and wherever the kind changes:

    call      the caller's address lies below the CFA
    regs      an interrupt left a struct pt_regs, which ends at the CFA
    partial   likewise, but only what the processor pushed (rip, cs, eflags, rsp, ss)
    end       nothing called this: the return address is undefined

Where ORC says nothing, what it said before in the same function goes on: objtool gives up behind calls that it thinks
do not return, though a crash may stop just there.

Sources: Linux arch/x86/kernel/unwind_orc.c (meaning of the entries), arch/x86/include/asm/ptrace.h (struct pt_regs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dumpfs.elf.callframes import (
    X86_64_REGISTERS,
    FrameKind,
    def_cfa,
    def_cfa_indirect,
    saved_at_cfa,
    saved_at_register,
    undefined,
    unsaved,
)
from dumpfs.elf.framerows import Addresses, FrameRows, Numbers, RowMenu
from dumpfs.linux.orc import ENTRY_SIZE, OrcEntry, OrcReg, OrcTable, OrcType

_RBP, _RSP, _RIP = (X86_64_REGISTERS[name] for name in ("rbp", "rsp", "rip"))
_HARDWARE_FRAME = ("rip", "cs", "eflags", "rsp", "ss")
_PT_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax"),
    *_HARDWARE_FRAME,
)
_PT_REGS_SIZE = 8 * len(_PT_REGS)
_BASES = {
    OrcReg.SP: _RSP,
    OrcReg.BP: _RBP,
    OrcReg.DX: X86_64_REGISTERS["rdx"],
    OrcReg.DI: X86_64_REGISTERS["rdi"],
    OrcReg.R10: X86_64_REGISTERS["r10"],
    OrcReg.R13: X86_64_REGISTERS["r13"],
}
_WHOLE = frozenset((OrcReg.R10, OrcReg.R13, OrcReg.DI, OrcReg.DX))
"""Registers that are the caller's stack pointer themselves: their entries' offset does not count."""


def _interrupted(layout: Sequence[str]) -> FrameKind:
    """A frame whose saved registers, in the order of `layout`, end at the CFA.

    For debuggers it is a signal's: the caller goes on at its address, not behind a call, and may lie anywhere, on
    another stack too. The price is that gdb prints no name for it, unless a frame decorator does.
    """
    size = 8 * len(layout)
    rules = b"".join(
        saved_at_cfa(X86_64_REGISTERS[name], 8 * place - size)
        for place, name in enumerate(layout)
        if name in X86_64_REGISTERS
    )
    return FrameKind(_RIP, def_cfa(_RSP, size) + rules, signal=True)


CALL = FrameKind(_RIP, def_cfa(_RSP, 8) + saved_at_cfa(_RIP, -8))
END = FrameKind(_RIP, def_cfa(_RSP, 8) + undefined(_RIP))
REGS = _interrupted(_PT_REGS)
PARTIAL = _interrupted(_HARDWARE_FRAME)

SYSTEM_CALL_ENTRIES = (
    "entry_SYSCALL_64",
    "entry_SYSCALL_64_safe_stack",
    "entry_SYSCALL_64_after_hwframe",
    "entry_SYSENTER_compat",
    "entry_SYSENTER_compat_after_hwframe",
    "entry_SYSCALL_compat",
    "entry_SYSCALL_compat_safe_stack",
    "entry_SYSCALL_compat_after_hwframe",
    "entry_INT80_compat",
    "asm_int80_emulation",
    "ret_from_fork",
    "ret_from_fork_asm",
)
"""Functions below which there is never but a user program."""
_KINDS = {OrcType.CALL: CALL, OrcType.END_OF_STACK: END, OrcType.REGS: REGS, OrcType.REGS_PARTIAL: PARTIAL}
_ADDED = {OrcType.CALL: 0, OrcType.REGS: _PT_REGS_SIZE, OrcType.REGS_PARTIAL: 8 * len(_HARDWARE_FRAME)}
"""From what an entry tells the address of to the CFA, bytes."""

_AT_ONCE = 1 << 13
"""Functions whose rows are made at once: they have some 64,000 and take half a megabyte a column."""
_NOTHING, _END_ROW = -1, 0
"""Numbers of rows: of an entry that says nothing, and of the row that says that nothing called."""

Row = tuple[OrcType, bytes]

_N = TypeVar("_N", np.int64, np.uint64)


class Functions(NamedTuple):
    """Where functions are; ascending and disjoint."""

    starts: Addresses
    stops: Addresses


def translate(entry: OrcEntry) -> Row | None:
    """Kind and operations of an entry; None where it says nothing, or nothing that can be."""
    if entry.type is OrcType.END_OF_STACK:
        return entry.type, b""
    added = _ADDED.get(entry.type)
    if added is None:
        return None
    register, offset = entry.sp_reg, entry.sp_offset
    if register == OrcReg.SP_INDIRECT:
        frame = def_cfa_indirect(_RSP, 0, offset + added)
    elif register == OrcReg.BP_INDIRECT:
        frame = def_cfa_indirect(_RBP, offset, added)
    elif register in _WHOLE:
        frame = def_cfa(_BASES[OrcReg(register)], added)
    elif register in _BASES:
        frame = def_cfa(_BASES[OrcReg(register)], offset + added)
    else:
        return None
    if entry.type is not OrcType.CALL:
        return entry.type, frame
    if entry.bp_reg == OrcReg.PREV_SP and entry.bp_offset < 0 and not entry.bp_offset % 8:
        return entry.type, frame + saved_at_cfa(_RBP, entry.bp_offset)
    if entry.bp_reg == OrcReg.BP:
        return entry.type, frame + saved_at_register(_RBP, _RBP, entry.bp_offset)
    return entry.type, frame + unsaved(_RBP)


def orc_rows(
    table: OrcTable,
    decode: Callable[[bytes], OrcEntry],
    functions: Functions,
    ends: Collection[int] = (),
) -> Iterator[FrameRows]:
    """FDEs for what a table covers, in pieces of which each fits a processor's cache.

    Args:
        table: of the kernel or of a module.
        decode: makes sense of its entries.
        functions: [start, stop) of each function, ascending and disjoint.
        ends: where those of the functions start that nothing calls, whatever the table says.
    """
    origin, places, numbers, menu = _read_rows(table, decode)
    no_callers = np.zeros(len(functions.starts), np.bool_)
    for end in ends:  # a dozen; np.isin would first import half of numpy
        no_callers |= functions.starts == np.uint64(end)
    for first in range(0, len(functions.starts), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        # Counted from the table's place, addresses are signed numbers, and ascend wherever the kernel is.
        starts = (functions.starts[some] - origin).view(np.int64)
        stops = (functions.stops[some] - origin).view(np.int64)
        yield _rows_of_functions(origin, places, numbers, menu, starts, stops, no_callers[some])


def _rows_of_functions(
    origin: np.uint64,
    places: Numbers,
    numbers: Numbers,
    menu: RowMenu,
    starts: Numbers,
    stops: Numbers,
    no_callers: npt.NDArray[np.bool_],
) -> FrameRows:
    """FDEs of functions; `no_callers` tells which of them nothing calls."""
    # For each function, what holds at its start, which may have begun before it, and then every entry inside.
    low = np.searchsorted(places, starts, side="right")
    counts = np.where(no_callers, 0, np.maximum(np.searchsorted(places, stops, side="left") - low, 0)) + 1
    heads = np.cumsum(counts) - counts
    owners = np.repeat(np.arange(len(starts)), counts)
    entries = np.arange(len(owners)) + (low - 1 - heads)[owners]
    where, rows = places[entries], numbers[entries]
    where[heads] = starts
    rows[heads[no_callers]] = _END_ROW
    # What says nothing, and what says the same as the row before it, is left out.
    said = np.flatnonzero(rows != _NOTHING)
    where, rows, owners = where[said], rows[said], owners[said]
    new = _differs(owners)
    kept = np.flatnonzero(new | _differs(rows))
    where, rows, owners = where[kept], rows[kept], owners[kept]
    firsts = np.flatnonzero(new[kept] | _differs(menu.kind[rows]))
    # An FDE ends with its function, or where the function's next one begins.
    last = _differs(owners[firsts][::-1])[::-1]
    ends = np.where(last, stops[owners[firsts]], np.roll(where[firsts], -1))
    return FrameRows(menu, where.view(np.uint64) + origin, rows, firsts, ends.view(np.uint64) + origin)


def sorted_set(values: npt.NDArray[_N]) -> npt.NDArray[_N]:
    """The different values, ascending; np.unique hashes them, which takes ten times as long where most are in order."""
    ordered = np.sort(values)
    return ordered[_differs(ordered)]


def _differs(values: npt.NDArray[_N]) -> npt.NDArray[np.bool_]:
    """Of each value, whether it is another than the one before; True for the first."""
    out = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=out[1:])
    return out


def _read_rows(table: OrcTable, decode: Callable[[bytes], OrcEntry]) -> tuple[np.uint64, Numbers, Numbers, RowMenu]:
    """A table's address, distances from there of its entries, ascending, their rows' numbers, and the rows.

    Of several entries for one place the last counts.
    """
    base, raw_ips, raw = table.freeze()
    ips = np.frombuffer(raw_ips, np.int32)
    parts = np.frombuffer(raw, "<u2").reshape(len(ips), ENTRY_SIZE // 2).astype(np.int64)
    places = ips + 4 * np.arange(len(ips))
    codes = parts[:, 0] | parts[:, 1] << 16 | parts[:, 2] << 32
    if (places[1:] <= places[:-1]).any():
        order = np.argsort(places, kind="stable")
        order = order[_differs(places[order][::-1])[::-1]]
        places, codes = places[order], codes[order]
    distinct = sorted_set(codes)
    known: dict[Row, int] = {(OrcType.END_OF_STACK, b""): _END_ROW}
    numbers = np.empty(len(distinct), np.int64)
    for index, code in enumerate(distinct.tolist()):
        row = translate(decode(code.to_bytes(ENTRY_SIZE, "little")))
        numbers[index] = _NOTHING if row is None else known.setdefault(row, len(known))
    menu = RowMenu([(_KINDS[kind], operations) for kind, operations in known])
    # Before the first entry nothing is said.
    places = np.concatenate(([np.iinfo(np.int64).min], places))
    rows = np.concatenate(([_NOTHING], numbers[np.searchsorted(distinct, codes)]))
    return np.uint64(int.from_bytes(base, "little")), places, rows, menu
