"""Listings of a million files, which through libfuse and pyfuse3 cost a call and a set of attributes for each.

Such files are listed by name, inode number and type alone: a node number of 0 says that attributes are not told, and
the kernel asks for those of a file when somebody wants them.

Sources: Linux include/uapi/linux/fuse.h (fuse_entry_out, fuse_dirent), fs/fuse/readdir.c (node number 0).
"""

from __future__ import annotations

import struct

from dumpfs.vfs.node import DirNode, Node

_ALIGN = 8
_REGULAR = 8
"""DT_REG of a fuse_dirent."""
_RECORDS = {size: struct.Struct(f"=128xQQII{size}s") for size in range(_ALIGN, 257, _ALIGN)}
"""A `fuse_direntplus` by the padded size of its name: a `fuse_entry_out` of zeros; inode number, cookie, size of the
name, type; the name."""


def list_bare(directory: Node, cookie: int, size: int) -> bytes | None:
    """The answer to a READDIRPLUS, or None for what is no directory of files that are listed without attributes.

    Args:
        directory: the directory.
        cookie: the position after which to begin.
        size: bytes the answer may have.

    Raises:
        DumpfsError: it cannot be listed.
    """
    if not isinstance(directory, DirNode) or not directory.BARE or not directory.ready:
        return None
    found: list[bytes] = []
    for own, name, node in directory.entries(cookie):
        if not isinstance(node, int):
            return None
        length = len(name)
        record = _RECORDS[-(-length // _ALIGN) * _ALIGN]
        size -= record.size
        if size < 0:
            return b"".join(found) or None  # nothing would mean the end
        found.append(record.pack(node, own, length, _REGULAR, name))  # bytes, see `Entry`
    return b"".join(found)
