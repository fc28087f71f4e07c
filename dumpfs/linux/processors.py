"""The processors of the dead kernel: which there were, and the registers with which each of them stopped.

A kernel that crashes writes the registers of its processors into notes in its own memory (`crash_notes`), whence they
come into the vmcore. A hypervisor that dumps the machine writes those that the processors have then. Where a capture
kernel is running by that time these are the capture kernel's, and only memory has those of the kernel that crashed.

Sources: Linux kernel/crash_core.c and kernel/kexec_core.c (crash_notes: a per-CPU ELF note, all zeros until the crash),
kernel/kexec_core.c (crashk_res: where the capture kernel is).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.records import note_problem
from dumpfs.notes import NT_PRSTATUS, parse_notes

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector

MAX_CPUS = 1 << 16
_CORE = b"CORE"
_MAX_RESERVED = 8 << 30
"""Bytes that a capture kernel may have been given; what is stored of them is searched."""
_NOTE_HEAD = 12 + 8
"""Bytes of a note before its descriptor: three words, and the name in 8."""


class SavedRegisters(NamedTuple):
    """What is known of the processors' registers."""

    notes: dict[int, bytes]
    """Processor to the descriptor of its NT_PRSTATUS note."""
    foreign: bool
    """Whether the dump's own notes are of another kernel, at least one of them."""


