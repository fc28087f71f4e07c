"""Frames of kernel stacks, and what every way of walking from one to the next has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dumpfs.errors import DumpfsError
from dumpfs.linux.kallsyms import Symbol
from dumpfs.linux.orc import OrcEntry
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace

MAX_FRAMES = 256

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


class Ground(Protocol):
    """What a walk stands on; `unwind.StackReader` is one."""

    space: AddressSpace
    types: Types | None
    code: Code
    pac_mask: int

    def called_by(self, pc: int) -> int | None:
        """What the direct call before `pc` calls, or None."""


class Walker:
    """One walk; `end` says why it ended early."""

    name = ""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.space = ground.space
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
        """What a way of walking does: `add` frames, set `end` when it stops early."""
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
