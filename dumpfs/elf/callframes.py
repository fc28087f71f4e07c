"""DWARF call frame information: how a debugger finds the caller of any instruction.

A `.debug_frame` section is made of CIEs, which say what a kind of frame has in common, and of FDEs, which say for a
range of instructions where the frame's address (CFA) is and which registers were saved. Rows are stateless here: each
says all that its kind of frame leaves open, so that a row may follow any other.

Sources: DWARF 4 section 6.4 and 7.23 (records, numbers of operations), the x86-64 and AArch64 psABI supplements
(numbers of registers), GDB's dwarf2/frame.c (an undefined return address ends a backtrace without a complaint).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dumpfs.structs import ByteOrder

X86_64_REGISTERS: Mapping[str, int] = {
    name: number
    for number, name in enumerate(
        ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")
    )
}
AARCH64_REGISTERS: Mapping[str, int] = {**{f"x{n}": n for n in range(31)}, "sp": 31}

_ADVANCE, _OFFSET, _RESTORE = 0x40, 0x80, 0xC0
_ADVANCE1, _ADVANCE2, _ADVANCE4 = 0x02, 0x03, 0x04
_UNDEFINED, _DEF_CFA, _DEF_CFA_EXPRESSION, _EXPRESSION = 0x07, 0x0C, 0x0F, 0x10
_OP_DEREF, _OP_BREG0, _OP_PLUS_UCONST, _OP_CONST8S, _OP_PLUS = 0x06, 0x70, 0x23, 0x0F, 0x22
_CIE_ID = 0xFFFFFFFF
_CIE_VERSION = 4
_AUGMENTED = (b"", b"\0")
"""Bytes of augmentation data (none) of records without and with an augmentation that begins with "z"."""
DATA_ALIGN = -8
"""What saved registers' distances from the CFA are counted in, bytes."""


