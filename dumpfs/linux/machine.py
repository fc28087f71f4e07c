"""Which machine and byte order a dumped kernel has, as opposed to what the dump's header says.

Sources: QEMU target/*/arch_dump.c (it writes "Unknown" as the machine for most, and marks little-endian ppc64 guests
big-endian), uname(2) names, Linux kernel/vmcore_info.c and its arch parts (keys that only one architecture has).
"""

from __future__ import annotations

from collections.abc import Iterable

from dumpfs.arch.base import ARCH_NAMES, Arch, arch_for
from dumpfs.formats.base import DumpMeta
from dumpfs.memory.physical import PhysMemory
from dumpfs.notes import NT_PRSTATUS, Note
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

_ALIASES = {
    "amd64": "x86_64",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
    "arm64": "aarch64",
    "aarch64_be": "aarch64",
    "ppc64el": "ppc64le",
    "powerpc64le": "ppc64le",
    "powerpc64": "ppc64",
}

_KEYS = {
    "NUMBER(kimage_voffset)": "aarch64",
    "NUMBER(KERNEL_IMAGE_SIZE)": "x86_64",
    "SYMBOL(init_top_pgt)": "x86_64",
    "SYMBOL(init_level4_pgt)": "x86_64",
    "NUMBER(phys_base)": "x86_64",
    "CONFIG_X86_PAE": "i686",
    "SYMBOL(lowcore_ptr)": "s390x",
    "NUMBER(va_kernel_pa_offset)": "riscv64",
    "SYMBOL(cur_cpu_spec)": "ppc64",
    "CONFIG_ARM_LPAE": "arm",
}

_PRSTATUS_SIZES = {336: "x86_64", 392: "aarch64", 148: "arm", 144: "i686", 504: "ppc64", 376: "riscv64"}


def normalize_machine(name: str) -> str:
    """`uname -m` as dumpfs spells it, or '' for a name it does not know ('Unknown', '')."""
    name = name.strip().lower()
    name = _ALIASES.get(name, name)
    if name.startswith("armv"):
        return "arm"
    return name if name in ARCH_NAMES else ""


def find_machine(meta: DumpMeta, notes: Iterable[Note], info: Vmcoreinfo | None) -> tuple[str, str]:
    """(machine, where it was found): the header, keys of VMCOREINFO, its release, or the size of register notes."""
    name = normalize_machine(meta.machine)
    if name:
        return name, "the dump header"
    if info is not None:
        for key, machine in _KEYS.items():
            if key in info:
                return machine, f"VMCOREINFO {key}"
        name = normalize_machine(info.release.rsplit("-", 1)[-1])
        if name:
            return name, "VMCOREINFO OSRELEASE"
    for note in notes:
        if note.type == NT_PRSTATUS and note.name == b"CORE" and len(note.desc) in _PRSTATUS_SIZES:
            name = _PRSTATUS_SIZES[len(note.desc)]
            if name == "x86_64" and meta.byteorder == "big":
                name = "s390x"  # whose note is as long
            return name, "the size of the NT_PRSTATUS notes"
    return "", ""


def find_byteorder(meta: DumpMeta, arch: Arch | None, phys: PhysMemory, info: Vmcoreinfo | None) -> ByteOrder:
    """The kernel's byte order."""
    if arch is None or arch.name in ("arm", "aarch64"):
        return meta.byteorder
    if arch.detect_byteorder is None:
        return arch.byteorder
    if arch.name.endswith("le") or (info is not None and info.release.endswith("le")):
        return "little"
    return arch.detect_byteorder(phys) or meta.byteorder


def settle_arch(arch: Arch | None, byteorder: ByteOrder) -> Arch | None:
    """`arch`, or its little-endian sister when the kernel turned out to be that."""
    if arch is not None and arch.name == "ppc64" and byteorder == "little":
        return arch_for("ppc64le")
    return arch


def find_page_size(meta: DumpMeta, arch: Arch | None, info: Vmcoreinfo | None) -> tuple[int, str]:
    """(bytes, where it was found).

    Only makedumpfile's header has the kernel's page size as its block size: QEMU writes the largest one that the
    processor may use, and other formats have no such field.
    """
    if info is not None and info.page_size:
        return info.page_size, "VMCOREINFO PAGESIZE"
    sizes = arch.page_sizes if arch is not None else (0x1000,)
    if meta.format == "kdump" and meta.block_size in sizes and "QEMU" not in meta.variant:
        return meta.block_size, "the dump header"
    return sizes[0], "the architecture's default"
