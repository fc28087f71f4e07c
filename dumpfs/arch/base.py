"""What dumpfs knows of a processor architecture, and the table of them.

An architecture tells how its registers lie in an NT_PRSTATUS note and, where it is complete, how its kernel lays out
virtual memory: `build_layout` turns what a dump says into linear maps and page tables. Modules are imported when their
architecture is picked.

Sources: dump-format notes of the Linux kernel (struct elf_prstatus), QEMU's target/*/arch_dump.c and crash for the
sizes and the order of registers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dumpfs.arch.walk import PageTables
from dumpfs.errors import AbsentPageError, PageError, TranslationError
from dumpfs.formats.base import DumpMeta
from dumpfs.memory.physical import PhysMemory
from dumpfs.memory.virtual import LinearMap
from dumpfs.notes import Note
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PrstatusLayout:
    """Where things are in the descriptor of an NT_PRSTATUS note."""

    descsz: int
    """Bytes of the whole descriptor."""
    pid_offset: int
    """Byte offset of pr_pid, an i32."""
    registers: tuple[tuple[str, int, int], ...]
    """(name, byte offset, bytes) of every register, in the note's order."""

    @property
    def registers_offset(self) -> int:
        """Byte offset of the first register."""
        return self.registers[0][1]

    def parse_registers(self, desc: bytes, byteorder: ByteOrder) -> dict[str, int]:
        """Register values of a descriptor; those beyond its end are left out."""
        return {
            name: int.from_bytes(desc[offset : offset + size], byteorder)
            for name, offset, size in self.registers
            if offset + size <= len(desc)
        }

    def why_torn(self, desc: bytes) -> str:
        """What is wrong with a descriptor that does not hold every register, or '' when it does.

        One that is torn, or laid out for another mode of the processor, tells nothing: part of a set of registers is no
        place to begin a stack at.
        """
        end = max(offset + size for _, offset, size in self.registers)
        return "" if len(desc) >= end else f"the NT_PRSTATUS note has {len(desc)} bytes of at least {end}"

    def pid(self, desc: bytes, byteorder: ByteOrder) -> int:
        """pr_pid of a descriptor; 0 when it is too short."""
        return int.from_bytes(desc[self.pid_offset : self.pid_offset + 4], byteorder, signed=True)


def prstatus_layout(descsz: int, word_size: int, names: str) -> PrstatusLayout:
    """A layout of `names` (space-separated), one word each, behind the common start of `struct elf_prstatus`.

    The start is siginfo (3 ints), cursig, sigpend, sighold, four pids and four timevals.
    """
    pid_offset, offset = (32, 112) if word_size == 8 else (24, 72)
    registers = []
    for name in names.split():
        registers.append((name, offset, word_size))
        offset += word_size
    return PrstatusLayout(descsz, pid_offset, tuple(registers))


@dataclass(frozen=True, slots=True)
class LayoutFacts:
    """What is known of a kernel before its memory layout is."""

    phys: PhysMemory
    """Physical memory, policy ERROR."""
    meta: DumpMeta
    notes: tuple[Note, ...]
    """The dump's notes (in the dump's byte order)."""
    info: Vmcoreinfo | None
    byteorder: ByteOrder
    """The kernel's."""
    page_size: int
    """The kernel's, in bytes."""
    phys_base: int | None = None
    """What the user says, or None."""
    kaslr: int | None = None
    """What the user says, or None."""
    root: tuple[int, int] | None = None
    """(physical address, levels) of a root table that a search found; see `Arch.find_root`."""


