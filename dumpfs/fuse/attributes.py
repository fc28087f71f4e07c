"""What the kernel is told of a file or directory: mode, owner, times, size, and how long it may keep that."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Protocol

import pyfuse3
from pyfuse3 import EntryAttributes

from dumpfs.errors import DumpfsError
from dumpfs.vfs.node import DirNode, FileNode, Node

_FOREVER = 86400.0 * 365
"""Seconds that the kernel may keep what it was told: a dump does not change."""
_STAT_BLOCK = 512
"""Unit of st_blocks, whatever the block size."""
BLOCK = 4096
"""What st_blksize and statfs say."""


class Ownership(Protocol):
    """Who owns the files and what others may; `options.MountOptions` is one."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""

    @property
    def umask(self) -> int:
        """Permission bits to take away from 0444 and 0555."""


class Attributes:
    """Makes attributes. What it returns is valid until the next call: replies are sent before any other handler runs.

    Args:
        owner: who owns the files.
        times_ns: time stamp of every file, nanoseconds since the epoch.
        complain: called with the error of a file whose size cannot be told.
    """

    def __init__(self, owner: Ownership, times_ns: int, complain: Callable[[DumpfsError], None]) -> None:
        self._complain = complain
        self._file = _template(stat.S_IFREG | 0o444 & ~owner.umask, owner, times_ns)
        self._dir = _template(stat.S_IFDIR | 0o555 & ~owner.umask, owner, times_ns)

    def of(self, node: Node, *, listed: bool = False, prepared: bool = False, lasting: bool = True) -> EntryAttributes:
        """Attributes of a node; a file whose size is not known (yet) has 0, which nobody may keep.

        The kernel asks for the attributes again before it believes in such a size, and `getattr` then tells.

        Args:
            node: the file or directory.
            listed: whether it is one of many in a listing.
            prepared: whether a slow file has been built.
            lasting: whether its name will stay.
        """
        if isinstance(node, DirNode):
            attributes = self._dir
            attributes.st_nlink = 2 + (0 if listed else node.subdirectories())
            attributes.attr_timeout = 0 if listed else _FOREVER
        else:
            attributes = self._file
            attributes.attr_timeout = _FOREVER if self._measure(node, prepared=prepared) else 0
        attributes.st_ino = pyfuse3.InodeT(node.ino)
        attributes.entry_timeout = _FOREVER if lasting else 0
        return attributes

    def _measure(self, node: Node, *, prepared: bool) -> bool:
        """Enter the size; whether the kernel may keep it."""
        size = stored = 0
        known = False
        if isinstance(node, FileNode) and (prepared or (node.ready and not node.volatile)):
            try:
                size = node.size()
                stored = node.stored_bytes()
                known = not node.volatile
            except DumpfsError as exc:
                self._complain(exc)  # `open` will say it to whoever wants the file
        self._file.st_size = size
        self._file.st_blocks = -(-stored // _STAT_BLOCK)
        return known

    def bare(self) -> EntryAttributes:
        """Of files among a million, whose size is asked for when somebody wants it; the caller enters their numbers."""
        attributes = self._file
        attributes.st_size = attributes.st_blocks = 0
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes


def _template(mode: int, owner: Ownership, times_ns: int) -> EntryAttributes:
    attributes = EntryAttributes()
    attributes.st_mode = pyfuse3.ModeT(mode)
    attributes.st_uid = owner.uid
    attributes.st_gid = owner.gid
    attributes.st_blksize = BLOCK
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = times_ns
    return attributes
