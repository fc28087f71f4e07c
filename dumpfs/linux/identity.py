"""Whether a vmlinux file is the one that a dumped kernel was started from.

The build-id settles it: a hash in a note that the linker puts into vmlinux and that the running kernel maps. A dump
tells it in VMCOREINFO since 5.9, but some stable kernels print garbage there (drgn lists 6.11.3 to 6.11.9, 6.6.55 to
62, 6.1.113 to 118 and others), so a mismatch is checked against the note in the dump's own memory, which also serves
older kernels. Where neither can be had, the banner ("Linux version ...", with compiler and build time) decides, and
last the release, which can only say no.

Sources: the ELF gABI and ld's manual (NT_GNU_BUILD_ID), Linux init/version.c (linux_banner).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from dumpfs.errors import DumpfsError, FormatError, SourceError, UnknownFormatError
from dumpfs.notes import parse_notes
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import Section

NT_GNU_BUILD_ID = 3
_GNU = b"GNU"
_BANNER = b"Linux version "
_MAX_BANNER = 1024
"""Bytes; real ones have some 200."""
_MAX_BANNERS = 8
_MAX_SECTIONS = 8192
"""A vmlinux has under 100; one built with -ffunction-sections and not linked yet is no vmlinux."""
_MAX_NOTES = 1 << 16
"""Bytes of a note section; real ones have some hundred."""
_SCAN_BYTES = 1 << 20
_MAX_RODATA = 256 << 20
"""Bytes searched for the banner."""

_VERDICTS = {
    True: "is this kernel's vmlinux",
    False: "is not this kernel's vmlinux",
    None: "may or may not be this kernel's vmlinux",
}

ReadMemory = Callable[[int, int], bytes]
"""`read(vaddr, size)` of the dump's kernel memory, at the address it ran at; raises DumpfsError."""


@dataclass(frozen=True, slots=True)
class VmlinuxIdentity:
    """What a vmlinux file says of itself."""

    path: str
    byteorder: ByteOrder
    build_id: str
    """Lower-case hex, or '' when it was linked without one."""
    build_id_vaddr: int
    """Link address of the build-id's bytes; 0 when unknown."""
    banners: tuple[str, ...]
    """linux_banner without its newline; since 6.1 also the linker's weak one, which lacks number and time of the
    build. Empty when not found (a separate debug file has no .rodata)."""

    @property
    def banner(self) -> str:
        """The most telling banner, or ''."""
        return max(self.banners, key=len, default="")

    @property
    def release(self) -> str:
        """The third word of the banner, or ''."""
        words = self.banner.split(" ", 3)
        return words[2] if len(words) > 2 else ""


@dataclass(frozen=True, slots=True)
class KernelMatch:
    """The answer to "is it this kernel's vmlinux?"."""

    matches: bool | None
    """None when the dump and the file have nothing in common to compare."""
    method: str
    """'build-id', 'banner', 'release' or ''."""
    sentence: str
    """The answer for a person."""
    vmlinux_build_id: str
    dump_build_id: str
    """Of the dumped kernel, or ''."""


