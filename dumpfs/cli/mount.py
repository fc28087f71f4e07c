"""`dumpfs mount`: mount a dump as files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumpfs.errors import UsageError
from dumpfs.fuse.options import MountOptions, parse_options, render_options

if TYPE_CHECKING:
    from dumpfs.vfs.context import Dump

DESCRIPTION = """\
Mount a kernel dump (kdump or ELF, also flattened, split or incomplete) as files.

The command returns when the mount answers, and the mount goes on in the background. Several DUMPs are the parts of
one split set, in any order. A folder stands for the one dump in it.
"""

EPILOG = f"""\
options for -o (comma-separated, may be repeated):
{render_options()}

examples:
  dumpfs mount /var/crash/202406011200 /mnt
  dumpfs mount -o holes=error,workers=2 dump.kdump /mnt
  dumpfs mount part.1 part.2 part.3 /mnt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.usage = "dumpfs mount [-o OPTION[,OPTION...]] [-f] [-d] DUMP... MOUNTPOINT"
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTION[,OPTION...]",
        action="append",
        default=[],
        help="see below; may be repeated",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground; ^C unmounts")
    parser.add_argument("-d", "--debug", action="store_true", help="-f, and tell everything about every request")
    parser.add_argument("paths", metavar="DUMP... MOUNTPOINT", nargs="+", help="the dump's files, and a folder")


def run(args: argparse.Namespace) -> int:
    """Mount."""
    if len(args.paths) < 2:
        raise UsageError("mount: a dump and a mount point are needed", hint="dumpfs mount DUMP MOUNTPOINT")
    foreground = args.foreground or args.debug
    mount_dump(args.paths[:-1], args.paths[-1], args.options, foreground=foreground, debug=args.debug)
    return 0


def mount_dump(
    dumps: list[str],
    mount_point: str,
    texts: list[str],
    *,
    foreground: bool = False,
    debug: bool = False,
    fake: bool = False,
) -> None:
    """Mount a dump; in the background, return when the mount answers, in the foreground, when it has ended.

    Args:
        dumps: the dump's files.
        mount_point: a folder.
        texts: `-o` lists.
        foreground: stay, and log to stderr.
        debug: say everything.
        fake: do everything but mount.

    Raises:
        DumpfsError: it cannot be mounted.
    """
    from dumpfs.fuse import mounts

    reading, options = parse_options(texts)
    mount_point = mounts.check_mount_point(mount_point)
    mounts.check_fuse(allow_other=options.allow_other)

    from dumpfs.vfs.context import Dump

    # Every file is opened here, before anything is mounted over its folder, and stays open.
    dump = Dump.open([*dumps, *options.parts], reading)
    if fake:
        dump.close()
        return
    _ = dump.memory_size  # known from now on, whatever becomes of the file
    # The log is what people look at first, and quick to find where the dump says where VMCOREINFO is.
    ahead = ("dmesg",) if dump.header_vmcoreinfo is not None else ()
    mount_opened(dump, mount_point, options, ahead, foreground=foreground, debug=debug)


def mount_opened(
    dump: Dump,
    mount_point: str,
    options: MountOptions,
    ahead: Sequence[str] = (),
    *,
    foreground: bool = False,
    debug: bool = False,
) -> None:
    """Mount an open dump at a resolved path, as `mount_dump` does; in the background this process ends.

    Args:
        dump: the dump; its files stay open.
        mount_point: a folder.
        options: how the mount behaves.
        ahead: names in the root of slow files to build before anybody asks.
        foreground: see `mount_dump`.
        debug: likewise.

    Raises:
        DumpfsError: it cannot be mounted.
    """
    from dumpfs.fuse import daemon, logs

    logs.set_up(options.log, foreground=foreground, debug=debug)
    if not foreground and options.log is None and not logs.can_syslog():
        dump.remarks.append("nobody listens to syslog here: what the mount has to say is lost; -o log=FILE keeps it")

    from dumpfs.fuse.binding import load_pyfuse3

    load_pyfuse3()

    from dumpfs.fuse.session import Session
    from dumpfs.vfs.counters import SharedCounters

    counters = SharedCounters(dump.cache)
    dump.counters = counters
    session = Session(
        dump.tree,
        counters,
        mount_point,
        options,
        name=dump.name,
        total_bytes=sum(status.st_size for status in dump.statuses if status is not None),
        ahead=ahead,
        debug=debug,
    )
    dump.failures = session.failures
    if foreground:
        session.mount()
        session.serve(lambda: None)
        return
    daemon.detach(session.mount, session.serve)
    # The dump is the other process's now; nothing here is worth tidying up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
