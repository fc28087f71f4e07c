"""VMCOREINFO: what the crashed kernel says of itself, as typed look-ups.

Source: Linux Documentation/admin-guide/kdump/vmcoreinfo.rst and kernel/vmcore_info.c (grammar and the base of each
value). Numbers are signed decimal in general, but some architectures print addresses as NUMBER() in hex.
"""

from __future__ import annotations

from collections.abc import Iterator

from dumpfs.errors import VmcoreinfoError

_U64 = (1 << 64) - 1
MAX_BYTES = 1 << 20
"""Bytes of text that are looked at; the kernel's own has one page, and 64 KiB on the largest-paged machines."""


class Vmcoreinfo:
    """The KEY=value lines; immutable.

    Args:
        text: the raw text; bytes from the first NUL on, or beyond `MAX_BYTES`, are ignored, malformed lines are
            skipped.
    """

    def __init__(self, text: bytes) -> None:
        self.raw = text[:MAX_BYTES].split(b"\0", 1)[0]
        """The text as the dump has it, up to the first NUL."""
        self._values: dict[str, str] = {}
        for line in self.raw.decode("utf-8", "replace").splitlines():
            key, separator, value = line.partition("=")
            if separator and key:
                self._values[key.strip()] = value.strip()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str) -> str | None:
        """The value of a raw key such as 'OSRELEASE' or 'SYMBOL(prb)', or None."""
        return self._values.get(key)

    def _integer(self, key: str, base: int) -> int | None:
        text = self._values.get(key)
        if text is None:
            return None
        for guess in (base, 16):
            try:
                value = int(text, guess)
            except ValueError:
                continue
            if -_U64 <= value <= _U64:
                return value
        raise VmcoreinfoError(key, f"{text[:40]!r} is not a 64-bit number")

    def symbol(self, name: str) -> int | None:
        """Runtime virtual address of a symbol, or None."""
        value = self._integer(f"SYMBOL({name})", 16)
        return None if value is None else value & _U64

    def type_size(self, name: str) -> int | None:
        """Bytes of a C type, or None."""
        return self._integer(f"SIZE({name})", 10)

    def offset(self, member: str) -> int | None:
        """Byte offset of 'struct.member', or None."""
        return self._integer(f"OFFSET({member})", 10)

    def length(self, name: str) -> int | None:
        """Elements of an array, or None."""
        return self._integer(f"LENGTH({name})", 10)

    def number(self, name: str) -> int | None:
        """NUMBER(name), signed as it was printed, or None."""
        return self._integer(f"NUMBER({name})", 10)

    def config(self, name: str) -> str | None:
        """CONFIG_name's value, or None."""
        return self._values.get(f"CONFIG_{name}")

    def need_symbol(self, name: str) -> int:
        """Like `symbol`.

        Raises:
            VmcoreinfoError: there is no such line; so for the other `need_` look-ups.
        """
        return _need(f"SYMBOL({name})", self.symbol(name))

    def need_size(self, name: str) -> int:
        """Like `type_size`, or VmcoreinfoError."""
        return _need(f"SIZE({name})", self.type_size(name))

    def need_offset(self, member: str) -> int:
        """Like `offset`, or VmcoreinfoError."""
        return _need(f"OFFSET({member})", self.offset(member))

    def need_number(self, name: str) -> int:
        """Like `number`, or VmcoreinfoError."""
        return _need(f"NUMBER({name})", self.number(name))

    @property
    def release(self) -> str:
        """OSRELEASE, or ''."""
        return self._values.get("OSRELEASE", "")

    @property
    def build_id(self) -> str:
        """BUILD-ID in lower-case hex when it looks like one (some stable kernels print garbage), or ''."""
        text = self._values.get("BUILD-ID", "").lower()
        good = len(text) >= 16 and len(text) % 2 == 0 and not text.strip("0123456789abcdef") and text.strip("0")
        return text if good else ""

    @property
    def page_size(self) -> int | None:
        """PAGESIZE in bytes, or None when missing or not a sane power of two."""
        size = self._integer("PAGESIZE", 10)
        return size if size and 0x400 <= size <= 0x40000 and not size & (size - 1) else None

    @property
    def crash_time(self) -> int | None:
        """CRASHTIME, seconds since the epoch, or None."""
        return self._integer("CRASHTIME", 10)

    @property
    def kaslr_offset(self) -> int | None:
        """KERNELOFFSET: displacement of the kernel text from its link address, or None."""
        return self._integer("KERNELOFFSET", 16)


def _need(key: str, value: int | None) -> int:
    if value is None:
        raise VmcoreinfoError(key)
    return value
