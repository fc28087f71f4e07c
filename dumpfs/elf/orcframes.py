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

import sys
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from dumpfs.elf.callframes import (
    X86_64_REGISTERS,
    Coverage,
    FrameKind,
    def_cfa,
    def_cfa_indirect,
    saved_at_cfa,
    saved_at_register,
    undefined,
    unsaved,
)
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

Row = tuple[OrcType, bytes]


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


def orc_coverages(
    table: OrcTable,
    decode: Callable[[bytes], OrcEntry],
    functions: Iterable[tuple[int, int]],
    ends: Container[int] = (),
) -> Iterator[Coverage]:
    """FDEs for what a table covers.

    Args:
        table: of the kernel or of a module.
        decode: makes sense of its entries.
        functions: [start, stop) of each function, ascending and disjoint.
        ends: where those of the functions start that nothing calls, whatever the table says.
    """
    places, entries = _unfold(table)
    known = {entry: translate(decode(entry)) for entry in set(entries)}
    position, count = 0, len(places)
    for start, end in functions:
        while position < count and places[position] <= start:
            position += 1
        if start in ends:
            yield Coverage(start, end, END, ((start, b""),))
            continue
        kind: OrcType | None = None
        rows: list[tuple[int, bytes]] = []
        begin = place = start
        last = None
        index = position - 1  # what holds at its start may have begun before it
        while place < end:
            row = known[entries[index]] if index >= 0 else None
            if row is not None and row != last:
                if row[0] is not kind:
                    if kind is not None:
                        yield Coverage(begin, place, _KINDS[kind], rows)
                    kind, rows, begin = row[0], [], place
                rows.append((place, row[1]))
                last = row
            index += 1
            if index >= count:
                break
            place = places[index]
        position = max(index, 0)
        if kind is not None:
            yield Coverage(begin, end, _KINDS[kind], rows)


def _unfold(table: OrcTable) -> tuple[list[int], list[bytes]]:
    """Addresses of a table's entries, ascending, and the entries; of several for one address the last counts."""
    raw_base, raw_ips, raw = table.freeze()
    base = int.from_bytes(raw_base, "little")
    ips = array("i")
    ips.frombytes(raw_ips)
    assert ips.itemsize == 4, sys.byteorder
    places = [base + 4 * index + ip for index, ip in enumerate(ips)]
    entries = [raw[at : at + ENTRY_SIZE] for at in range(0, len(raw), ENTRY_SIZE)]
    if any(map(int.__ge__, places[:-1], places[1:])):
        unique = dict(zip(places, entries, strict=True))
        places = sorted(unique)
        entries = [unique[place] for place in places]
    return places, entries