def read_identity(path: str) -> VmlinuxIdentity:
    """Read build-id and banner of a vmlinux, or of its separate debug file.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is not an ELF file, or a broken one.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as stream:
            if stream.read(4) != b"\x7fELF":
                raise UnknownFormatError(
                    path,
                    "is not an ELF file",
                    hint="vmlinux is wanted, not the compressed vmlinuz of /boot; it comes with the debug package",
                )
            return _read(path, stream, ELFFile(stream))
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
    except (ELFError, struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError) as exc:
        # pyelftools trusts headers and fails in any of these ways on a broken one.
        raise FormatError(path, f"broken ELF file ({exc})") from exc


def _read(path: str, stream: BinaryIO, elf: ELFFile) -> VmlinuxIdentity:
    byteorder: ByteOrder = "little" if elf.little_endian else "big"
    if elf.num_sections() > _MAX_SECTIONS:
        raise FormatError(path, f"{elf.num_sections()} sections are too many for a vmlinux")
    build_id, vaddr = "", 0
    banners: list[str] = []
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_NOTE" and not build_id:
            build_id, vaddr = _find_build_id(stream, section, byteorder)
        elif section.name == ".rodata" and section["sh_type"] == "SHT_PROGBITS":
            banners = _find_banners(stream, section)
    return VmlinuxIdentity(path, byteorder, build_id, vaddr, tuple(banners))


def _find_build_id(stream: BinaryIO, section: Section, byteorder: ByteOrder) -> tuple[str, int]:
    stream.seek(section["sh_offset"])
    image = stream.read(min(section["sh_size"], _MAX_NOTES))
    for note in parse_notes(image, byteorder):
        if note.name == _GNU and note.type == NT_GNU_BUILD_ID and note.desc:
            address = section["sh_addr"]
            return note.desc.hex(), address + note.desc_offset if address else 0
    return "", 0


def _find_banners(stream: BinaryIO, section: Section) -> list[str]:
    """The texts of .rodata that begin as the banner does and go on with a release and a parenthesis.

    init/version.c has `linux_proc_banner` too, a format with %s in the release's place.
    """
    found: list[str] = []
    start, size = section["sh_offset"], min(section["sh_size"], _MAX_RODATA)
    for position in range(0, size, _SCAN_BYTES):
        stream.seek(start + position)
        data = stream.read(min(_SCAN_BYTES + _MAX_BANNER, size - position))
        at = data.find(_BANNER)
        while 0 <= at < _SCAN_BYTES and len(found) < _MAX_BANNERS:
            text = data[at : at + _MAX_BANNER].split(b"\0", 1)[0]
            if text[len(_BANNER) : len(_BANNER) + 1].isdigit() and b" (" in text:
                found.append(text.rstrip(b"\n").decode("utf-8", "replace"))
            at = data.find(_BANNER, at + 1)
        if len(data) < _SCAN_BYTES:
            break
    return found


def read_running_build_id(identity: VmlinuxIdentity, kaslr_offset: int, read: ReadMemory) -> str:
    """The build-id in the dump's memory where `identity` would have it, in hex; '' when there is none.

    The note's header must stand before it: memory of another kernel holds anything at that address.
    """
    size = len(identity.build_id) // 2
    if not identity.build_id_vaddr or not size:
        return ""
    header = 12 + 4  # of a note whose owner is "GNU" and its NUL
    try:
        note = read(identity.build_id_vaddr + kaslr_offset - header, header + size)
    except DumpfsError:
        return ""
    found = next(iter(parse_notes(note, identity.byteorder)), None)
    if found is None or found.name != _GNU or found.type != NT_GNU_BUILD_ID:
        return ""
    return found.desc.hex()


def match_kernel(
    identity: VmlinuxIdentity, vmcoreinfo: Vmcoreinfo | None, running_build_id: str, dump_banner: str
) -> KernelMatch:
    """Compare a vmlinux with a dump.

    Args:
        identity: the file.
        vmcoreinfo: the dump's, or None.
        running_build_id: what `read_running_build_id` found, or ''.
        dump_banner: linux_banner as the dump has it, or ''.
    """
    told = vmcoreinfo.build_id if vmcoreinfo is not None else ""
    release = vmcoreinfo.release if vmcoreinfo is not None else ""
    mine = identity.build_id

    def answer(matches: bool | None, method: str, why: str, dump_id: str = "") -> KernelMatch:
        verdict = _VERDICTS[matches]
        return KernelMatch(matches, method, f"{identity.path} {verdict}: {why}", mine, dump_id or told)

    if mine and mine == told:
        return answer(True, "build-id", f"both have build-id {mine}")
    if mine and running_build_id:
        if mine == running_build_id:
            return answer(True, "build-id", f"build-id {mine} is in the dump's memory", mine)
        why = f"its build-id is {mine}, the one in the dump's memory is {running_build_id}"
        return answer(False, "build-id", why, running_build_id)
    banner = dump_banner.rstrip("\n")
    same = banner in identity.banners
    if mine and told and not same:
        return answer(False, "build-id", f"its build-id is {mine}, the dump's is {told}")
    if banner and identity.banner:
        why = f'both say "{banner}"' if same else f'it says "{identity.banner}", the dump "{banner}"'
        return answer(same, "banner", why)
    if release and identity.release and release != identity.release:
        return answer(False, "release", f"it is {identity.release}, the dump is of {release}")
    if release and release == identity.release:
        return answer(None, "release", f"both are {release}, but the dump has no build-id to compare")
    return answer(None, "", "the dump and the file have nothing in common to compare")
