"""Mounts a tree made up for tests, with the code that mounts real dumps: fake_mount.py FOLDER MOUNTPOINT [-f] [-o ...].

FOLDER takes notes of what the files did: each building of a slow file appends a line to FOLDER/<name>.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dumpfs.cli.common import print_error
from dumpfs.cli.mount import mount_opened
from dumpfs.errors import DumpfsError, SourceError, ViewError, page_error
from dumpfs.fuse import mounts
from dumpfs.fuse.options import parse_options
from dumpfs.memory.cache import PageCache
from dumpfs.units import PageState
from dumpfs.vfs.node import INDEX_BITS, ROOT_INO, DirNode, Entry, FileNode, Node, make_ino

PAGE = 4096
ZERO_SIZE = 8 << 30
ZEROS = bytes(1 << 20)
BAD_PFN = 300
SIZE = 600 * PAGE
SLOW = b"slow content\n" * 100_000
MANY = 1_000_000
TIMES_NS = 1_700_000_000_123_456_789


@dataclass(slots=True)
class Zeros(FileNode):
    """Costs nothing, so that what is measured is the way to it."""

    def size(self) -> int:
        return ZERO_SIZE

    def read(self, offset: int, size: int) -> bytes:
        size = max(min(size, ZERO_SIZE - offset), 0)
        return ZEROS if size == len(ZEROS) else ZEROS[:size]


@dataclass(slots=True)
class Text(FileNode):
    content: bytes

    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]

    def xattrs(self) -> dict[str, bytes]:
        return {"user.dumpfs.state": b"stored", "user.dumpfs.size": b"%d" % len(self.content)}


@dataclass(slots=True)
class Pages(FileNode):
    """Each page filled with its number; one of them, perhaps, cannot be read."""

    bad: int = -1

    def size(self) -> int:
        return SIZE

    def stored_bytes(self) -> int:
        return PAGE

    def read(self, offset: int, size: int) -> bytes:
        stop = min(offset + size, SIZE)
        if self.bad >= 0 and offset < (self.bad + 1) * PAGE and stop > self.bad * PAGE:
            raise page_error(self.bad, PageState.CORRUPT, "made up")
        data = b"".join(bytes((pfn & 255,)) * PAGE for pfn in range(offset // PAGE, -(-stop // PAGE)))
        return data[offset % PAGE : offset % PAGE + stop - offset]


@dataclass(slots=True)
class Buggy(FileNode):
    """A mistake of ours."""

    def size(self) -> int:
        return 10

    def read(self, offset: int, size: int) -> bytes:
        raise ZeroDivisionError("a bug made up for the test")


@dataclass(slots=True)
class Poison(FileNode):
    """Whoever reads it dies."""

    notes: Path

    def size(self) -> int:
        return 10

    def read(self, offset: int, size: int) -> bytes:
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os._exit(99)


@dataclass(slots=True)
class Refused(FileNode):
    """Cannot be opened."""

    def size(self) -> int:
        return PAGE

    def check_open(self) -> None:
        raise page_error(7, PageState.EXCLUDED)

    def read(self, offset: int, size: int) -> bytes:
        raise page_error(7, PageState.EXCLUDED)


@dataclass(slots=True)
class FailingDisk(FileNode):
    def size(self) -> int:
        return PAGE

    def read(self, offset: int, size: int) -> bytes:
        raise SourceError("made-up.dump", "reading failed")


@dataclass(slots=True)
class Clock(FileNode):
    """Different at every look."""

    volatile: bool = field(default=True, kw_only=True)

    def size(self) -> int:
        return 0

    def read(self, offset: int, size: int) -> bytes:
        return (b"%d\n" % time.monotonic_ns())[offset : offset + size]


@dataclass(slots=True)
class Slow(FileNode):
    """Takes a while to build."""

    notes: Path
    how: str
    content: bytes | memoryview | None = None

    @property
    def ready(self) -> bool:
        return self.content is not None

    def size(self) -> int:
        return len(self._bytes())

    def _bytes(self) -> bytes | memoryview:
        if self.how == "inline":
            return SLOW
        assert self.content is not None
        return self.content

    def build(self) -> bytes | None:
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.how == "inline":
            return None
        if self.how == "fails":
            raise ViewError("made up: cannot be built")
        if self.how == "bug":
            raise ZeroDivisionError("a bug made up for the test")
        if self.how == "dies" or (self.how == "dies once" and len(self.notes.read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.5)
        return SLOW

    def adopt(self, data: memoryview | bytes) -> None:
        self.content = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._bytes()[offset : offset + size])


KNOWN: list[bytes] = []
"""What the process that built a `Leader` found out."""


@dataclass(slots=True)
class Follower(Slow):
    """Is quick to build for who knows what a `Leader` found out, and tells whether that was so."""

    def build(self) -> bytes | None:
        known = KNOWN[0] if KNOWN else b"nothing\n"
        return known if Slow.build(self) else None


@dataclass(slots=True)
class Leader(Slow):
    """Builds what others need."""

    sure: list[Node] = field(default_factory=list)
    perhaps: list[Node] = field(default_factory=list)

    def build(self) -> bytes | None:
        KNOWN.append(b"found by %d\n" % os.getpid())
        return Slow.build(self)

    def wanted_next(self) -> list[Node]:
        return self.sure

    def wanted_perhaps(self) -> list[Node]:
        return self.perhaps


@dataclass(slots=True)
class Folder(DirNode):
    children: dict[str, Node]

    def lookup(self, name: str) -> Node | None:
        return self.children.get(name)

    def entries(self, cookie: int) -> Iterator[Entry]:
        for position, (name, node) in enumerate(self.children.items(), 1):
            if position > cookie:
                yield position, name, node

    def subdirectories(self) -> int:
        return sum(isinstance(node, DirNode) for node in self.children.values())


@dataclass(slots=True)
class Many(DirNode):
    """A million files of which nothing is kept."""

    def lookup(self, name: str) -> Node | None:
        return Text(make_ino(1, int(name)), name.encode()) if name.isdigit() and int(name) < MANY else None

    def entries(self, cookie: int) -> Iterator[Entry]:
        pfns = range(cookie, MANY)
        names = map(b"%d".__mod__, pfns)
        return zip(range(cookie + 1, MANY + 1), names, map(make_ino(1, 0).__add__, pfns), strict=True)


class FakeTree:
    times_ns = TIMES_NS

    def __init__(self, notes: Path) -> None:
        self._nodes: dict[int, Node] = {}

        def add(node: Node) -> Node:
            return self._nodes.setdefault(node.ino, node)

        inos = iter(range(ROOT_INO + 1, 1000))
        slow = ("slow", "inline", "fails", "bug", "dies", "dies once")
        files: dict[str, Node] = {
            "zero": add(Zeros(next(inos))),
            "text": add(Text(next(inos), b"some text\n")),
            "good": add(Pages(next(inos))),
            "bad": add(Pages(next(inos), BAD_PFN)),
            "buggy": add(Buggy(next(inos))),
            "refused": add(Refused(next(inos))),
            "disk": add(FailingDisk(next(inos))),
            "clock": add(Clock(next(inos))),
            "folder": add(Folder(next(inos), {"inner": add(Text(next(inos), b"inner\n"))})),
            "many": add(Many(next(inos))),
            "poison": add(Poison(next(inos), notes / "poison")),
            **{f"slow-{how}": add(Slow(next(inos), notes / how, how)) for how in slow},
        }
        for how in ("sure", "sure dies once", "perhaps", "perhaps not"):
            files[how] = add(Follower(next(inos), notes / how, how.removeprefix("sure ")))
        leader = Leader(next(inos), notes / "leader", "leads")
        reckless = Leader(next(inos), notes / "reckless", "leads")
        leader.sure = [files["sure"]]
        reckless.sure = [files["sure dies once"]]
        leader.perhaps = [files["perhaps"], files["perhaps not"]]
        files |= {"leader": leader, "reckless": reckless}
        for node in files.values():
            add(node)
        self.root = add(Folder(ROOT_INO, files))

    def node(self, ino: int) -> Node:
        if ino >> INDEX_BITS == 1:
            return Text(ino, b"%d" % (ino & (1 << INDEX_BITS) - 1))
        return self._nodes[ino]


class FakeDump:
    def __init__(self, notes: Path) -> None:
        self.tree = FakeTree(notes)
        self.name = str(notes / "made, up é.dump")
        self.paths = (self.name,)
        self.statuses = (None,)
        self.cache = PageCache(0)
        self.counters: object = None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("notes", type=Path)
    parser.add_argument("mount_point")
    parser.add_argument("-f", dest="foreground", action="store_true")
    parser.add_argument("-o", dest="options", action="append", default=[])
    args = parser.parse_args()
    try:
        options = parse_options(args.options)[1]
        mount_point = mounts.check_mount_point(args.mount_point)
        mount_opened(FakeDump(args.notes), mount_point, options, foreground=args.foreground)  # type: ignore[arg-type]
    except DumpfsError as exc:
        print_error(exc)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
