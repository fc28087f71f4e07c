"""Which of the texts that a dump offers is its kernel's VMCOREINFO, and how far it is to be believed.

Dumps come with blocks that are cut, empty, of another kernel, or counted wrongly by the header that points at them, and
every fact about the kernel's memory hangs on them. So each place that offers one is asked, whole lines only are facts,
and a text that is not whole, or that memory contradicts, is doubted: a search of memory may then find a better one.

Source: Linux kernel/vmcore_info.c (every kernel prints OSRELEASE first, then PAGESIZE, symbols and the keys of its log,
each line with its line feed).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dumpfs.errors import DumpfsError
from dumpfs.formats.base import DumpImage
from dumpfs.notes import Note, parse_notes
from dumpfs.vmcoreinfo import Vmcoreinfo

_LOG_KEYS = ("SYMBOL(prb)", "SYMBOL(log_buf)")
NO_LOG = "does not say where the log is"
"""The doubt that memory can lift."""
_NOTE_NAME = b"VMCOREINFO"


class Told(NamedTuple):
    """A text that a dump offers as VMCOREINFO."""

    text: bytes
    """Its whole lines."""
    origin: str
    doubt: str
    """Why it is not to be believed without a second look, as the end of a sentence that begins with "it"; or ''."""

    @property
    def info(self) -> Vmcoreinfo:
        """Its lines."""
        return Vmcoreinfo(self.text)


def judge_text(text: bytes, origin: str) -> Told:
    """What a text is worth by itself. A line without its line feed is no fact: it may have lost its last digits."""
    raw = Vmcoreinfo(text).raw
    lines = raw[: raw.rfind(b"\n") + 1]
    return Told(lines, origin, _doubt(Vmcoreinfo(lines), is_cut=len(lines) < len(raw)))


def _doubt(info: Vmcoreinfo, *, is_cut: bool) -> str:
    if is_cut:
        return "ends in the middle of a line"
    if not info.release:
        return "names no release"
    if "PAGESIZE" not in info or not any(key.startswith("SYMBOL(") for key in info):
        return "has neither page size nor symbols" if "PAGESIZE" not in info else "has no symbols"
    return "" if any(key in info for key in _LOG_KEYS) else NO_LOG


def read_notes(image: DumpImage, problems: list[str]) -> tuple[Note, ...]:
    """The notes of a dump; none, and a problem more, where they cannot be read."""
    try:
        return tuple(parse_notes(image.notes(), image.meta.byteorder))
    except DumpfsError as exc:
        problems.append(f"notes: {exc}")
        return ()


def offered(image: DumpImage, notes: Iterable[Note]) -> Iterator[Told]:
    """What the header of a dump leads to, then its notes; each text once.

    Raises:
        DumpfsError: the header's cannot be read; what the notes have has been yielded.
    """
    failure: DumpfsError | None = None
    seen: set[bytes] = set()
    texts: list[tuple[bytes | None, str]] = []
    try:
        texts.append((image.vmcoreinfo_text(), "the dump's header or notes"))
    except DumpfsError as exc:
        failure = exc
    texts += [(note.desc, "a note of the dump") for note in notes if note.name == _NOTE_NAME]
    for text, origin in texts:
        told = judge_text(text or b"", origin)
        if told.text and told.text not in seen:
            seen.add(told.text)
            yield told
    if failure is not None:
        raise failure


def best_offered(image: DumpImage, notes: Iterable[Note], problems: list[str]) -> Told | None:
    """The text that a dump itself tells: the first that is whole, else the one with most lines.

    Args:
        image: the dump.
        notes: its notes.
        problems: told of texts passed over, and of what cannot be read.
    """
    found: list[Told] = []
    try:
        for told in offered(image, notes):
            if not told.doubt:
                problems += [f"VMCOREINFO of {bad.origin} {bad.doubt}: {told.origin} has it whole" for bad in found]
                return told
            found.append(told)
    except DumpfsError as exc:
        problems.append(f"VMCOREINFO: {exc}")
    return max(found, key=lambda told: len(told.text), default=None)
