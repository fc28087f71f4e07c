"""ORC: x86_64's tables that tell, for every instruction, where its caller's frame is.

Two arrays of the same length: the place of each instruction range as a 32-bit distance from the array's own entry,
ascending, and a 6-byte `struct orc_entry` for each. Modules bring their own pair.

Sources: Linux Documentation/arch/x86/orc-unwinder.rst, arch/x86/include/asm/orc_types.h (entry before and since 6.4),
arch/x86/kernel/unwind_orc.c (lookup; what is assumed where there is no entry).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from dumpfs.errors import CorruptDumpError
from dumpfs.linux.records import member_value
from dumpfs.linux.types import Member, Types
from dumpfs.memory.virtual import AddressSpace

ENTRY_SIZE = 6
_MAX_ENTRIES = 4_000_000
"""Real kernels have under a million."""


class OrcReg(IntEnum):
    """What a frame's address is counted from."""

    UNDEFINED = 0
    PREV_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9


class OrcType(IntEnum):
    """What lies at a frame's address; numbers since 6.4."""

    UNDEFINED = 0
    END_OF_STACK = 1
    CALL = 2
    REGS = 3
    REGS_PARTIAL = 4


class OrcEntry(NamedTuple):
    """How to find the caller."""

    sp_offset: int
    bp_offset: int
    sp_reg: int
    bp_reg: int
    type: OrcType
    signal: bool
    """Whether the frame found was interrupted, so that its address is not a return address."""


FRAME_POINTER_ENTRY = OrcEntry(16, -16, OrcReg.BP, OrcReg.PREV_SP, OrcType.CALL, False)
"""Where there is no entry: code that keeps a frame pointer, as generated code does."""
NULL_ENTRY = OrcEntry(8, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.CALL, False)
"""After a call of a null pointer: nothing but the return address was pushed."""

_OLD_TYPES = (OrcType.CALL, OrcType.REGS, OrcType.REGS_PARTIAL, OrcType.UNDEFINED)
"""Meaning of the two type bits before 6.4."""


class OrcFormat:
    """The bits of `struct orc_entry` of one kernel, which moved in 6.3 and 6.4.

    Args:
        types: its structures.

    Raises:
        MissingTypeError: struct orc_entry is not known.
    """

    def __init__(self, types: Types) -> None:
        def need(name: str) -> Member:
            return types.member("orc_entry", name)

        self._sp_offset, self._bp_offset = need("sp_offset"), need("bp_offset")
        self._sp_reg, self._bp_reg, self._type = need("sp_reg"), need("bp_reg"), need("type")
        self._signal, self._end = types.find("orc_entry", "signal"), types.find("orc_entry", "end")

    def decode(self, data: bytes) -> OrcEntry:
        """The entry in 6 bytes."""

        def bits(member: Member | None) -> int:
            return 0 if member is None else member_value(data, member, "little")

        number = bits(self._type)
        if self._type.bit_size <= 2:
            kind = OrcType.END_OF_STACK if bits(self._end) else _OLD_TYPES[number]
        else:
            kind = OrcType(number) if number <= OrcType.REGS_PARTIAL else OrcType.UNDEFINED
        interrupted = kind in (OrcType.REGS, OrcType.REGS_PARTIAL)
        return OrcEntry(
            sp_offset=member_value(data, self._sp_offset, "little", signed=True),
            bp_offset=member_value(data, self._bp_offset, "little", signed=True),
            sp_reg=bits(self._sp_reg),
            bp_reg=bits(self._bp_reg),
            type=kind,
            signal=bool(bits(self._signal)) if self._signal is not None else interrupted,
        )


class OrcTable:
    """The pair of arrays of the kernel or of one module.

    Args:
        space: kernel memory.
        ips: address of the array of places.
        entries: address of the array of entries.
        count: their length.

    Raises:
        CorruptDumpError: the length is impossible.
        DumpfsError: they are not in the dump.
    """

    def __init__(self, space: AddressSpace, ips: int, entries: int, count: int) -> None:
        if not 0 < count <= _MAX_ENTRIES:
            raise CorruptDumpError("ORC", f"{count} entries cannot be")
        self._base = ips
        self._ips = array("i", space.read(ips, 4 * count))
        if sys.byteorder != "little":
            self._ips.byteswap()
        self._entries = space.read(entries, ENTRY_SIZE * count)

    @classmethod
    def thaw(cls, parts: Sequence[bytes]) -> OrcTable:
        """The table that `freeze` gave the parts of, on this machine."""
        self = cls.__new__(cls)
        base, ips, self._entries = parts
        self._base, self._ips = int.from_bytes(base, "little"), array("i", ips)
        return self

    def freeze(self) -> tuple[bytes, ...]:
        """What `thaw` makes the same table of, in another process of this machine."""
        return self._base.to_bytes(8, "little"), self._ips.tobytes(), self._entries

    def __len__(self) -> int:
        return len(self._ips)

    def find(self, vaddr: int) -> bytes | None:
        """The entry for an instruction, undecoded, or None when the table begins behind it."""
        base, ips = self._base, self._ips
        index = bisect_right(range(len(ips)), vaddr, key=lambda i: base + 4 * i + ips[i]) - 1
        if index < 0:
            return None
        return self._entries[ENTRY_SIZE * index : ENTRY_SIZE * (index + 1)]
