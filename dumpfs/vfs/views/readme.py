"""/README: what each file of this tree is."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import ClassVar

from dumpfs.units import one_line
from dumpfs.vfs.views.base import RenderedFile

_WIDTH = 100


@dataclass(slots=True)
class ReadmeFile(RenderedFile):
    """The tree, explained."""

    ABOUT: ClassVar[str] = "this text."

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        dump = self.dump
        here: list[str] = []
        absent: list[str] = []
        for path, view, reason in dump.tree.views():
            if reason is None:
                here.append(_entry(path, view.ABOUT))
            else:
                absent.append(_entry(path, one_line(reason)))
        paragraphs = [
            _fill(
                "This is the crash dump of a Linux kernel, shown as files by dumpfs. Nothing here can be changed. The"
                " time of every file is the time of the crash. dumpfs(5) tells more."
            ),
            "Dump:\n" + "\n".join(f"  {one_line(path)}" for path in dump.paths),
            "Files:\n\n" + "\n".join(here),
        ]
        if absent:
            paragraphs.append("Not offered for this dump:\n\n" + "\n".join(absent))
        paragraphs.append(
            _fill("Pages that cannot be read, and everything else that is odd, are listed in the file status.")
        )
        return ("\n\n".join(paragraphs) + "\n").encode()


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH)


def _entry(path: str, text: str) -> str:
    indent = " " * 18
    head = f"  {path}".ljust(len(indent))
    head = head if head.endswith(" ") else head + " "
    return textwrap.fill(head + text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