@dataclass(slots=True)
class KernelLayout:
    """Where a kernel has what in its virtual memory; unknown things stay None."""

    tables: PageTables | None = None
    linear: list[LinearMap] = field(default_factory=list)
    phys_base: int | None = None
    kaslr_offset: int | None = None
    page_offset: int | None = None
    """Virtual address of physical address 0 in the direct map (it may lie below the map's first page)."""
    text: tuple[int, int, int] | None = None
    """(vaddr, paddr, bytes) of the kernel image's own mapping, where that is not the direct map."""
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_refuted: bool = False
    """Whether memory contradicts every place that the kernel image might have been at: nothing is placed by guess."""

    def set(self, name: str, value: int, origin: str) -> None:
        """Set a fact and say where it came from."""
        setattr(self, name, value)
        self.origins[name] = origin


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture."""

    name: str
    """As `uname -m` has it."""
    word_size: int
    page_sizes: tuple[int, ...]
    """Page sizes its kernels come with, the usual one first; bytes."""
    prstatus: PrstatusLayout
    program_counter: str
    stack_pointer: str
    build_layout: Callable[[LayoutFacts], KernelLayout]
    """Finds the memory layout; never raises for what a dump holds, but says what is missing in `problems`."""
    byteorder: ByteOrder = "little"
    signed_char: bool = False
    """Whether C's plain `char` is signed there; it shows in how tools escape the kernel log."""
    find_kaslr: Callable[[LayoutFacts, Vmcoreinfo], int | None] | None = None
    """How far the kernel runs from the link addresses in a `Vmcoreinfo` that was made from a vmlinux, or None."""
    find_vmcoreinfo: Callable[[PhysMemory], tuple[bytes, str] | None] | None = None
    """VMCOREINFO (text, where it was) by a pointer at a fixed physical address."""
    find_root: Callable[[PhysMemory], tuple[int, int] | None] | None = None
    """(physical address, levels) of a root page table by a search of memory, which may take long."""
    detect_byteorder: Callable[[PhysMemory], ByteOrder | None] | None = None
    """For architectures of either order: what memory says."""


_MODULES: Mapping[str, str] = {
    "x86_64": "x86_64",
    "i686": "i686",
    "aarch64": "aarch64",
    "arm": "arm",
    "s390x": "s390x",
    "ppc64": "ppc64",
    "ppc64le": "ppc64",
    "riscv64": "riscv64",
    "loongarch64": "loongarch64",
}
"""Machine to module of this package; each has ARCHES, a mapping of the machines it serves."""

ARCH_NAMES = tuple(_MODULES)


def arch_for(machine: str) -> Arch | None:
    """The architecture of `uname -m` name `machine`, or None when dumpfs does not know it."""
    module = _MODULES.get(machine)
    if module is None:
        return None
    arches: Mapping[str, Arch] = importlib.import_module(f"dumpfs.arch.{module}").ARCHES
    return arches[machine]


def translates_to_itself(tables: PageTables, vaddr: int, paddr: int) -> bool | None:
    """Whether the tables map `vaddr` to `paddr`; None when a table is not in the dump.

    The address of the tables themselves is the usual choice: tables found at the wrong place do not map it back, and
    a table where there is no RAM is at the wrong place.
    """
    try:
        return tables.translate(vaddr)[0] == paddr
    except (TranslationError, AbsentPageError):
        return False
    except PageError:
        return None


def direct_map_samples(phys: PhysMemory, limit: int = 4) -> list[int]:
    """Physical addresses to test a direct map with: both ends of the first `limit` runs of RAM, bytes."""
    samples: list[int] = []
    for count, (first, stop) in enumerate(phys.ram.runs()):
        if count == limit:
            break
        samples += (first << phys.page_shift, (stop - 1) << phys.page_shift)
    return samples


def map_is_right(tables: PageTables, linear: LinearMap, paddrs: Iterable[int]) -> bool | None:
    """Whether page tables confirm a linear map at the given physical addresses.

    One address that the tables put elsewhere refutes it, and so does none being mapped at all (a guessed direct map
    that KASLR moved away). None when the tables that would tell are not in the dump.
    """
    confirmed = missing = False
    for paddr in paddrs:
        if not linear.paddr <= paddr < linear.paddr + linear.size:
            continue
        result = translates_to_itself(tables, linear.vaddr + paddr - linear.paddr, paddr)
        if result:
            confirmed = True
        elif result is None:
            missing = True
        else:
            try:
                tables.translate(linear.vaddr + paddr - linear.paddr)
            except (TranslationError, AbsentPageError):
                continue  # not mapped: a device's range, or the map is wrong altogether
            return False
    return True if confirmed else None if missing else False
