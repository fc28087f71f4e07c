"""`dumpfs ls`: list the tree without a mount."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

from dumpfs.cli.cat import entry_name, why_absent
from dumpfs.cli.common import add_dump_arguments, one_line, open_dump
from dumpfs.vfs.node import DirNode

DESCRIPTION = """\
List the files of a dump's tree, those of a directory by a path such as "tasks/1",
without a mount: where FUSE is not to be had, and for scripts.

Directories have a slash behind their names."""

EPILOG = """\
examples:
  dumpfs ls dump.kdump
  dumpfs ls dump.kdump tasks
  for pid in $(dumpfs ls dump.kdump tasks); do dumpfs cat dump.kdump tasks/$pid/comm; done
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_dump_arguments(parser, several=False)
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="a directory or file; default: the root")


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    with closing(open_dump(args)) as dump:
        if dump.inspection.is_quick:  # else what the dump may have is listed
            dump.tree.settle(dump.tree.find_absent())
        path = args.path.strip("/")
        node = dump.tree.lookup_path(path)
        if node is None:
            raise why_absent(dump, path)
        if not isinstance(node, DirNode):
            print(one_line(path))
            return 0
        for name in _names(node):
            print(name)
    return 0


def _names(folder: DirNode) -> Iterator[str]:
    for entry in folder.entries(0):
        yield one_line(entry_name(entry)) + "/" * isinstance(entry[2], DirNode)
