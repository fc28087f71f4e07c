"""What a vmlinux file says that VMCOREINFO would: symbols, and sizes and offsets of what the kernel log needs.

The answer is text in VMCOREINFO's own grammar with link addresses, so that everything else asks one thing only;
`relocate` moves it to where the kernel ran. Types come from the file's BTF, else from its DWARF.

Sources: Linux kernel/vmcore_info.c and kernel/printk (names), the ELF gABI (symbol records), DWARF 4 section 7.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from dumpfs.errors import DumpfsError, FormatError, SourceError, UnknownFormatError
from dumpfs.linux.btf import Btf
from dumpfs.linux.identity import read_identity
from dumpfs.linux.types import Member, MissingTypeError
from dumpfs.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.elf.elffile import ELFFile

_SYMBOLS = (
    "init_uts_ns",
    "swapper_pg_dir",
    "init_top_pgt",
    "init_level4_pgt",
    "_stext",
    "_text",
    "prb",
    "printk_rb_static",
    "clear_seq",
    "log_buf",
    "log_buf_len",
    "log_first_idx",
    "log_next_idx",
    "clear_idx",
    "log_end",
    "logged_chars",
    "kallsyms_names",
    "kallsyms_num_syms",
    "kallsyms_token_table",
    "kallsyms_token_index",
    "kallsyms_offsets",
    "kallsyms_relative_base",
    "page_offset_base",
)

_TYPES = {
    "uts_namespace": ("name",),
    "printk_ringbuffer": ("desc_ring", "text_data_ring", "fail"),
    "prb_desc_ring": ("count_bits", "descs", "infos", "head_id", "tail_id"),
    "prb_desc": ("state_var", "text_blk_lpos"),
    "prb_data_blk_lpos": ("begin", "next"),
    "printk_info": ("seq", "ts_nsec", "text_len", "caller_id", "dev_info"),
    "dev_printk_info": ("subsystem", "device"),
    "prb_data_ring": ("size_bits", "data", "head_lpos", "tail_lpos"),
    "atomic_long_t": ("counter",),
    "latched_seq": ("val",),
    "printk_log": ("ts_nsec", "len", "text_len", "dict_len", "caller_id"),
    "log": ("ts_nsec", "len", "text_len", "dict_len"),
}
"""Types and members that VMCOREINFO tells for the log; `log` is printk_log before 3.11."""

_LENGTHS = {
    "printk_info_subsystem": ("dev_printk_info", "subsystem"),
    "printk_info_device": ("dev_printk_info", "device"),
}
_UNITS = ("kernel/printk/printk.c", "kernel/printk.c", "kernel/printk/printk_ringbuffer.c", "init/version.c")
"""Compilation units whose DWARF is read: together they know all of `_TYPES`."""
_MAX_UNITS = 4096
"""Units imported by one, directly or not."""
_MAX_SECTION = 256 << 20
"""Bytes of a symbol table, its names, or BTF."""
_SYMBOL_LINE = re.compile(rb"^(SYMBOL\([^)\n]*\))=([0-9a-fA-F]+)$", re.MULTILINE)
_LOG_KEYS = ("SYMBOL(prb)", "SYMBOL(log_buf)")
_T = TypeVar("_T")


class _Types(Protocol):
    """Where sizes and offsets come from."""

    def type_size(self, name: str) -> int | None: ...

    def offset(self, name: str, member: str) -> int | None: ...

    def length(self, name: str, member: str) -> int | None: ...


def has_log(info: Vmcoreinfo) -> bool:
    """Whether VMCOREINFO says where the kernel log is."""
    return any(key in info for key in _LOG_KEYS)


def relocate(text: bytes, offset: int) -> bytes:
    """VMCOREINFO text made from link addresses, with every symbol moved by `offset` bytes and KERNELOFFSET added."""
    moved = _SYMBOL_LINE.sub(lambda m: b"%s=%x" % (m[1], (int(m[2], 16) + offset) & (1 << 64) - 1), text)
    return moved.rstrip(b"\0\n") + b"\nKERNELOFFSET=%x\n" % offset


def read_vmlinux(path: str) -> bytes:
    """VMCOREINFO text of a vmlinux file: link addresses, no KERNELOFFSET.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is not an ELF file with symbols and types.
    """
    from elftools.common.exceptions import DWARFError, ELFError
    from elftools.elf.elffile import ELFFile

    identity = read_identity(path)
    try:
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            symbols = dict(_read_symbols(path, stream, elf))
            types = _open_types(path, stream, elf)
            lines = [f"OSRELEASE={identity.release}"] if identity.release else []
            lines += [f"BUILD-ID={identity.build_id}"] if identity.build_id else []
            lines += [f"SYMBOL({name})={value:x}" for name, value in symbols.items()]
            lines += _type_lines(types)
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
    except DumpfsError:
        raise
    except (
        ELFError,
        DWARFError,
        struct.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as exc:
        # pyelftools trusts headers and fails in any of these ways on a broken file.
        raise FormatError(path, f"broken ELF file ({exc})") from exc
    return ("\n".join(lines) + "\n").encode()


def _type_lines(types: _Types) -> Iterator[str]:
    ring = types.type_size("printk_ringbuffer") is not None
    for name, members in _TYPES.items():
        if name == "log" and (ring or types.type_size("printk_log") is not None):
            continue  # another type of that name
        size = types.type_size(name)
        if size is None:
            continue
        yield f"SIZE({name})={size}"
        for member in members:
            offset = types.offset(name, member)
            if offset is not None:
                yield f"OFFSET({name}.{member})={offset}"
    for name, (parent, member) in _LENGTHS.items():
        length = types.length(parent, member)
        if length is not None:
            yield f"LENGTH({name})={length}"


def _section(path: str, stream: BinaryIO, elf: ELFFile, name: str) -> bytes | None:
    section = elf.get_section_by_name(name)
    if section is None or section["sh_type"] == "SHT_NOBITS":
        return None
    if section["sh_size"] > _MAX_SECTION:
        raise FormatError(path, f"section {name} has {section['sh_size']} bytes, too many for a vmlinux")
    stream.seek(section["sh_offset"])
    return stream.read(section["sh_size"])


def _read_symbols(path: str, stream: BinaryIO, elf: ELFFile) -> Iterator[tuple[str, int]]:
    """(name, value) of the wanted symbols.

    The table is read in bulk: an object for each of some hundred thousand symbols would take seconds.
    """
    table = _section(path, stream, elf, ".symtab")
    names = _section(path, stream, elf, ".strtab")
    if table is None or names is None:
        raise UnknownFormatError(path, "has no symbol table", hint="the vmlinux of a kernel's debug package has one")
    prefix = "<" if elf.little_endian else ">"
    wide = elf.elfclass == 64
    record = struct.Struct(prefix + ("IBBHQQ" if wide else "IIIBBH"))
    wanted: dict[int, str] = {}
    for name in _SYMBOLS:
        text = name.encode() + b"\0"
        at = names.find(text)
        while at >= 0:  # a linker may keep a name as the tail of a longer one
            wanted[at] = name
            at = names.find(text, at + 1)
    for values in record.iter_unpack(table[: len(table) - len(table) % record.size]):
        if values[0] in wanted and values[3 if wide else 5]:  # st_shndx: defined
            yield wanted[values[0]], values[4 if wide else 1]


def _open_types(path: str, stream: BinaryIO, elf: ELFFile) -> _Types:
    btf = _section(path, stream, elf, ".BTF")
    if btf:
        return _BtfTypes(Btf(btf, elf.elfclass // 8, f"BTF of {path}"))
    if elf.has_dwarf_info():
        return _DwarfTypes(elf)
    raise UnknownFormatError(path, "has neither BTF nor DWARF", hint="the vmlinux of a kernel's debug package has them")


class _BtfTypes:
    def __init__(self, btf: Btf) -> None:
        self._btf = btf

    def type_size(self, name: str) -> int | None:
        try:
            return self._btf.size(name)
        except MissingTypeError:
            return None

    def _member(self, name: str, member: str) -> Member | None:
        try:
            return self._btf.member(name, member)
        except MissingTypeError:
            return None

    def offset(self, name: str, member: str) -> int | None:
        found = self._member(name, member)
        return None if found is None else found.offset

    def length(self, name: str, member: str) -> int | None:
        found = self._member(name, member)
        return None if found is None else found.length


class _DwarfTypes:
    """The structs and typedefs of the few units that matter."""

    def __init__(self, elf: ELFFile) -> None:
        self._dies: dict[str, DIE] = {}
        for unit in elf.get_dwarf_info().iter_CUs():
            if _attribute(unit.get_top_DIE(), "DW_AT_name", _text).endswith(_UNITS):
                self._collect(unit)

    def _collect(self, unit: CompileUnit) -> None:
        """Structs and typedefs of a unit; dwz moves those of several units into units that these import."""
        tops = [unit.get_top_DIE()]
        seen: set[int] = set()
        while tops and len(seen) < _MAX_UNITS:
            top = tops.pop()
            if top.offset in seen:
                continue
            seen.add(top.offset)
            for die in top.iter_children():
                if die.tag == "DW_TAG_imported_unit":
                    tops.append(die.get_DIE_from_attribute("DW_AT_import"))
                elif die.tag in ("DW_TAG_structure_type", "DW_TAG_typedef"):
                    name = _attribute(die, "DW_AT_name", _text)
                    if name in _TYPES and "DW_AT_declaration" not in die.attributes:
                        self._dies.setdefault(name, die)

    def _struct(self, name: str) -> DIE | None:
        die = self._dies.get(name)
        return None if die is None else _strip(die)

    def type_size(self, name: str) -> int | None:
        die = self._struct(name)
        return None if die is None else _attribute(die, "DW_AT_byte_size", _number) or None

    def _member(self, name: str, member: str) -> DIE | None:
        die = self._struct(name)
        if die is None:
            return None
        return next((m for m in die.iter_children() if _attribute(m, "DW_AT_name", _text) == member), None)

    def offset(self, name: str, member: str) -> int | None:
        die = self._member(name, member)
        return None if die is None else _attribute(die, "DW_AT_data_member_location", _number)

    def length(self, name: str, member: str) -> int | None:
        die = self._member(name, member)
        array = None if die is None else _strip(die.get_DIE_from_attribute("DW_AT_type"))
        if array is None or array.tag != "DW_TAG_array_type":
            return None
        for bound in array.iter_children():
            if "DW_AT_upper_bound" in bound.attributes:
                return _attribute(bound, "DW_AT_upper_bound", _number) + 1
        return None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _attribute(die: DIE, name: str, convert: Callable[[object], _T]) -> _T:
    attribute = die.attributes.get(name)
    return convert(attribute.value if attribute is not None else None)


def _strip(die: DIE) -> DIE:
    """The type behind typedefs and qualifiers."""
    for _ in range(16):
        if die.tag not in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
            break
        if "DW_AT_type" not in die.attributes:
            break
        die = die.get_DIE_from_attribute("DW_AT_type")
    return die
