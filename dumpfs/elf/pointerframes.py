"""Call frame information for kernels that keep frame pointers and have no ORC tables.

x86_64: a function that keeps one begins with `push %rbp; mov %rsp,%rbp`, behind the hooks that a kernel is built with;
before them the caller's address is on top of the stack, and so it is all along in functions that keep none.

arm64: every function that calls another has x29 point at its frame record (caller's x29, return address). Where the
record lies in the frame differs, but a debugger needs only what is in it. Interrupts leave a struct pt_regs at the
stack pointer of their entry.

Sources: Linux arch/x86/include/asm/frame.h, arch/arm64/kernel/entry.S (names of entries),
arch/arm64/include/asm/ptrace.h (struct pt_regs); AArch64 psABI (frame records).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dumpfs.elf.callframes import AARCH64_REGISTERS, Coverage, FrameKind, def_cfa, saved_at_cfa, undefined
from dumpfs.elf.orcframes import CALL, END
from dumpfs.errors import DumpfsError
from dumpfs.linux.inspect import Inspector

_RBP, _RSP = 6, 7
_X29, _X30, _SP = (AARCH64_REGISTERS[name] for name in ("x29", "x30", "sp"))
_PROLOGUE = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?(?:\xe8....|\x0f\x1f\x44\x00\x00|\x66\x66\x66\x66\x90)?(?:\xf3\x0f\x1e\xfa)?"
    rb"(\x55)(\x48\x89\xe5)",
    re.DOTALL,
)
"""endbr64, a call or no-operation of the tracer, then the two instructions."""
_MAX_PROLOGUE = 24
_X86_ENDS = ("ret_from_fork", "ret_from_fork_asm", "secondary_startup_64", "entry_SYSCALL_64", "entry_SYSENTER_compat")
_ARM64_VECTOR = r"(?:64_|32_)?(?:sync|irq|fiq|error)(?:_compat|_invalid)?"
_ARM64_ENDS = re.compile(
    rf"el0t?_{_ARM64_VECTOR}|ret_from_fork|ret_to_user|__primary_switch(?:ed)?|__secondary_switched|secondary_startup"
)
_ARM64_INTERRUPTS = re.compile(rf"el1[ht]?_{_ARM64_VECTOR}")
_ARM64_PT_REGS = 8 * 34
"""Bytes of what all kernels have in struct pt_regs: x0 to x30, sp, pc, pstate."""
_ARM64_PC = 32
"""The psABI has no number for the program counter; gdb and libunwind take this one."""

_ARM64_FRAME = FrameKind(_X30, def_cfa(_X29, 16) + saved_at_cfa(_X29, -16) + saved_at_cfa(_X30, -8))
_ARM64_END = FrameKind(_X30, def_cfa(_SP, 0) + undefined(_X30))
_ARM64_INTERRUPT = FrameKind(
    _ARM64_PC,
    def_cfa(_SP, _ARM64_PT_REGS)
    + b"".join(saved_at_cfa(number, 8 * number - _ARM64_PT_REGS) for number in (*range(31), _SP, _ARM64_PC)),
    signal=True,
)


def pointer_coverages(inspector: Inspector, functions: Sequence[tuple[int, int]]) -> Iterator[Coverage]:
    """FDEs of the functions [start, stop); nothing for architectures other than x86_64 and arm64."""
    if inspector.kernel.machine == "x86_64":
        yield from _x86_coverages(inspector, functions)
    elif inspector.kernel.machine == "aarch64":
        yield from _arm64_coverages(inspector, functions)


def _x86_coverages(inspector: Inspector, functions: Sequence[tuple[int, int]]) -> Iterator[Coverage]:
    ends = {address for name in _X86_ENDS if (address := inspector.kallsyms.address(name)) is not None}
    plain = def_cfa(_RSP, 8)
    pushed = def_cfa(_RSP, 16) + saved_at_cfa(_RBP, -16)
    kept = def_cfa(_RBP, 16) + saved_at_cfa(_RBP, -16)
    for start, stop in functions:
        if start in ends:
            yield Coverage(start, stop, END, ((start, b""),))
            continue
        try:
            found = _PROLOGUE.match(inspector.space.read(start, min(stop - start, _MAX_PROLOGUE)))
        except DumpfsError:
            continue  # a debugger may still guess
        if found is None:
            continue
        rows = ((start, plain), (start + found.end(1), pushed), (start + found.end(2), kept))
        yield Coverage(start, stop, CALL, rows)


def _arm64_coverages(inspector: Inspector, functions: Sequence[tuple[int, int]]) -> Iterator[Coverage]:
    for start, stop in functions:
        symbol = inspector.code.lookup(start)
        name = symbol.name if symbol is not None else ""
        kind = _ARM64_FRAME
        if _ARM64_ENDS.fullmatch(name):
            kind = _ARM64_END
        elif _ARM64_INTERRUPTS.fullmatch(name):
            kind = _ARM64_INTERRUPT
        yield Coverage(start, stop, kind, ((start, b""),))