def read_cpus(inspector: Inspector) -> tuple[int, ...]:
    """Numbers of the processors that were present.

    Raises:
        DumpfsError: the kernel's mask of them cannot be read.
    """
    mask = inspector.find_symbol("__cpu_present_mask") or inspector.find_symbol("cpu_present_bits")
    if mask is None or inspector.find_symbol("__per_cpu_offset") is None:
        inspector.symbol("init_task")  # without data in the table (CONFIG_KALLSYMS_ALL) nothing can be concluded
        return (0,)  # built for one processor
    space = inspector.space
    number = inspector.find_symbol("nr_cpu_ids")
    count = space.read_u32(number) if number is not None else len(prstatus_notes(inspector)) or 1
    if not 0 < count <= MAX_CPUS:
        raise ViewError(f"{count} processors cannot be")
    word = space.word_size
    data = space.read(mask, -(-count // (8 * word)) * word)
    words = [int.from_bytes(data[i : i + word], space.byteorder) for i in range(0, len(data), word)]
    return tuple(n for n in range(count) if words[n // (8 * word)] >> n % (8 * word) & 1)


def prstatus_notes(inspector: Inspector) -> list[bytes]:
    """Descriptors of the dump's NT_PRSTATUS notes, in their order."""
    return [note.desc for note in inspector.kernel.notes if note.name == _CORE and note.type == NT_PRSTATUS]


def find_registers(inspector: Inspector) -> SavedRegisters:
    """The registers of every processor, from the notes of the dump or from the kernel's own in memory.

    The kernel's own come first: they are there only once it has crashed, and it never ran again. Of a processor that
    left none then, the dump's note counts only if that processor was in this kernel.
    """
    notes = _of_dump(inspector)
    own = dict(_in_memory(inspector))
    if not own:
        return SavedRegisters(notes, foreign=False)
    foreign, replaced = False, []
    for cpu, desc in list(notes.items()):
        why = _why_torn(inspector, desc)
        is_mine = bool(why) or _is_in_kernel(inspector, desc)
        foreign = foreign or not is_mine
        if cpu not in own:
            if not is_mine:
                del notes[cpu]
                problem = "registers unknown: those in the dump are another kernel's"
                note_problem(inspector.problems, f"processor {cpu}: {problem}")
        elif why:
            note_problem(inspector.problems, f"processor {cpu}: {why}: the registers are those it saved in memory")
        elif desc[: len(own[cpu])] != own[cpu]:
            replaced.append(cpu)
    if replaced:
        which = ", ".join(map(str, replaced[:8])) + (" ..." if len(replaced) > 8 else "")
        text = f"registers of processor {which} are those that the kernel saved when it crashed"
        note_problem(inspector.problems, f"{text}; the dump has others, of another time")
    if foreign:
        _look_for_second_kernel(inspector)
    return SavedRegisters(notes | own, foreign)


def _of_dump(inspector: Inspector) -> dict[int, bytes]:
    """The dump's notes by processor.

    A kernel writes them in the order of the processors that are present, leaving out those that did not stop; when some
    are left out, the pid in the note tells whose it is.
    """
    notes, cpus, arch = prstatus_notes(inspector), inspector.cpus, inspector.kernel.arch
    if len(notes) == len(cpus):
        return dict(zip(cpus, notes, strict=True))
    if arch is None or not notes:
        return {}
    order = inspector.kernel.image.meta.byteorder
    by_pid: dict[int, list[bytes]] = {}
    for desc in notes:
        by_pid.setdefault(arch.prstatus.pid(desc, order), []).append(desc)
    found = {}
    for task in inspector.tasks:
        mine = by_pid.get(task.pid, ())
        if task.running and task.pid and task.cpu not in found and len(mine) == 1:
            found[task.cpu] = mine[0]
    return found


def _in_memory(inspector: Inspector) -> Iterator[tuple[int, bytes]]:
    """(processor, descriptor) of the notes that the kernel has written into its own memory."""
    kernel, arch = inspector.kernel, inspector.kernel.arch
    if arch is None or kernel.byteorder != kernel.image.meta.byteorder:
        return  # whoever reads a note takes it for one of the dump
    try:
        symbol = inspector.find_symbol("crash_notes")
        base = 0 if symbol is None else inspector.space.read_word(symbol)
    except DumpfsError:
        return  # no symbols, or not in the dump: the dump's notes are all there is
    if not base:
        return
    for cpu in inspector.cpus:
        try:
            raw = inspector.space.read(inspector.percpu(base, cpu), _NOTE_HEAD + arch.prstatus.descsz)
        except DumpfsError:
            continue  # likewise
        note = next(iter(parse_notes(raw, kernel.byteorder)), None)
        if note is None or (note.name, note.type) != (_CORE, NT_PRSTATUS) or arch.prstatus.why_torn(note.desc):
            continue  # zeros: the kernel has not crashed, or this processor never answered
        yield cpu, note.desc


def _look_for_second_kernel(inspector: Inspector) -> None:
    """Tell how to look at the capture kernel, which ran when the dump was taken, if its VMCOREINFO is in memory."""
    from dumpfs.linux.vmcoreinfo_scan import scan_memory

    image, space = inspector.kernel.image, inspector.space
    try:
        symbol = inspector.find_symbol("crashk_res")
        if symbol is None:
            return
        start, last = space.read_word(symbol), space.read_word(symbol + space.word_size)
    except DumpfsError:
        return  # where it would be is not known
    if not 0 < start < last < start + _MAX_RESERVED:
        return
    low = (start - image.meta.first_paddr) // image.meta.block_size
    runs = image.stored.runs(max(low, 0), max(low, 0) + -(-(last - start) // image.meta.block_size))
    found = next(scan_memory(image, runs=runs), None)
    if found is not None:
        get = f"dumpfs cat --offset {found.paddr:#x} --count {len(found.text)} DUMP hmem >FILE"
        text = f"a capture kernel was running: its VMCOREINFO is at physical {found.paddr:#x}; {get}"
        note_problem(inspector.problems, f"{text}, and -o vmcoreinfo=FILE shows that kernel")


def _why_torn(inspector: Inspector, desc: bytes) -> str:
    arch = inspector.kernel.arch
    return "" if arch is None else arch.prstatus.why_torn(desc)


def _is_in_kernel(inspector: Inspector, desc: bytes) -> bool:
    """Whether a processor was in this kernel's code, or in a program: whether its registers may be this kernel's."""
    kernel, arch = inspector.kernel, inspector.kernel.arch
    if arch is None:
        return True  # it tells nothing against it
    pc = arch.prstatus.parse_registers(desc, kernel.image.meta.byteorder)[arch.program_counter]
    if pc >> (8 * arch.word_size - 1) == 0:
        return True
    try:
        return inspector.code.is_text(pc)
    except DumpfsError:
        return True
