"""What a file and a directory of the tree are.

Nodes are made on demand and hold no state of a caller; the same (deterministic) node may exist in several worker
processes at once. An inode number is arithmetic, `space << 48 | index`: nothing is kept per inode, and
`Tree.node(ino)` finds the node again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from dumpfs.memory.physical import PhysMemory
    from dumpfs.vfs.context import Dump

INDEX_BITS = 48

ROOT_INO = 1
"""FUSE's number of the root directory: space 0, index 1."""


def make_ino(space: int, index: int) -> int:
    """Inode number of entry `index` of a number space. Space 0 is the fixed tree, 1 is /pages."""
    return space << INDEX_BITS | index


@dataclass(slots=True)
class Node(ABC):
    """A file or a directory."""

    INSIDE: ClassVar[bool] = False
    """Whether it takes what is found out about the kernel's inside: see `vfs.inspection`."""

    ino: int

    @property
    def ready(self) -> bool:
        """False while using the node would first have to build something, which may take over 50 ms.

        For a file that is `size` and `read`, for a directory `lookup` and `entries`. The mount then builds in a helper
        process (see `build`), so that other requests go on; without a mount the methods build by themselves.
        """
        return True

    def prepared_by(self) -> Node:
        """The node whose `build` and `adopt` make this one ready: another one where several need the same."""
        return self

    def build(self) -> bytes | None:
        """What a node that is not `ready` must prepare: bytes that `adopt` takes, in this or another process.

        Raises:
            DumpfsError: it cannot be built; the reason is for /status and the reader.
        """
        return None

    def decided_by(self) -> Node | None:
        """The node whose building, or failing, decides what this one lists or tells; None once that is decided.

        A mount waits a moment for it, so that a listing has what can be read and nothing else.
        """
        return None

    @property
    def patient(self) -> bool:
        """Whether `decided_by` is worth a wait: whether it is built in a few seconds."""
        return True

    def decide(self, failures: Mapping[int, str]) -> None:  # noqa: B027 (most nodes list what they always do)
        """Learn which files turned out not to be buildable: inode number and reason."""

    @classmethod  # noqa: B027 (most views are there when `missing` says nothing)
    def probe(cls, dump: Dump) -> None:
        """Raise the `DumpfsError` why the dump cannot offer this view after all.

        As far as that can be told without building it. `Tree.find_absent` asks, when the kernel is looked into.
        """

    @classmethod
    def find_lacking(cls, dump: Dump) -> Mapping[str, str]:
        """What a directory that the dump offers lacks: path and reason; errors as `probe`'s, which is asked before."""
        return {}

    def adopt(self, data: memoryview | bytes) -> None:  # noqa: B027 (most files have nothing to take)
        """Take what `build` made, here or in another process; the node is then `ready`."""

    def load(self) -> None:  # noqa: B027 (most builds take nothing that is not there)
        """Import what `build` takes, for a process that has nothing else to do until it is told to build."""

    def wanted_next(self) -> Sequence[Node]:
        """Nodes that whoever had to wait for this one will surely want at once.

        A mount goes on with these, as far as they are not `ready`: copies of the process that built this node build
        them, which know what it found out.
        """
        return ()

    def wanted_perhaps(self) -> Sequence[Node]:
        """Nodes of which some may be wanted next: a copy of the process that built this one stands by for a moment."""
        return ()


class MemoryExtents(NamedTuple):
    """Parts of a file that show physical memory."""

    memory: PhysMemory
    extents: tuple[tuple[int, int, int], ...]
    """(offset in the file, bytes, physical address) of each; ascending."""


@dataclass(slots=True)
class FileNode(Node):
    """A read-only file. Methods raise `DumpfsError`; its `errno` is what a reader gets."""

    volatile: bool = field(default=False, kw_only=True)
    """True for files whose content changes while mounted (/status): never cached by anybody."""

    @abstractmethod
    def size(self) -> int:
        """Length in bytes, the true one."""

    def stored_bytes(self) -> int:
        """Bytes that are really stored, for st_blocks (du, and a hint at holes). Cheap; an estimate will do."""
        return self.size()

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Bytes `[offset, offset + size)`; empty beyond the end, short only at the true end.

        Raises:
            DumpfsError: a byte of the range cannot be had; the whole request fails, and callers ask again
                in smaller pieces.
        """

    def memory_extents(self) -> MemoryExtents | None:
        """The parts of the file that are nothing but physical memory, if it has such; it must be `ready`."""
        return None

    @property
    def lack(self) -> str:
        """What is missing from the content, in a sentence, once it was made; '' when nothing is."""
        return ""

    def check_open(self) -> None:
        """Raise the `DumpfsError` why the file cannot be opened (an excluded page); return when it can."""

    def xattrs(self) -> Mapping[str, bytes]:
        """Extended attributes by full name, 'user.dumpfs.state'."""
        return {}


Entry = tuple[int, str, "Node"] | tuple[int, bytes, int]
"""What a directory lists: own cookie, name, and the node or, with the name in bytes, the inode number of a file."""


@dataclass(slots=True)
class DirNode(Node):
    """A directory."""

    BARE: ClassVar[bool] = False
    """Whether its entries are bare inode numbers, see `entries`."""

    @abstractmethod
    def lookup(self, name: str) -> Node | None:
        """The entry called `name`, or None."""

    @abstractmethod
    def entries(self, cookie: int) -> Iterator[Entry]:
        """Entries after position `cookie` (0: from the start) as (own cookie, name, node or inode number).

        Cookies are positive, stable and ascending, so a listing may resume anywhere. An inode number stands for a
        file whose attributes the lister need not know, as for a million pages; its name is encoded already.
        """

    def subdirectories(self) -> int:
        """Number of subdirectories, for st_nlink."""
        return 0
