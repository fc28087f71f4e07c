"""Kernel stacks, frame by frame.

The way depends on what the kernel brought along: ORC tables on x86_64, frame pointers elsewhere and where ORC is not
built in; what neither can follow is searched for words that are return addresses, which finds too much, so those
frames are marked. Stacks switch (interrupts, exceptions) and may be damaged: nothing is assumed of an address but that
it can be read, and a walk ends after a limit or when it stands still.

Sources: Linux arch/x86/kernel/unwind_orc.c and unwind_frame.c, arch/arm64/kernel/stacktrace.c and
arch/arm64/include/asm/stacktrace/frame.h (records of exceptions since 6.13), lib/vsprintf.c (%pB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dumpfs.errors import DumpfsError
from dumpfs.linux.kallsyms import Symbol
from dumpfs.linux.orc import FRAME_POINTER_ENTRY, NULL_ENTRY, OrcEntry, OrcReg, OrcType
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace

MAX_FRAMES = 256
_MAX_SCAN = 1 << 17
"""Bytes of a stack that are searched for return addresses; stacks have 16 or 32 KiB, rarely 64."""

_MAX_RESCUE = 1 << 12
"""Bytes of a stack that are searched for the caller of a function without unwind information."""
_MAX_PROLOGUE = 256
"""Bytes of a function in which it has saved what it will save."""

Registers = Mapping[str, int]


class Code(Protocol):
    """What an unwinder asks of the kernel's code."""

    def lookup(self, vaddr: int) -> Symbol | None:
        """The symbol that covers an address."""

    def is_text(self, vaddr: int) -> bool:
        """Whether an address lies in the code of the kernel or of a module."""

    def find_orc(self, vaddr: int) -> OrcEntry | None:
        """The ORC entry of an instruction."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One function on a stack, inlined ones not told apart."""

    pc: int
    """Where it goes on: a return address, or where it was interrupted."""
    sp: int
    """Stack pointer in this frame."""
    exact: bool = False
    """Whether `pc` is an instruction that was about to run, not a return address."""
    guessed: bool = False
    """Whether it was found by searching the stack; it may be left over from an earlier call."""
    registers: Registers | None = None
    """All registers of an interrupted frame, when known."""

    @property
    def lookup_pc(self) -> int:
        """An address inside the call, by which function and line are found."""
        return self.pc if self.exact or not self.pc else self.pc - 1


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames of a task, innermost first."""

    frames: tuple[Frame, ...]
    unwinder: str
    """What found them: 'ORC', 'frame pointers', 'return addresses'."""
    end: str
    """Why it ends: '' at the kernel's entry, else what went wrong."""


def describe(frame: Frame, lookup: Callable[[int], Symbol | None]) -> str:
    """The place of a frame as the kernel prints it: function+offset/size [module], or the address."""
    symbol = lookup(frame.lookup_pc)
    if symbol is None:
        return f"0x{frame.pc:x}"
    return str(symbol._replace(offset=symbol.offset + frame.pc - frame.lookup_pc))


def in_user_mode(registers: Registers) -> bool:
    """Whether a processor with these registers ran a user program."""
    if "cs" in registers:
        return bool(registers["cs"] & 3)
    return "pstate" in registers and not registers["pstate"] & 0xF


