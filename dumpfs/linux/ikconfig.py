"""Texts that a kernel carries about itself: its configuration, command line and version.

Sources: Linux kernel/configs.c (IKCFG_ST, gzip data, IKCFG_ED), fs/proc/cmdline.c, fs/proc/version.c and
init/version.c.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from itertools import islice

from dumpfs.errors import CorruptDumpError, DumpfsError, ViewError
from dumpfs.linux.records import find_bytes, read_pieces
from dumpfs.memory.virtual import AddressSpace

MAX_CONFIG = 16 << 20
"""Bytes of a configuration; real ones have under 400,000."""
_MAX_PACKED = 4 << 20
_MAX_CMDLINE = 1 << 16
_MAX_BANNER = 4096
_MAX_BANNERS = 16
_START = b"IKCFG_ST"
_GZIP = b"\x1f\x8b\x08"


def read_config(space: AddressSpace, ranges: Iterable[tuple[int, int]], symbol: int | None) -> bytes:
    """The kernel's configuration, as /proc/config.gz unpacks.

    Args:
        space: kernel memory.
        ranges: (address, bytes) of the kernel image's parts, searched for the magic.
        symbol: address of `kernel_config_data`, when known: nothing is searched then.

    Raises:
        ViewError: it is not in the kernel.
        CorruptDumpError: it does not unpack.
    """
    where = symbol if symbol is not None else _find_magic(space, ranges)
    if where is None:
        raise ViewError("no configuration in the kernel image: built without CONFIG_IKCONFIG, or left out of the dump")
    return _unpack(space, where)


def _find_magic(space: AddressSpace, ranges: Iterable[tuple[int, int]]) -> int | None:
    """Address of the gzip data behind the magic. The magic alone may also be text of some program."""
    for start, size in ranges:
        for found in find_bytes(space, start, size, _START + _GZIP):
            return found + len(_START)
    return None


def _unpack(space: AddressSpace, vaddr: int) -> bytes:
    """Unpack gzip data of unknown length; the trailer's checksum is checked."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    out = b""
    try:
        for _, data in read_pieces(space, vaddr, _MAX_PACKED):
            out += unpacker.decompress(data, MAX_CONFIG - len(out) + 1)
            if unpacker.eof:
                return out
            if unpacker.unconsumed_tail:
                raise CorruptDumpError("config", f"more than {MAX_CONFIG} bytes")
    except zlib.error as exc:
        raise CorruptDumpError("config", f"does not unpack: {exc}") from exc
    raise CorruptDumpError("config", "the packed configuration has no end")


def read_cmdline(space: AddressSpace, saved_command_line: int) -> bytes:
    """The boot command line with a line feed, as /proc/cmdline has it.

    Args:
        space: kernel memory.
        saved_command_line: address of the symbol, a pointer (an array before 2.6.20).

    Raises:
        DumpfsError: it cannot be read.
    """
    pointer = space.read_word(saved_command_line)
    try:
        text = space.read_cstring(pointer, _MAX_CMDLINE)
    except DumpfsError:
        text = space.read_cstring(saved_command_line, _MAX_CMDLINE)
        if not text or any(not 0x20 <= byte < 0x7F for byte in text):
            raise
    return text + b"\n"


def read_version(space: AddressSpace, linux_banner: int) -> bytes:
    """The line of /proc/version.

    Raises:
        CorruptDumpError: there is none at the symbol.
        DumpfsError: it cannot be read.
    """
    text = space.read_cstring(linux_banner, _MAX_BANNER)
    if not text.startswith(b"Linux version "):
        raise CorruptDumpError("version", f"no banner at {linux_banner:#x}")
    return text.rstrip(b"\n") + b"\n"


def find_version(space: AddressSpace, ranges: Iterable[tuple[int, int]], release: str) -> bytes:
    """The line of /proc/version, searched for in the kernel image.

    The first with the build's number is it: the linker's weak one lacks that, and the log's buffer lies behind.

    Args:
        space: kernel memory.
        ranges: (address, bytes) of the kernel image's parts.
        release: `uname -r`; a banner of another release is some program's.

    Raises:
        ViewError: there is none.
    """
    best = b""
    if release:
        for start, size in ranges:
            for vaddr in islice(find_bytes(space, start, size, f"Linux version {release} (".encode()), _MAX_BANNERS):
                text = space.read_cstring(vaddr, _MAX_BANNER)
                if not text.endswith(b"\n") or text.count(b"\n") != 1 or not text.isascii():
                    continue
                if re.search(rb" #\d", text):
                    return text
                best = best or text
    if not best:
        raise ViewError("no banner of the kernel was found in its image")
    return best
