"""Page frame numbers, page states and sizes: the words everything else speaks in, and how they are shown."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TypeAlias

Pfn: TypeAlias = int
"""Page frame number: physical address divided by the page size (inside an image: by `meta.block_size`)."""

MIN_PAGE_SIZE = 0x1000
MAX_PAGE_SIZE = 0x40000
"""The largest kernel page, 256 KiB (hexagon, ppc44x)."""


class PageState(IntEnum):
    """What a dump knows about one page. Facts only; what a reader gets is `HolePolicy`'s decision."""

    STORED = 0
    """Content present, compressed or raw."""
    EXCLUDED = 1
    """RAM, left out on purpose by the dump level."""
    ABSENT = 2
    """Not RAM."""
    LOST = 3
    """Should be in the file, but the dump is incomplete, cut short, or a part of a split set is missing."""
    CORRUPT = 4
    """Its descriptor or its compressed data is invalid."""
    PARTIAL = 5
    """Content present, but RAM begins or ends inside the page; the rest of it reads as zeros."""


READABLE = frozenset((PageState.STORED, PageState.PARTIAL))
"""States whose content can be handed out."""

_ZEROS = b"\0" * (1 << 20)
"""The largest answer to a read that the kernel asks for."""

_ODD = re.compile(rb"[^\x20-\x7e\n\t]")
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x34F, 0x34F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2800, 0x2800),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)
"""Letters and marks that show nothing, which Python calls printable: Unicode's Default_Ignorable_Code_Point among them,
and the empty pattern of Braille."""

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def zeros(size: int) -> bytes:
    """`size` zero bytes to answer with.

    `bytes(size)` may have no memory before somebody looks at it. When that is the kernel, which copies the answer of a
    process that was just killed, it gives the process no memory any more, and the reader EIO.

    Raises:
        ValueError: `size` is negative.
    """
    if size < 0:
        raise ValueError(f"{size} zero bytes")
    if size == len(_ZEROS):
        return _ZEROS
    return _ZEROS[:size] if size < len(_ZEROS) else b"\0" * size


def parse_size(text: str) -> int:
    """Bytes named by `text`: a number with an optional K, M, G or T (powers of 1024).

    Raises:
        ValueError: `text` is not such a number.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number with K, M, G or T behind it")
    return int(match[1]) * _SUFFIXES[match[2].upper()]


def one_line(text: str) -> str:
    """`text` for one line of a terminal, a log or a text file, when a dead kernel, a path or an option says it.

    What could act on a terminal, forge a line or hide is escaped: control characters (line breaks and tabs among them),
    overrides of the writing direction, characters of no width or of no meaning, and bytes that are not UTF-8, as
    `os.fsdecode` keeps them, which become \\xNN again. The rest stays as it is, backslashes too, so nobody can tell
    the way back.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def text_lines(data: bytes) -> bytes:
    """UTF-8 text of any number of lines, escaped as `one_line` does but for line feeds and tabs."""
    if not _ODD.search(data):
        return data
    text = data.decode("utf-8", "surrogateescape")
    return "".join(c if c in "\n\t" else _shown(c) for c in text).encode()


def text_line(data: bytes) -> bytes:
    """One line of a text file with its line feed, escaped as `one_line` does; line feeds at its end do not count."""
    return one_line(data.rstrip(b"\n").decode("utf-8", "surrogateescape")).encode() + b"\n"


def _shown(char: str) -> str:
    if char.isprintable() and char not in _INVISIBLE:
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1]


def one_word(text: str) -> str:
    """`text` as `one_line` has it, without spaces: a name that stands among others in a line."""
    return one_line(text).replace(" ", "\\x20")


def render_size(nbytes: int) -> str:
    """`nbytes` for a person: '512 B', '1.5 GiB'."""
    if nbytes < 1 << 10:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}"
