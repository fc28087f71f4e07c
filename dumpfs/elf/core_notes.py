"""The notes of a core that dumpfs lays out: the dump's own, made fit for its readers.

The dump's bytes are kept as they are wherever that serves: makedumpfile copies them, and its output from our core
shall be what it makes from the original. They change only where

* a note is none that debuggers of kernels need. Others belong to cores of processes, and say to a debugger of those
  what it is to do: gdb opens every file that an NT_FILE names, be it a FIFO or a tape drive, and prints the command of
  an NT_PRPSINFO as it is. A note must fit by name and by type, for BFD looks at the type alone;
* two processors have the same pr_pid: gdb takes pr_pid for the thread's number and would lose one of them (idle tasks
  all have pid 0);
* the file's byte order is not the kernel's (QEMU marks ppc64le dumps big-endian);
* VMCOREINFO or the erase information is not among the notes, but known.

Sources: Linux include/linux/elfcore.h (struct elf_prstatus), kernel/vmcore_info.c (VMCOREINFO note),
include/uapi/linux/elf.h (types of notes), fs/proc/vmcore.c (device dumps), arch/s390/kernel/crash_dump.c; QEMU's
target/*/arch_dump.c; Xen's public/elfnote.h; makedumpfile (ERASEINFO).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dumpfs.notes import NT_FPREGSET, NT_PRSTATUS, Note, build_note, parse_notes
from dumpfs.structs import ByteOrder
from dumpfs.units import one_line

_PID_OFFSET = {4: 24, 8: 32}
"""Of pr_pid in struct elf_prstatus, by the size of a long."""
FIRST_MADE_PID = 1 << 22
"""PID_MAX_LIMIT: no task can have it or a higher one, so a made-up pid is never taken for a real task's."""
_PRSTATUS_HEAD64 = "3ih2x2Q4i8Q"
"""struct elf_prstatus of a 64-bit kernel up to its registers."""
_TEXT_NOTES = frozenset((b"VMCOREINFO", b"VMCOREINFO_XEN", b"ERASEINFO"))


_KERNEL_NOTES: Mapping[bytes, tuple[range, ...]] = {
    b"CORE": (range(NT_PRSTATUS, NT_FPREGSET + 1), range(4, 5)),  # registers; NT_TASKSTRUCT of netdump and /proc/kcore
    b"LINUX": (range(0x100, 0x1000), range(0x46E62B7F, 0x46E62B80)),  # register sets, device dumps; NT_PRXFPREG
    b"QEMU": (range(1),),
    b"Xen": (range(0x1000000, 0x3000000),),
    **{name: (range(1),) for name in _TEXT_NOTES},
}
"""Types of notes by their names."""
_TYPE_NAMES = {3: "NT_PRPSINFO", 6: "NT_AUXV", 0x46494C45: "NT_FILE", 0x53494749: "NT_SIGINFO"}
_MAX_TOLD, _MAX_NAME = 6, 16


class ThreadNotes(NamedTuple):
    """What a core says of threads beside the processors' own notes."""

    cpu_pids: tuple[int, ...]
    """pr_pid of each of the dump's NT_PRSTATUS notes, in their order; all different, none 0."""
    data: bytes
    """Further notes, in the kernel's byte order."""
    notices: tuple[str, ...] = ()
    """What could not be told, one sentence each."""


class CoreNotes(NamedTuple):
    """A PT_NOTE image."""

    data: bytes
    notices: tuple[str, ...]
    """What was changed, one sentence each."""


def is_prstatus(note: Note) -> bool:
    """Whether a note holds a processor's registers."""
    return note.name == b"CORE" and note.type == NT_PRSTATUS


def keep_kernel_notes(image: bytes, byteorder: ByteOrder) -> CoreNotes:
    """The notes that debuggers of kernels need, as they are, and one sentence on the others.

    What cannot be read as notes is left out as well: with further notes behind it, it might be read.
    """
    kept = bytearray()
    others: dict[str, None] = {}
    start = end = 0
    for note in parse_notes(image, byteorder):
        end = note.desc_offset + len(note.desc) + (-len(note.desc) & 3)
        if not any(note.type in types for types in _KERNEL_NOTES.get(note.name, ())):
            kept += image[start : note.offset]
            start = end
            if len(others) <= _MAX_TOLD:
                others[_name_note(note)] = None
    tail = image[end:]
    if tail.strip(b"\0"):
        others["one that is cut short"] = None
        tail = b""
    if not others:
        return CoreNotes(image, ())
    kept += image[start:end] + tail
    told = list(others)
    names = ", ".join(told if len(told) <= _MAX_TOLD else [*told[: _MAX_TOLD - 1], "and others"])
    return CoreNotes(bytes(kept), (f"notes that no kernel's dump needs were left out: {names}",))


