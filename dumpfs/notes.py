"""ELF notes: registers of the processors, VMCOREINFO and what else a dump carries.

In a kernel dump a note header is 12 bytes, and name and descriptor are padded to 4 bytes even in 64-bit files (Linux:
kernel/crash_core.c `append_elf_note`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from dumpfs.structs import ByteOrder

NT_PRSTATUS = 1
NT_FPREGSET = 2
NT_VMCOREDD = 0x700

MAX_NOTES = 1 << 16
"""Notes of one image that are looked at: the largest machines have some for each of 8,192 processors. A note may be of
12 bytes, so that a few megabytes of them would cost seconds."""
_HEADER_SIZE = 12
_USED = re.compile(rb"[^\0]")


class Note(NamedTuple):
    """One note."""

    name: bytes
    """Owner without its terminating NUL: b'CORE', b'VMCOREINFO', b'QEMU', b'LINUX' ..."""
    type: int
    desc: bytes
    """Descriptor, unpadded."""
    offset: int
    """Byte offset of the note in the image it was parsed from."""
    desc_offset: int
    """Byte offset of the descriptor there."""


def _pad4(size: int) -> int:
    return size + (-size & 3)


def parse_notes(image: bytes, byteorder: ByteOrder) -> Iterator[Note]:
    """The notes of a PT_NOTE image; ends at the first one that does not fit, which is not an error.

    All-zero headers (the unused end of a CPU's buffer) are stepped over. After `MAX_NOTES` there are no more.
    """
    left = MAX_NOTES
    header = struct.Struct(("<" if byteorder == "little" else ">") + "3I")
    used = _USED.search
    offset = 0
    while left and offset + _HEADER_SIZE <= len(image):
        namesz, descsz, kind = header.unpack_from(image, offset)
        if not namesz and not descsz and not kind:
            found = used(image, offset)
            if found is None:
                return
            offset += (found.start() - offset) // _HEADER_SIZE * _HEADER_SIZE
            continue
        name_offset = offset + _HEADER_SIZE
        desc_offset = name_offset + _pad4(namesz)
        if desc_offset + descsz > len(image):
            return
        name = image[name_offset : name_offset + namesz].rstrip(b"\0")
        yield Note(name, kind, image[desc_offset : desc_offset + descsz], offset, desc_offset)
        offset = desc_offset + _pad4(descsz)
        left -= 1


def build_note(name: bytes, kind: int, desc: bytes, byteorder: ByteOrder) -> bytes:
    """The bytes of one note, padded; `name` without its NUL."""
    header = struct.pack(("<" if byteorder == "little" else ">") + "3I", len(name) + 1, len(desc), kind)
    return header + _padded(name + b"\0") + _padded(desc)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def find_note(image: bytes, byteorder: ByteOrder, name: bytes, kind: int = 0) -> Note | None:
    """The first note of that owner and type, or None."""
    return next((n for n in parse_notes(image, byteorder) if n.name == name and n.type == kind), None)
