"""Walking x86_64 kernel stacks, by ORC tables or by frame pointers.

Sources: Linux arch/x86/kernel/unwind_orc.c and unwind_frame.c, arch/x86/include/asm/ptrace.h (struct pt_regs).
"""

from __future__ import annotations

from dumpfs.linux.frames import Frame, Registers, Walker
from dumpfs.linux.orc import FRAME_POINTER_ENTRY, NULL_ENTRY, OrcEntry, OrcReg, OrcType
from dumpfs.memory.virtual import AddressSpace

_MAX_RESCUE = 1 << 12
"""Bytes of a stack that are searched for the caller of a function without unwind information."""
_MAX_PROLOGUE = 256
"""Bytes of a function in which it has saved what it will save."""
_X86_REGS = [
    "r15",
    "r14",
    "r13",
    "r12",
    "rbp",
    "rbx",
    "r11",
    "r10",
    "r9",
    "r8",
    "rax",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "orig_rax",
    "rip",
    "cs",
    "eflags",
    "rsp",
    "ss",
]
"""struct pt_regs of x86_64, one word each."""
_ORC_REGISTERS = {OrcReg.R10: "r10", OrcReg.R13: "r13", OrcReg.DI: "rdi", OrcReg.DX: "rdx"}


def _x86_regs(space: AddressSpace, vaddr: int) -> dict[str, int]:
    data = space.read(vaddr, 8 * len(_X86_REGS))
    return {name: int.from_bytes(data[8 * i : 8 * i + 8], "little") for i, name in enumerate(_X86_REGS)}


class OrcWalker(Walker):
    """By the tables."""

    name = "ORC"

    def walk(self, registers: Registers, running: bool) -> None:
        pc, sp, bp = registers["rip"], registers["rsp"], registers["rbp"]
        full: Registers | None = registers if running else None
        exact = running
        while self.add(Frame(pc, sp, exact, registers=full if exact else None)):
            entry = self._entry(pc, exact)
            if entry.type is OrcType.END_OF_STACK:
                return
            cfa = self._frame_address(entry, sp, bp, full) if entry.type is not OrcType.UNDEFINED else None
            if cfa is None:
                rescued = self._rescue(Frame(pc, sp, exact))
                if rescued is None:
                    self.end = f"no way on from {pc:#x}"
                    return
                cfa, entry = rescued
            new_bp = self._base_pointer(entry, cfa, bp, full)
            full = None
            if entry.type is OrcType.CALL:
                pc, sp = self.space.read_u64(cfa - 8), cfa
            elif entry.type is OrcType.REGS:
                full = _x86_regs(self.space, cfa)
                pc, sp = full["rip"], full["rsp"]
                if full["cs"] & 3:
                    return  # it came from user mode
            else:
                pc, cs, _, sp, _ = (int.from_bytes(self.space.read(cfa + 8 * i, 8), "little") for i in range(5))
                if cs & 3:
                    return
            bp, exact = new_bp, entry.signal

    def _entry(self, pc: int, exact: bool) -> OrcEntry:
        if not pc:
            return NULL_ENTRY
        return self.ground.code.find_orc(pc if exact else pc - 1) or FRAME_POINTER_ENTRY

    def _frame_address(self, entry: OrcEntry, sp: int, bp: int, full: Registers | None) -> int | None:
        match entry.sp_reg:
            case OrcReg.SP:
                return sp + entry.sp_offset
            case OrcReg.BP:
                return bp + entry.sp_offset
            case OrcReg.SP_INDIRECT:
                return self.space.read_u64(sp) + entry.sp_offset
            case OrcReg.BP_INDIRECT:
                return self.space.read_u64(bp + entry.sp_offset)
            case OrcReg.R10 | OrcReg.R13 | OrcReg.DI | OrcReg.DX:
                return full.get(_ORC_REGISTERS[OrcReg(entry.sp_reg)]) if full is not None else None
        return None

    def _rescue(self, frame: Frame) -> tuple[int, OrcEntry] | None:
        """Frame address, and an entry for the rest, of a function whose entries are undefined where it is.

        So is `__crash_kexec`, in which every dumping kernel ends, since objtool takes it for a function that does not
        return. The first word on the stack that points behind a direct call of this very function is where it was
        called from; how %rbp was saved is told by the function's entries before.
        """
        code = self.ground.code
        symbol = code.lookup(frame.lookup_pc)
        if symbol is None:
            return None
        start = frame.lookup_pc - symbol.offset
        for slot in range(frame.sp, frame.sp + _MAX_RESCUE, 8):
            if self.ground.called_by(self.space.read_u64(slot)) == start:
                break
        else:
            return None
        cfa = slot + 8
        for vaddr in range(start + min(symbol.offset, _MAX_PROLOGUE), start, -1):
            entry = code.find_orc(vaddr)
            if entry is not None and entry.sp_reg == OrcReg.SP:
                return cfa, entry._replace(type=OrcType.CALL, signal=False)
        return cfa, NULL_ENTRY

    def _base_pointer(self, entry: OrcEntry, cfa: int, bp: int, full: Registers | None) -> int:
        if entry.bp_reg == OrcReg.PREV_SP:
            return self.space.read_u64(cfa + entry.bp_offset)
        if entry.bp_reg == OrcReg.BP:
            return self.space.read_u64(bp + entry.bp_offset)
        return full["rbp"] if full is not None else bp


class X86FrameWalker(Walker):
    """By frame pointers, each kernel function having kept one."""

    name = "frame pointers"

    def walk(self, registers: Registers, running: bool) -> None:
        pc, sp, bp = registers["rip"], registers["rsp"], registers["rbp"]
        exact = running
        full: Registers | None = registers if running else None
        while self.add(Frame(pc, sp, exact, registers=full)):
            full = None
            if bp & 1:  # an entry marked that a pt_regs lies here
                full = _x86_regs(self.space, bp - 1)
                if full["cs"] & 3:
                    return
                pc, sp, bp, exact = full["rip"], full["rsp"], full["rbp"], True
                continue
            if not bp:
                return
            if not exact and bp < sp - 8:
                self.end = f"the frame pointer {bp:#x} lies below the stack pointer"
                return
            sp, exact = bp + 16, False
            pc, bp = self.space.read_u64(bp + 8), self.space.read_u64(bp)
            if not self.ground.code.is_text(pc):
                self.end = f"{pc:#x} is no code"
                return
