"""Files that are not dumps we read: what each is, and what to do about it, in one sentence.

Sources of the signatures: crash (diskdump.h, vmware_vmss.h, s390_dump.c, qemu.c), libkdumpfile (sadump.c, lkcd.c),
AVML's image.rs, libvirt's save image header, the Xen save format, the qcow2 specification, the kernel's x86 boot
protocol, and file(1) for archives.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from dumpfs.errors import FormatError, UnknownFormatError, UnsupportedFeatureError

HEAD_SIZE = 0x1008
"""Bytes from the beginning of a file that recognition needs."""

_RAW_HINT = "-o format=raw for a flat image of physical memory"
_TO_ELF = "convert it to an ELF dump first"
_SHOWN_BYTES = 16


class Foreign(NamedTuple):
    """One kind of file that is recognised and refused."""

    magic: bytes
    what: str
    """Completes 'FILE is ...'."""
    hint: str
    offset: int = 0
    """Where the magic is."""


_CRASH = "crash opens it; " + _TO_ELF
_DUMP_CORE = "dump the guest with xl dump-core, and open that with crash"
_HIBERNATED = "resume the machine from it and dump that; the image is compressed and in no order"
_UNPACK_APPORT = "apport-unpack {0} FOLDER, then name FOLDER/VmCore"
_DECRYPT = "decrypt it first: gpg -d -o DUMP FILE"
_VMWARE = "convert it with VMware's vmss2core, or crash opens it together with its .vmem file"
FOREIGN = (
    Foreign(b"DISKDUMP", "a dump of the old diskdump tool (RHEL 3 and 4)", _CRASH),
    Foreign(b"\xed\x23\x8f\x61\x73\x01\x19\xa8", "an LKCD dump", _CRASH),
    Foreign(b"\xa8\x19\x01\x73\x61\x8f\x23\xed", "an LKCD dump", _CRASH),
    Foreign(b"\xcd\x23\x8f\x61\x73\x01\x19\xa8", "an LKCD dump of a live system", _CRASH),
    Foreign(b"\xa8\x19\x01\x73\x61\x8f\x23\xcd", "an LKCD dump of a live system", _CRASH),
    Foreign(b"\xa8\x19\x01\x73\x61\x8f\x23\xfd", "an s390 stand-alone dump", "zgetdump -f elf DUMP > vmcore"),
    Foreign(b"\xa8\x19\x01\x73\x61\x8f\x23\xfe", "an s390 stand-alone dump", "zgetdump -f elf DUMP > vmcore"),
    Foreign(b"sadump\0\0", "a sadump dump", "makedumpfile -c -d 0 SADUMP dump makes a kdump of it"),
    Foreign(b"sadump\0\0", "a sadump media backup", "makedumpfile -c -d 0 SADUMP dump makes a kdump of it", 0x1000),
    Foreign(b"AVML\x02\0\0\0", "a compressed AVML image", "avml-convert --source-format avml --format lime IMAGE OUT"),
    Foreign(b"\xd2\xbe\xd2\xbe", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd2\xba\xd2\xbe", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd1\xba\xd1\xba", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd3\xbe\xd3\xbe", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd0\xbe\xd2\xbe", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd0\xbe\xd0\xbe", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"\xd2\xba\xd2\xba", "a VMware suspend or snapshot file", _VMWARE),
    Foreign(b"QEVM", "a QEMU savevm stream", "dump the guest with dump-guest-memory (virsh dump --memory-only)"),
    Foreign(b"LibvirtQemud", "a libvirt save image", "use virsh dump --memory-only instead of virsh save or dump"),
    Foreign(b"PAGEDU64", "a Windows crash dump", "WinDbg opens it"),
    Foreign(b"PAGEDUMP", "a Windows crash dump", "WinDbg opens it"),
    Foreign(b"PAGE", "a Windows crash dump", "WinDbg opens it"),
    Foreign(b"SDMPDUMP", "a Windows crash dump", "WinDbg opens it"),
    Foreign(b"MDMP", "a Windows minidump, of a process", "WinDbg opens it; it holds no memory of a kernel"),
    Foreign(b"ZDMP", "a compressed crash dump of DumpIt", "unpack it with Z2Dmp of the Comae toolkit"),
    Foreign(b"HPAK", "a memory image of HBGary's FastDump", "volatility opens it, and extracts the memory in it"),
    Foreign(b"LinuxGuestRecord", "a Xen save image", _DUMP_CORE),
    Foreign(b"Xen saved domain", "a Xen save image", _DUMP_CORE),
    Foreign(b"\xed\xeb\x0f\xf0", "an old Xen core dump", _CRASH),
    Foreign(b"\xee\xeb\x0f\xf0", "an old Xen core dump of an HVM guest", _CRASH),
    Foreign(b"\xf0\x0f\xeb\xed", "an old Xen core dump", _CRASH),
    Foreign(b"\xf0\x0f\xeb\xee", "an old Xen core dump of an HVM guest", _CRASH),
    Foreign(b"S1SUSPEND", "a swap partition that holds a hibernation image", _HIBERNATED, 0xFF6),
    Foreign(b"ULSUSPEND", "a swap partition that holds a hibernation image", _HIBERNATED, 0xFF6),
    Foreign(b"LINHIB0001", "a swap partition that holds a hibernation image", _HIBERNATED, 0xFF6),
    Foreign(b"SWAPSPACE2", "a swap partition or file", "a machine swaps there; its memory is not in it", 0xFF6),
    Foreign(b"SWAP-SPACE", "a swap partition or file", "a machine swaps there; its memory is not in it", 0xFF6),
    Foreign(b"vhdxfile", "a VHDX disk image", "it holds a disk, not memory"),
    Foreign(b"conectix", "a VHD disk image", "it holds a disk, not memory"),
    Foreign(b"KDMV", "a VMDK disk image", "it holds a disk, not memory"),
    Foreign(b"\x7f\x10\xda\xbe", "a VirtualBox disk image", "it holds a disk, not memory", 0x40),
    Foreign(b"-----BEGIN PGP MESSAGE", "encrypted with PGP", _DECRYPT),
    Foreign(b"Salted__", "encrypted with openssl", "decrypt it first: openssl enc -d"),
    Foreign(b"age-encryption.org/", "encrypted with age", "decrypt it first: age -d -o DUMP FILE"),
    Foreign(b"QFI\xfb", "a qcow2 disk image", "it holds a disk, not memory"),
    Foreign(b"HdrS", "a kernel image (bzImage)", "it holds the kernel, not a dump of it", 0x202),
)


class Archive(NamedTuple):
    """One kind of compressed file."""

    magic: bytes
    name: str
    suffix: str
    unpack: str
    """Command that unpacks FILE.gz to FILE and keeps it; the file name follows."""
    to_stdout: str
    """Command that writes to standard output, for files without the suffix; '' when it needs none."""
    offset: int = 0


ARCHIVES = (
    Archive(b"\x1f\x8b", "gzip", ".gz", "gzip -dk", "gzip -dc"),
    Archive(b"\xfd7zXZ\0", "xz", ".xz", "xz -dk", "xz -dc"),
    Archive(b"\x28\xb5\x2f\xfd", "zstd", ".zst", "zstd -d", "zstd -dc"),
    Archive(b"BZh", "bzip2", ".bz2", "bzip2 -dk", "bzip2 -dc"),
    Archive(b"\x89LZO\0\r\n\x1a\n", "lzop", ".lzo", "lzop -d", "lzop -dc"),
    Archive(b"\x04\x22\x4d\x18", "lz4", ".lz4", "lz4 -d", "lz4 -dc"),
    Archive(b"LZIP", "lzip", ".lz", "lzip -dk", "lzip -dc"),
    Archive(b"PK\x03\x04", "zip", ".zip", "unzip", ""),
    Archive(b"7z\xbc\xaf\x27\x1c", "7-Zip", ".7z", "7z x", ""),
    Archive(b"Rar!\x1a\x07", "RAR", ".rar", "unrar x", ""),
    Archive(b"ustar", "tar", ".tar", "tar -xf", "", 257),
)


_PGP_PACKETS = (0x84, 0x85, 0x8C, 0xC1, 0xC3)
"""First bytes of binary OpenPGP messages: session keys by public key (1) or passphrase (3), lengths old and new."""
_PGP_VERSIONS = (3, 4, 5, 6)


def _is_pgp(head: bytes) -> bool:
    """Whether it looks like a binary OpenPGP message (RFC 4880, 4.2 and 5.1): tag, a short length, a version."""
    if len(head) < 4 or head[0] not in _PGP_PACKETS:
        return False
    length_bytes = 2 if head[0] == 0x85 or (head[0] & 0x40 and head[1] >= 192) else 1
    return head[1 + length_bytes] in _PGP_VERSIONS


def _starts(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def unpack_command(archive: Archive, name: str) -> str:
    """The exact command to run on the file `name`."""
    if not archive.to_stdout or name.endswith(archive.suffix):
        return f"{archive.unpack} {shlex.quote(name)}"
    return f"{archive.to_stdout} {shlex.quote(name)} > {shlex.quote(name + '.unpacked')}"


def _sentence(foreign: Foreign) -> str:
    is_packed = foreign.what.startswith("encrypted")
    return f"is {foreign.what}" + ("" if is_packed else ", which dumpfs does not read")


def recognised(head: bytes, name: str) -> UnsupportedFeatureError | None:
    """Why a file of a known kind that begins with `head` is refused, or None when its kind is not known."""
    for foreign in FOREIGN:
        if _starts(head, foreign.offset, foreign.magic):
            return UnsupportedFeatureError(name, _sentence(foreign), hint=foreign.hint)
    if _is_pgp(head):
        return UnsupportedFeatureError(name, "seems to be encrypted with PGP", hint=_DECRYPT)
    for archive in ARCHIVES:
        if _starts(head, archive.offset, archive.magic):
            return UnsupportedFeatureError(
                name, f"is packed with {archive.name}", hint=f"unpack it first: {unpack_command(archive, name)}"
            )
    return None


def _is_text(head: bytes) -> bool:
    return not head.translate(None, bytes(range(0x20, 0x7F)) + b"\t\n\r\f\x1b")


def refusal(head: bytes, name: str) -> FormatError:
    """The error for a file that begins with `head` (`HEAD_SIZE` bytes, or all of it) and is no dump we read."""
    known = recognised(head, name)
    if known is not None:
        return known
    if not head:
        return UnknownFormatError(
            name, "is empty", hint="the dump was never written: look at the capture kernel's messages and disk space"
        )
    if not any(head):
        return UnknownFormatError(
            name,
            "begins with zeros: its header was never written, or it is no dump",
            hint=f"the copy may have failed; {_RAW_HINT}",
        )
    if head.startswith(b"ProblemType:"):
        hint = _UNPACK_APPORT.format(shlex.quote(name))
        return UnsupportedFeatureError(name, "is a report of apport, which has the dump packed in it", hint=hint)
    if _is_text(head):
        return UnknownFormatError(
            name, "is a text file, not a dump", hint="name the dump itself, for instance the vmcore beside it"
        )
    seen = head[:_SHOWN_BYTES].hex(" ")
    return UnknownFormatError(name, f"not recognised as a dump; it begins with {seen}", hint=_RAW_HINT)