def uleb(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb(value: int) -> bytes:
    """A signed LEB128 number."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def def_cfa(register: int, offset: int) -> bytes:
    """The CFA is a register plus `offset` bytes."""
    if offset >= 0:
        return bytes((_DEF_CFA,)) + uleb(register) + uleb(offset)
    return def_cfa_expression(bytes((_OP_BREG0 + register,)) + sleb(offset))


def def_cfa_indirect(register: int, offset: int, added: int = 0) -> bytes:
    """The CFA is the word at a register plus `offset` bytes, plus `added`."""
    expression = bytes((_OP_BREG0 + register,)) + sleb(offset) + bytes((_OP_DEREF,))
    if added > 0:
        expression += bytes((_OP_PLUS_UCONST,)) + uleb(added)
    elif added:
        expression += bytes((_OP_CONST8S,)) + added.to_bytes(8, "little", signed=True) + bytes((_OP_PLUS,))
    return def_cfa_expression(expression)


def def_cfa_expression(expression: bytes) -> bytes:
    """The CFA is what a DWARF expression yields."""
    return bytes((_DEF_CFA_EXPRESSION,)) + uleb(len(expression)) + expression


def saved_at_cfa(register: int, offset: int) -> bytes:
    """A register was saved at the CFA plus `offset` bytes, negative and a multiple of 8."""
    factored, rest = divmod(offset, DATA_ALIGN)
    if rest or factored < 0:
        raise ValueError(f"a register saved at CFA{offset:+}")
    return bytes((_OFFSET | register,)) + uleb(factored)


def saved_at_register(register: int, base: int, offset: int) -> bytes:
    """A register was saved at register `base` plus `offset` bytes."""
    expression = bytes((_OP_BREG0 + base,)) + sleb(offset)
    return bytes((_EXPRESSION,)) + uleb(register) + uleb(len(expression)) + expression


def unsaved(register: int) -> bytes:
    """A register is as the frame's kind has it: unchanged."""
    return bytes((_RESTORE | register,))


def undefined(register: int) -> bytes:
    """A register is lost; of the return address: this frame has no caller."""
    return bytes((_UNDEFINED,)) + uleb(register)


def advance(distance: int, byteorder: ByteOrder = "little") -> bytes:
    """The next row begins `distance` bytes on."""
    if distance < 0x40:
        return bytes((_ADVANCE | distance,))
    if distance < 1 << 8:
        return bytes((_ADVANCE1, distance))
    if distance < 1 << 16:
        return bytes((_ADVANCE2,)) + distance.to_bytes(2, byteorder)
    return bytes((_ADVANCE4,)) + distance.to_bytes(4, byteorder)


@dataclass(frozen=True, slots=True)
class FrameKind:
    """What a CIE says."""

    return_register: int
    """Number of the register that stands for the return address."""
    rules: bytes
    """Operations that hold at the start of every FDE of this kind."""
    signal: bool = False
    """Whether the caller was interrupted, so that its address is not behind a call."""


class Coverage(NamedTuple):
    """One FDE: instructions `[start, stop)` and their rows."""

    start: int
    stop: int
    kind: FrameKind
    rows: Sequence[tuple[int, bytes]]
    """(address, operations), ascending."""


@dataclass(slots=True)
class FrameSection:
    """A `.debug_frame` section being built.

    Args:
        word_size: bytes of an address.
        byteorder: of the target.
    """

    word_size: int
    byteorder: ByteOrder
    _pieces: list[bytes] = field(default_factory=list)
    _size: int = 0
    _kinds: dict[FrameKind, bytes] = field(default_factory=dict)
    _steps: dict[int, bytes] = field(default_factory=dict)

    def add(self, coverages: Iterable[Coverage]) -> None:
        """Append FDEs."""
        word, order = self.word_size, self.byteorder
        steps, kinds, pieces = self._steps, self._kinds, self._pieces
        for start, stop, kind, rows in coverages:
            cie = kinds.get(kind) or self.cie(kind)
            program = [cie, start.to_bytes(word, order), (stop - start).to_bytes(word, order), _AUGMENTED[kind.signal]]
            size = 8 + 2 * word + kind.signal
            here = start
            for vaddr, operations in rows:
                if vaddr > here:
                    step = steps.get(vaddr - here)
                    if step is None:
                        step = steps[vaddr - here] = advance(vaddr - here, order)
                    program.append(step)
                    size += len(step)
                    here = vaddr
                program.append(operations)
                size += len(operations)
            padding = -size % word
            pieces.append((size + padding - 4).to_bytes(4, order))
            pieces += program
            pieces.append(bytes(padding))  # DW_CFA_nop is 0
            self._size += size + padding

    def append(self, records: bytes) -> None:
        """Append whole records, made elsewhere of offsets that `cie` told."""
        self._pieces.append(records)
        self._size += len(records)

    def has(self, kind: FrameKind) -> bool:
        """Whether there is a CIE of that kind."""
        return kind in self._kinds

    def cie(self, kind: FrameKind) -> bytes:
        """Offset of a kind's CIE, as FDEs have it; one is appended when there is none."""
        offset = self._kinds.get(kind)
        if offset is not None:
            return offset
        offset = self._kinds[kind] = self._size.to_bytes(4, self.byteorder)
        augmentation = b"zS\0" if kind.signal else b"\0"
        body = _CIE_ID.to_bytes(4, self.byteorder) + bytes((_CIE_VERSION,)) + augmentation
        body += bytes((self.word_size, 0)) + uleb(1) + sleb(DATA_ALIGN) + uleb(kind.return_register)
        body += _AUGMENTED[kind.signal] + kind.rules
        body += bytes(-(len(body) + 4) % self.word_size)
        self.append(len(body).to_bytes(4, self.byteorder) + body)
        return offset

    def build(self) -> bytes:
        """The section's bytes; b'' without any FDE."""
        return b"".join(self._pieces)
