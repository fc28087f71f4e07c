"""/status: the mount as it is now, for people: what is missing and why, what was odd, what could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import ClassVar

from dumpfs import __version__
from dumpfs.errors import explain
from dumpfs.native import AVAILABLE
from dumpfs.units import one_line, render_size
from dumpfs.vfs.context import TRAFFIC, Dump
from dumpfs.vfs.node import Node
from dumpfs.vfs.views.base import DumpFile
from dumpfs.vfs.views.dmesg import DmesgFile
from dumpfs.vfs.views.eraseinfo import erased
from dumpfs.vfs.views.pages import MAX_LISTED, PagesDir
from dumpfs.vfs.views.vmcore import CoreFile

_WIDTH = 20
"""Digits of the largest 64-bit number."""


@dataclass(slots=True)
class StatusFile(DumpFile):
    """Rendered anew whenever a reader begins at its start."""

    ABOUT: ClassVar[str] = (
        "the mount as it is now: options, files that this dump does not offer and why, what was odd, changes of the"
        " dump's files, counters, and every page that could not be read."
    )

    volatile: bool = field(default=True, kw_only=True)
    snapshot: bytes = field(default=b"", kw_only=True)
    """What the last reader that began at the start got, so that the rest it asks for fits."""

    def decided_by(self) -> Node | None:
        """See `Node.decided_by`: it tells which views there are."""
        return self.dump.tree.decided_by()

    @property
    def patient(self) -> bool:
        """See `Node.patient`."""
        return self.dump.inspection.is_quick

    def decide(self, failures: Mapping[int, str]) -> None:
        """See `Node.decide`."""
        self.dump.tree.decide(failures)

    def size(self) -> int:
        """See `FileNode.size`; the same a moment later, and in another process, unless there was news."""
        self.snapshot = render_status(self.dump)
        return len(self.snapshot)

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        return len(self.snapshot)

    def read(self, offset: int, size: int) -> bytes:
        """See `FileNode.read`."""
        if not offset or not self.snapshot:
            self.snapshot = render_status(self.dump)
        return self.snapshot[offset : offset + size]


def render_status(dump: Dump) -> bytes:
    """The text of /status."""
    meta = dump.image.meta
    state = "complete" if meta.complete else f"incomplete: {meta.incomplete_reason or 'it ended early'}"
    sections = [
        ("dump", [f"dumpfs {__version__}", *dump.paths, f"{meta.format} {meta.variant}".rstrip(), state]),
        ("options", _options(dump)),
        ("not offered", _not_offered(dump)),
        ("could not be built", _failures(dump)),
        ("notices", _notices(dump)),
        ("changes of the input", dump.image.changes()),
        ("counters", _counters(dump)),
        ("pages that could not be read", _bad_pages(dump)),
    ]
    return "\n".join(line for title, lines in sections for line in _section(title, lines)).encode() + b"\n"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"{title}:"
    empty = True
    for line in lines:
        empty = False
        yield f"  {one_line(line)}"
    if empty:
        yield "  none"


def _options(dump: Dump) -> Iterator[str]:
    for option in fields(dump.options):
        value = getattr(dump.options, option.name)
        if value is None or value is False or value == ():
            continue
        if option.name == "pieces":
            yield "map=" + ",".join(map(str, value))
            continue
        if isinstance(value, Enum):
            value = value.value
        elif option.name in ("phys_base", "kaslr"):
            value = hex(value)
        elif option.name == "cache":
            value = render_size(value)
        yield option.name if value is True else f"{option.name}={value}"


def _not_offered(dump: Dump) -> Iterator[str]:
    failures, tree = dump.failures(), dump.tree
    absent = {path: why for path, _, why in tree.views() if why is not None}
    for path, why in tree.absent().items():
        node = tree.made(path)
        if node is None or node.ino not in failures:
            absent[path] = why
    yield from (f"{path}: {absent[path]}" for path in sorted(absent))
    if tree.decided_by() is not None:
        yield "what else, and why, is not known yet: nobody has listed the files, or finding out takes long"


def _failures(dump: Dump) -> Iterator[str]:
    reasons = dump.failures()
    for path, _, _ in dump.tree.views():
        node = dump.tree.made(path)
        if node is not None and node.ino in reasons:
            yield f"{path}: {reasons[node.ino]}"


def _notices(dump: Dump) -> Iterator[str]:
    yield from dump.remarks
    yield from dump.image.notices
    yield from filter(None, (erased(dump),))
    if "kernel" in vars(dump):  # found out already; /status itself starts no search
        if dump.kernel is not None:
            found = dump.inspection.kernel_problems if "inspection" in vars(dump) else None
            yield from dump.kernel.problems if found is None else found
        else:
            yield f"kernel: {explain(dump.kernel_error)}" if dump.kernel_error else "kernel: unknown"
    if "inspection" in vars(dump):
        yield from (f"inside the kernel: {notice}" for notice in dump.inspection.notices())
    pages, log = dump.tree.at("pages"), dump.tree.at("dmesg")
    if isinstance(pages, PagesDir) and not pages.listed:
        why = "pages=open" if dump.options.pages == "open" else f"more than {MAX_LISTED}"
        yield f"/pages: its files can be opened by name, but are not listed ({why}; -o pages=list lists them)"
    for _, node in dump.tree.files():
        if isinstance(node, CoreFile) and node.plan is not None:
            yield from node.plan.notices
    if isinstance(log, DmesgFile):
        yield from log.notices


def _counters(dump: Dump) -> Iterator[str]:
    workers = dump.counters.workers()
    yield f"workers: {' '.join(map(str, workers))}"
    for name, value in dump.counters.values().items():
        # What changes all the time has a fixed width, lest the size of the file does.
        yield f"{name}: {value:<{_WIDTH}}" if name in TRAFFIC else f"{name}: {value}"
    yield f"native code: {'in use' if AVAILABLE else 'not in use'}"


def _bad_pages(dump: Dump) -> Iterator[str]:
    for first, stop, why in dump.counters.bad_runs():
        pages = f"{first:#x}" if stop == first + 1 else f"{first:#x}-{stop - 1:#x} ({stop - first} pages)"
        yield f"pfn {pages}: {why}"
