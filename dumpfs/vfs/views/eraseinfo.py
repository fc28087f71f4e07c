"""/eraseinfo: what the dump's writer erased from memory, by the rules it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dumpfs.units import one_line, text_lines
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import RenderedFile

_NAMED = 5
"""Rules that a notice quotes."""


def _text(dump: Dump) -> bytes:
    return text_lines(dump.image.eraseinfo().rstrip(b"\0"))


def erased(dump: Dump) -> str | None:
    """A sentence about what was erased, or None: zeros in its place would be taken for the kernel's."""
    rules = [line for line in _text(dump).decode("utf-8", "replace").splitlines() if line.strip()]
    if not rules:
        return None
    more = f" and {len(rules) - _NAMED} more" if len(rules) > _NAMED else ""
    named = "; ".join(map(one_line, rules[:_NAMED]))
    return f"its writer has erased data from memory, see /eraseinfo: {named}{more}"


@dataclass(slots=True)
class EraseinfoFile(RenderedFile):
    """The rules as the dump has them."""

    ABOUT: ClassVar[str] = "what the dump's writer erased from memory (makedumpfile --config, --eppic), a rule a line."

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return None if _text(dump).strip() else "nothing was erased from this dump"

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return _text(self.dump)