class StackReader:
    """Walks the stacks of one kernel.

    Args:
        space: kernel memory.
        types: structures of this kernel, or None.
        code: its code.
        machine: `uname -m`.
        orc: whether ORC tables are there.
        pac_mask: arm64: bits of a return address that hold a signature.
    """

    def __init__(
        self, space: AddressSpace, types: Types | None, code: Code, machine: str, orc: bool, pac_mask: int = 0
    ) -> None:
        self.space = space
        self.types = types
        self.code = code
        self.machine = machine
        self.orc = orc
        self.pac_mask = pac_mask

    def walk(self, registers: Registers, stack: tuple[int, int] | None, *, running: bool) -> Stack:
        """The stack of a task.

        Args:
            registers: its registers by the names of the architecture's NT_PRSTATUS.
            stack: (lowest address, bytes) of its own kernel stack, for the search; None when unknown.
            running: whether it was running: its program counter is then no return address.
        """
        if self.machine == "aarch64":
            walker: _Walker = _Arm64Walker(self)
        elif self.machine == "x86_64":
            walker = _OrcWalker(self) if self.orc else _X86FrameWalker(self)
        else:
            return Stack((), "", f"dumpfs cannot walk stacks of {self.machine or 'this machine'}")
        if running and in_user_mode(registers):
            return Stack((), walker.name, "")
        walker.run(registers, running)
        unwinder = walker.name
        if walker.end:
            last = walker.frames[-1].sp if walker.frames else 0
            guessed = self._search(last, stack)
            if guessed:
                unwinder = f"{unwinder}, then return addresses" if len(walker.frames) > 1 else "return addresses"
                walker.frames += guessed
        return Stack(tuple(walker.frames[:MAX_FRAMES]), unwinder, walker.end)

    def _search(self, sp: int, stack: tuple[int, int] | None) -> list[Frame]:
        """Frames for every word of the stack above `sp` that points behind a call."""
        word = self.space.word_size
        if stack is None or not stack[0] <= sp < stack[0] + min(stack[1], _MAX_SCAN):
            return []
        start = -(-sp // word) * word
        try:
            data = self.space.read(start, stack[0] + stack[1] - start)
        except DumpfsError:
            return []
        frames = []
        for at in range(0, len(data), word):
            pc = int.from_bytes(data[at : at + word], self.space.byteorder)
            if self.code.is_text(pc) and self._follows_call(pc):
                frames.append(Frame(pc, start + at + word, guessed=True))
                if len(frames) >= MAX_FRAMES:
                    break
        return frames

    def called_by(self, pc: int) -> int | None:
        """What the direct call before `pc` calls on x86_64; None when there is none."""
        if not self.code.is_text(pc):
            return None
        try:
            before = self.space.read(pc - 5, 5)
        except DumpfsError:
            return None
        return pc + int.from_bytes(before[1:], "little", signed=True) if before[0] == 0xE8 else None

    def _follows_call(self, pc: int) -> bool:
        """Whether the instruction before `pc` is a call; True when its bytes are not in the dump."""
        try:
            if self.machine == "aarch64":
                code = self.space.read_u32(pc - 4)
                return code >> 26 == 0x25 or code & 0xFFFFFC1F == 0xD63F0000  # bl, blr
            before = self.space.read(pc - 7, 7)
        except DumpfsError:
            return True
        # call rel32, or FF /2 with a ModRM byte in any of its lengths.
        return before[2] == 0xE8 or any(before[-n] == 0xFF and before[1 - n] & 0x38 == 0x10 for n in (2, 3, 4, 6, 7))


class _Walker:
    """One walk; `end` says why it ended early."""

    name = ""

    def __init__(self, reader: StackReader) -> None:
        self.reader = reader
        self.space = reader.space
        self.frames: list[Frame] = []
        self.end = ""
        self._seen: set[tuple[int, int]] = set()

    def run(self, registers: Registers, running: bool) -> None:
        """Walk from these registers on."""
        try:
            self.walk(registers, running)
        except DumpfsError as exc:
            self.end = str(exc)

    def walk(self, registers: Registers, running: bool) -> None:
        raise NotImplementedError

    def add(self, frame: Frame) -> bool:
        """Take a frame; False when the walk is to end here."""
        if (frame.pc, frame.sp) in self._seen:
            self.end = f"the walk stands still at {frame.pc:#x}"
            return False
        if len(self.frames) >= MAX_FRAMES:
            self.end = f"more than {MAX_FRAMES} frames"
            return False
        self._seen.add((frame.pc, frame.sp))
        self.frames.append(frame)
        return True


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


class _OrcWalker(_Walker):
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
        return self.reader.code.find_orc(pc if exact else pc - 1) or FRAME_POINTER_ENTRY

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
        code = self.reader.code
        symbol = code.lookup(frame.lookup_pc)
        if symbol is None:
            return None
        start = frame.lookup_pc - symbol.offset
        for slot in range(frame.sp, frame.sp + _MAX_RESCUE, 8):
            if self.reader.called_by(self.space.read_u64(slot)) == start:
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


class _X86FrameWalker(_Walker):
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
            if not self.reader.code.is_text(pc):
                self.end = f"{pc:#x} is no code"
                return


class _Arm64Walker(_Walker):
    name = "frame pointers"

    def walk(self, registers: Registers, running: bool) -> None:
        pc, sp, fp = registers["pc"], registers["sp"], registers["x29"]
        exact = running
        full: Registers | None = registers if running else None
        while self.add(Frame(pc, sp, exact, registers=full)):
            full = None
            if not fp:
                return
            sp = fp + 16
            fp, pc, exact = self.space.read_u64(fp), self.space.read_u64(fp + 8), False
            if fp or pc:
                pc |= self.reader.pac_mask if pc >> 55 & 1 else 0
                if not self.reader.code.is_text(pc):
                    self.end = f"{pc:#x} is no code"
                    return
                continue
            interrupted = self._exception(sp - 16)
            if interrupted is None:
                return
            pc, sp, fp = interrupted
            exact = True

    def _exception(self, record: int) -> tuple[int, int, int] | None:
        """(pc, sp, x29) behind the empty record of an exception since 6.13; None at the end of the stack."""
        types = self.reader.types
        if types is None or not types.has("frame_record_meta", "type"):
            return None
        kind = types.member("frame_record_meta", "type")
        if self.space.read_int(record + kind.offset, kind.size) != 2:  # FRAME_META_TYPE_PT_REGS
            return None
        regs = record - types.offset("pt_regs", "stackframe")
        if not self.space.read_u64(regs + types.offset("pt_regs", "pstate")) & 0xF:
            return None  # from user mode
        pc, sp, fp = (self.space.read_u64(regs + types.offset("pt_regs", n)) for n in ("pc", "sp", "regs[29]"))
        return pc, sp, fp
