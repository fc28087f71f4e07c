"""`dumpfs cat`: print one file of the tree to standard output, without a mount."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from dumpfs.cli.common import add_dump_arguments, nearest, open_dump, warn
from dumpfs.cli.output import Output, standard_output
from dumpfs.errors import CorruptDumpError, DumpfsError, UsageError, ViewError
from dumpfs.units import parse_size
from dumpfs.vfs.node import DirNode, Entry, FileNode

if TYPE_CHECKING:
    from dumpfs.vfs.context import Dump

DESCRIPTION = """\
Print one file of the tree to standard output, without a mount.

A page that is lost or corrupt ends the output before it, with exit code 4 and
a message that names it: bytes that are not in the dump are never made up."""

EPILOG = """\
examples:
  dumpfs cat dump.kdump dmesg
  dumpfs cat dump.kdump pages/74565 | hexdump -C
  dumpfs cat --offset 0x1000000 --count 4096 dump.kdump hmem >page
"""

_PIECE = 1 << 20
"""Bytes read at once."""
_SMALL_PIECE = 4096
"""Bytes read at once where a piece failed, to print all that comes before the bad page: no page is smaller."""


def _number(text: str) -> int:
    try:
        return int(text, 16) if text.lower().startswith("0x") else parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--offset", metavar="BYTES", type=_number, default=0, help="start here (decimal, 0x..., or with K, M, G, T)"
    )
    parser.add_argument("--count", metavar="BYTES", type=_number, default=None, help="print at most so many bytes")
    add_dump_arguments(parser)
    parser.add_argument("view", metavar="VIEW", help="path in the tree: dmesg, info.json, pages/74565, vmcore ...")


_MAX_COMPARED = 2000
"""Names that a mistyped one is compared with."""


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    with closing(open_dump(args)) as dump:
        node = find_file(dump, args.view)
        node.check_open()
        write_file(node, args.offset, args.count)
    return report_lack(node)


def report_lack(node: FileNode) -> int:
    """Say what is missing from a file that was written; returns the exit code."""
    if not node.lack:
        return 0
    warn(node.lack)
    return CorruptDumpError.exit_code


def find_file(dump: Dump, path: str) -> FileNode:
    """The file of the tree at `path`, with or without a slash in front.

    Raises:
        UsageError: there is no such file, or it is a directory.
        ViewError: this dump cannot offer it; the message says why.
    """
    node = dump.tree.lookup_path(path)
    if isinstance(node, FileNode):
        return node
    name = path.strip("/")
    if isinstance(node, DirNode):
        raise UsageError(f"{name or '/'}: is a directory", hint="dumpfs ls DUMP PATH lists it; name a file in it")
    raise why_absent(dump, name)


def why_absent(dump: Dump, name: str) -> DumpfsError:
    """Why there is nothing at a path of the tree, with the nearest name that there is."""
    reason = next((why for known, _, why in dump.tree.views() if known == name), None)
    if reason is not None:
        return ViewError(f"{name}: {reason}")
    folder, _, last = name.rpartition("/")
    parent = dump.tree.lookup_path(folder)
    while folder and parent is None:  # the first part of the path that is not there is the one to talk about
        folder, _, last = folder.rpartition("/")
        parent = dump.tree.lookup_path(folder)
    entries = parent.entries(0) if isinstance(parent, DirNode) else iter(())
    known = [entry_name(entry) for entry in islice(entries, _MAX_COMPARED)]
    near = "" if last.isdecimal() else nearest(last, known)
    there = f"{folder}/" if folder else ""
    hint = f"did you mean {there}{near}?" if near else f"dumpfs ls DUMP {there}".rstrip() + " lists what is there"
    return UsageError(f"{name}: no such file in the tree", hint=hint)


def entry_name(entry: Entry) -> str:
    """The name in an entry of a directory."""
    return os.fsdecode(entry[1]) if isinstance(entry[1], bytes) else entry[1]


def write_file(node: FileNode, offset: int, count: int | None) -> None:
    """Write bytes of `node` to standard output, from `offset` on, `count` of them at most; see `output`.

    Raises:
        DumpfsError: a byte cannot be had; everything before its page has been written.
    """
    output = standard_output()
    try:
        _write(node, offset, None if count is None else offset + count, output)
    finally:
        output.finish()


def _write(node: FileNode, offset: int, stop: int | None, output: Output) -> None:
    while stop is None or offset < stop:
        size = _PIECE if stop is None else min(_PIECE, stop - offset)
        try:
            data = node.read(offset, size)
        except DumpfsError:
            _write_until_failure(node, offset, offset + size, output)
            raise
        if not data:
            return
        output.write(data)
        offset += len(data)


def _write_until_failure(node: FileNode, offset: int, stop: int, output: Output) -> None:
    """Write the pages of `[offset, stop)` up to the one that cannot be read, and raise what it raises."""
    while offset < stop:
        size = min(_SMALL_PIECE - offset % _SMALL_PIECE, stop - offset)
        data = node.read(offset, size)
        if not data:
            return
        output.write(data)
        offset += len(data)
