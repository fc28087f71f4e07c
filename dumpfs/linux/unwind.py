"""Kernel stacks, frame by frame.

The way depends on what the kernel brought along: ORC tables on x86_64, frame pointers elsewhere and where ORC is not
built in; what neither can follow is searched for words that are return addresses, which finds too much, so those
frames are marked. Stacks switch (interrupts, exceptions) and may be damaged: nothing is assumed of an address but that
it can be read, and a walk ends after a limit or when it stands still.

Sources: Linux lib/vsprintf.c (%pB); the instruction set manuals of Intel and Arm (calls).
"""

from __future__ import annotations

from collections.abc import Callable

from dumpfs.errors import DumpfsError
from dumpfs.linux.frames import MAX_FRAMES, Code, Frame, Registers, Stack, Walker
from dumpfs.linux.kallsyms import Symbol
from dumpfs.linux.types import Types
from dumpfs.linux.walk_arm64 import Arm64Walker
from dumpfs.linux.walk_x86 import OrcWalker, X86FrameWalker
from dumpfs.memory.virtual import AddressSpace

_MAX_SCAN = 1 << 17
"""Bytes of a stack that are searched for return addresses; stacks have 16 or 32 KiB, rarely 64."""


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
            walker: Walker = Arm64Walker(self)
        elif self.machine == "x86_64":
            walker = OrcWalker(self) if self.orc else X86FrameWalker(self)
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
