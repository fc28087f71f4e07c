"""Register notes of every architecture."""

from __future__ import annotations

import pytest

from dumpfs.arch.base import ARCH_NAMES, arch_for

SIZES = {
    "x86_64": (336, 112, 32, 27),
    "i686": (144, 72, 24, 17),
    "aarch64": (392, 112, 32, 34),
    "arm": (148, 72, 24, 18),
    "s390x": (336, 112, 32, 35),
    "ppc64": (504, 112, 32, 44),
    "ppc64le": (504, 112, 32, 44),
    "riscv64": (376, 112, 32, 32),
    "loongarch64": (480, 112, 32, 35),
}
"""Bytes of the note, offset of the first register, offset of pr_pid, registers."""


@pytest.mark.parametrize("name", ARCH_NAMES)
def test_layout_is_the_kernels(name: str):
    arch = arch_for(name)
    assert arch is not None
    layout = arch.prstatus
    assert (layout.descsz, layout.registers_offset, layout.pid_offset, len(layout.registers)) == SIZES[name]
    assert all(offset + size <= layout.descsz for _, offset, size in layout.registers)
    assert {arch.program_counter, arch.stack_pointer} <= {register for register, _, _ in layout.registers}
    assert arch.name == name


def test_registers_are_read_in_the_notes_byte_order():
    arch = arch_for("x86_64")
    assert arch is not None
    desc = bytearray(336)
    desc[32:36] = (1234).to_bytes(4, "little")
    desc[112 + 16 * 8 : 112 + 17 * 8] = (0xFFFFFFFF81000000).to_bytes(8, "little")
    assert arch.prstatus.pid(bytes(desc), "little") == 1234
    assert arch.prstatus.parse_registers(bytes(desc), "little")["rip"] == 0xFFFFFFFF81000000


def test_a_short_note_gives_the_registers_it_has():
    arch = arch_for("s390x")
    assert arch is not None
    assert list(arch.prstatus.parse_registers(bytes(130), "big")) == ["psw_mask", "psw_addr"]


def test_an_unknown_machine_has_no_architecture():
    assert arch_for("vax") is None
