"""`dumpfs umount`: unmount a dump, or clear what a killed mount left behind."""

from __future__ import annotations

import argparse

from dumpfs.fuse.mounts import unmount

DESCRIPTION = """\
Unmount a dump, and return when it is gone. Also clears a mount whose process was killed ("Transport endpoint is not
connected"). When it is in use, the message says by whom.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="take it out of sight now; it ends when its last user does"
    )
    parser.add_argument("mount_points", metavar="MOUNTPOINT", nargs="+", help="where a dump is mounted")


def run(args: argparse.Namespace) -> int:
    """Unmount."""
    for mount_point in args.mount_points:
        unmount(mount_point, lazy=args.lazy)
    return 0
