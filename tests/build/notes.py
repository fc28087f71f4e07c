"""Notes and VMCOREINFO text."""

from __future__ import annotations

import struct


def note(name: bytes, kind: int, desc: bytes, byteorder: str) -> bytes:
    """One note: a 12-byte header, name with its NUL and descriptor, each padded to 4."""
    head = struct.pack(("<" if byteorder == "little" else ">") + "III", len(name) + 1, len(desc), kind)
    name += b"\0"
    return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


def prstatus(pid: int, byteorder: str, registers: bytes = b"") -> bytes:
    """NT_PRSTATUS of an x86_64 kernel, 336 bytes with pr_pid at 32 and the registers at 112."""
    desc = bytearray(336)
    struct.pack_into(("<" if byteorder == "little" else ">") + "i", desc, 32, pid)
    desc[112 : 112 + len(registers)] = registers
    return note(b"CORE", 1, bytes(desc), byteorder)


def vmcoreinfo_text(page_size: int = 4096, **more: str) -> bytes:
    """A short VMCOREINFO."""
    lines = ["OSRELEASE=6.1.0-built", f"PAGESIZE={page_size}", "CRASHTIME=1700000000"]
    return ("\n".join(lines + [f"{k}={v}" for k, v in more.items()]) + "\n").encode()