def _name_note(note: Note) -> str:
    """Its owner and type for people; the owner may be anything."""
    name = one_line(note.name[:_MAX_NAME].decode("utf-8", "replace"))
    return f"{name or 'nameless'} {_TYPE_NAMES.get(note.type, hex(note.type))}"


def build_core_notes(
    image: bytes,
    image_order: ByteOrder,
    byteorder: ByteOrder,
    word_size: int,
    vmcoreinfo: bytes | None,
    eraseinfo: bytes,
    threads: ThreadNotes | None = None,
) -> CoreNotes:
    """Notes for a core of a kernel with that byte order and word size.

    Args:
        image: the dump's notes, headers and integers in `image_order`.
        image_order: byte order of the dump.
        byteorder: the kernel's, which the core will have.
        word_size: the kernel's bytes of a long.
        vmcoreinfo: text to add when there is no such note, or None.
        eraseinfo: likewise; b'' for none.
        threads: further threads, whose notes come last: every reader takes the first for the processors'.
    """
    image, told = keep_kernel_notes(image, image_order)
    notices = list(told)
    notes = list(parse_notes(image, image_order))
    if threads is not None:
        data = _with_pids(image, _processors(notes, word_size), threads.cpu_pids, image_order, word_size)
        notices += threads.notices
    else:
        data, patched = _with_unique_pids(image, notes, image_order, word_size)
        if patched:
            notices.append(f"{patched} of the processors' notes have a made-up pr_pid, for theirs were not unique")
    if image_order != byteorder:
        data, dropped = _swap(data, image_order, byteorder, word_size)
        if dropped:
            notices.append(f"{dropped} notes were left out, for their byte order is not the kernel's")
    for name, text in ((b"VMCOREINFO", vmcoreinfo), (b"ERASEINFO", eraseinfo)):
        if text and not any(note.name == name for note in notes):
            data += bytes(-len(data) & 3) + build_note(name, 0, text, byteorder)
    if threads is not None:
        data += bytes(-len(data) & 3) + threads.data
    return CoreNotes(data, tuple(notices))


def _processors(notes: Sequence[Note], word_size: int) -> list[Note]:
    """The NT_PRSTATUS notes that are long enough to have a pr_pid."""
    return [note for note in notes if is_prstatus(note) and len(note.desc) >= _PID_OFFSET[word_size] + 4]


def _with_unique_pids(image: bytes, notes: Sequence[Note], order: ByteOrder, word_size: int) -> tuple[bytes, int]:
    """The notes with a pr_pid of its own for every processor, and how many were changed."""
    offset = _PID_OFFSET[word_size]
    cpus = _processors(notes, word_size)
    pids = [int.from_bytes(note.desc[offset : offset + 4], order, signed=True) for note in cpus]
    if len(set(pids)) == len(pids):
        return image, 0
    seen = {0}  # gdb means "the process" by 0; one alone it bears, but we write anyway
    unique = []
    for number, pid in enumerate(pids):
        unique.append(FIRST_MADE_PID + number if pid in seen else pid)
        seen.add(pid)
    return _with_pids(image, cpus, unique, order, word_size), sum(a != b for a, b in zip(pids, unique, strict=True))


def _with_pids(image: bytes, cpus: Sequence[Note], pids: Sequence[int], order: ByteOrder, word_size: int) -> bytes:
    """The notes with a pr_pid from `pids` in each of `cpus`."""
    offset = _PID_OFFSET[word_size]
    data = bytearray(image)
    for note, pid in zip(cpus, pids, strict=True):
        at = note.desc_offset + offset
        data[at : at + 4] = pid.to_bytes(4, order, signed=True)
    return bytes(data)


def _swap(image: bytes, source: ByteOrder, target: ByteOrder, word_size: int) -> tuple[bytes, int]:
    """The notes in byte order `target`, and how many of unknown layout were dropped."""
    out = bytearray()
    dropped = 0
    for note in parse_notes(image, source):
        if is_prstatus(note) and word_size == 8:
            out += build_note(note.name, note.type, _swap_prstatus64(note.desc, source, target), target)
        elif note.name in _TEXT_NOTES:
            out += build_note(note.name, note.type, note.desc, target)
        else:
            dropped += 1
    return bytes(out), dropped


def _swap_prstatus64(desc: bytes, source: ByteOrder, target: ByteOrder) -> bytes:
    """A 64-bit struct elf_prstatus in the other byte order: words of registers, then the 32-bit pr_fpvalid."""
    words = max(len(desc) - struct.calcsize("=" + _PRSTATUS_HEAD64) - 8, 0) // 8
    layout = f"{_PRSTATUS_HEAD64}{words}Qi4x"
    old, new = ("<" if order == "little" else ">" for order in (source, target))
    size = struct.calcsize(old + layout)
    return struct.pack(new + layout, *struct.unpack(old + layout, desc[:size].ljust(size, b"\0")))
