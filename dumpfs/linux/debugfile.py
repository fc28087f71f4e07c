"""Symbols and types from a vmlinux file, for kernels that do not carry their own.

Symbols are read in bulk and moved to where the kernel ran; types come from the file's BTF, else from its DWARF.

Sources: the ELF gABI (symbols, section flags), nm's manual (letters of types).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from dumpfs.errors import DumpfsError, FormatError, SourceError, UnknownFormatError
from dumpfs.linux.btf import MAX_BTF, Btf
from dumpfs.linux.dwarf import DwarfTypes
from dumpfs.linux.kallsyms import Kallsyms
from dumpfs.linux.types import TypeInfo

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

_SHN_UNDEF, _SHN_ABS, _SHN_LORESERVE = 0, 0xFFF1, 0xFF00
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_SHT_NOBITS = 8
_STB_GLOBAL, _STB_WEAK = 1, 2
_STT_OBJECT, _STT_SECTION, _STT_FILE = 1, 3, 4
_MAX_STRINGS = 256 << 20
_MAX_SYMBOLS = 4_000_000
_MAX_SECTIONS = 1 << 16
_T = TypeVar("_T")


class DebugFile:
    """A vmlinux, opened at once and read when asked for: by then it may be hidden below a mount.

    Args:
        path: the file.

    Raises:
        SourceError: it cannot be opened.
        UnknownFormatError: it is not an ELF file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._raw = _PositionedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            raise SourceError(path, exc.strerror or str(exc)) from exc
        if self._open().read(4) != b"\x7fELF":
            raise UnknownFormatError(path, "is not an ELF file")

    def _open(self) -> BinaryIO:
        """A reader with a position of its own."""
        return BufferedReader(_PositionedFile(self._raw.descriptor, self._raw), 1 << 16)

    def read_symbols(self, kaslr_offset: int) -> Kallsyms:
        """The symbols, at the addresses where the kernel ran.

        Args:
            kaslr_offset: how far that is from the link addresses, bytes.

        Raises:
            SourceError, FormatError: it cannot be read, or is not a file with symbols.
        """
        return self._guarded(lambda stream, elf: _read_symbols(self.path, stream, elf, kaslr_offset))

    def read_types(self, word_size: int) -> TypeInfo:
        """Its types, from BTF or else DWARF; errors as `read_symbols`."""

        def read(stream: BinaryIO, elf: ELFFile) -> TypeInfo:
            section = elf.get_section_by_name(".BTF")
            if section is not None and 0 < section["sh_size"] <= MAX_BTF:
                stream.seek(section["sh_offset"])
                return Btf(stream.read(section["sh_size"]), word_size, f"BTF of {self.path}")
            return DwarfTypes(self.path, elf)

        return self._guarded(read)

    def _guarded(self, work: Callable[[BinaryIO, ELFFile], _T]) -> _T:
        from elftools.common.exceptions import DWARFError, ELFError
        from elftools.elf.elffile import ELFFile

        stream = self._open()
        try:
            return work(stream, ELFFile(stream))
        except OSError as exc:
            raise SourceError(self.path, exc.strerror or str(exc)) from exc
        except DumpfsError:
            raise
        except (ELFError, DWARFError, struct.error, ValueError, LookupError, TypeError, AttributeError) as exc:
            # pyelftools trusts headers and fails in any of these ways on a broken file.
            raise FormatError(self.path, f"broken ELF file ({exc})") from exc


class _PositionedFile(RawIOBase):
    """A file whose position is ours alone: processes forked later share descriptors and their positions.

    Args:
        descriptor: open for reading.
        owner: the object that will close the descriptor; without one, this does.
    """

    def __init__(self, descriptor: int, owner: _PositionedFile | None = None) -> None:
        self.descriptor = descriptor
        self._owner = owner
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._position, os.fstat(self.descriptor).st_size)[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # any writable buffer; 3.11 has no name for it
        count = os.preadv(self.descriptor, [buffer], self._position)
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed and self._owner is None:
            os.close(self.descriptor)
        super().close()


def _read_symbols(path: str, stream: BinaryIO, elf: ELFFile, shift: int) -> Kallsyms:
    table, strings = elf.get_section_by_name(".symtab"), elf.get_section_by_name(".strtab")
    if table is None or strings is None:
        raise UnknownFormatError(path, "has no symbols", hint="the vmlinux of a kernel's debug package has them")
    wide = elf.elfclass == 64
    record = struct.Struct(("<" if elf.little_endian else ">") + ("IBBHQQ" if wide else "IIIBBH"))
    if table["sh_size"] > _MAX_SYMBOLS * record.size or strings["sh_size"] > _MAX_STRINGS:
        raise FormatError(path, "too many symbols for a kernel")
    stream.seek(table["sh_offset"])
    data = stream.read(table["sh_size"])
    stream.seek(strings["sh_offset"])
    names = stream.read(strings["sh_size"])
    letters = _section_letters(elf)
    rows = []
    for values in record.iter_unpack(data[: len(data) - len(data) % record.size]):
        if wide:
            name_at, info, _, section, value, _ = values
        else:
            name_at, value, _, info, _, section = values
        letter, relocates = letters.get(section, ("", False))
        if not letter or info & 0xF in (_STT_SECTION, _STT_FILE):
            continue
        name = names[name_at : names.find(b"\0", name_at)].decode("utf-8", "surrogateescape")
        if not name or "\n" in name:
            continue
        binding = info >> 4
        if binding == _STB_WEAK:
            letter = "V" if info & 0xF == _STT_OBJECT else "W"
        elif binding == _STB_GLOBAL:
            letter = letter.upper()
        rows.append(((value + shift if relocates else value) & (1 << 64) - 1, letter, name))
    rows.sort(key=lambda row: row[0])
    return Kallsyms(
        array("Q", [row[0] for row in rows]),
        [row[2] for row in rows],
        "".join([row[1] for row in rows]),
        f"symbols of {path}",
    )


def _section_letters(elf: ELFFile) -> dict[int, tuple[str, bool]]:
    """Section number to nm's letter, and whether its addresses move with the kernel."""
    letters: dict[int, tuple[str, bool]] = {_SHN_ABS: ("a", False)}
    for number in range(min(elf.num_sections(), _MAX_SECTIONS)):
        header = elf.get_section(number).header
        flags = header["sh_flags"]
        if not number or number >= _SHN_LORESERVE or not flags & _SHF_ALLOC:
            continue
        if not header["sh_addr"]:
            letters[number] = ("A", False)  # per-CPU variables are linked at 0
        elif flags & _SHF_EXECINSTR:
            letters[number] = ("t", True)
        elif header["sh_type"] in ("SHT_NOBITS", _SHT_NOBITS):
            letters[number] = ("b", True)
        else:
            letters[number] = ("d" if flags & _SHF_WRITE else "r", True)
    return letters
