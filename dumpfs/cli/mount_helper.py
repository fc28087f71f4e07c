"""`mount.dumpfs`: what mount(8) runs for `mount -t dumpfs` and for lines of /etc/fstab.

mount(8) looks for it in /sbin: link it there as /sbin/mount.dumpfs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from enum import IntEnum

from dumpfs import __version__
from dumpfs.cli.common import HelpFormatter, Parser, one_line, print_error, secure_standard_streams, spare_threads, warn
from dumpfs.errors import DumpfsError, UsageError
from dumpfs.fuse.options import is_ignored, is_option, render_options, split_options

PROG = "mount.dumpfs"

class Code(IntEnum):
    """Exit codes of mount(8)."""

    OK = 0
    USAGE = 1
    SYSTEM = 2
    USER = 8
    """Interrupted."""
    FAILURE = 32


_EPILOG = f"""\
Options for -o are those of "dumpfs mount":
{render_options()}
Those of mount(8) that mean nothing here (defaults, nofail, user, noauto, _netdev, x-..., atime and the like) are
ignored; a dump is always mounted ro,nodev,nosuid,noexec. The parts of a split set beyond the first are given as
part=FILE, once for each.

A line of /etc/fstab, with {PROG} linked to /sbin/{PROG}:
  /var/crash/vmcore  /mnt/dump  dumpfs  noauto,user,allow_other  0 0
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the helper's command line."""
    found = Parser(
        prog=PROG,
        usage=f"{PROG} DUMP MOUNTPOINT [-sfnv] [-o OPTION[,OPTION...]] [-t TYPE]",
        description="Mount a kernel dump as files; the helper of mount(8) for the type dumpfs.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    found.add_argument("dump", metavar="DUMP", help="dump file, or a folder that holds one dump")
    found.add_argument("mount_point", metavar="MOUNTPOINT", help="a folder")
    found.add_argument("-s", dest="sloppy", action="store_true", help="ignore options that nobody knows")
    found.add_argument("-f", dest="fake", action="store_true", help="do everything but mount")
    found.add_argument("-n", dest="no_mtab", action="store_true", help="for mount(8); there is no mtab to write")
    found.add_argument("-v", dest="verbose", action="store_true", help="say what is done")
    found.add_argument(
        "-o",
        dest="options",
        metavar="OPTION[,OPTION...]",
        action="append",
        default=[],
        help="see below; may be repeated",
    )
    found.add_argument("-t", dest="type", metavar="TYPE", help="type of the file system: dumpfs, or fuse.dumpfs")
    found.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    return found


def own_options(texts: Sequence[str], *, sloppy: bool) -> list[str]:
    """The options that are ours (escaped again), of those that mount(8) hands on."""
    found = []
    for item in split_options(texts):
        name = item.partition("=")[0]
        if is_ignored(item) or (sloppy and not is_option(name)):
            continue
        found.append(item.replace("\\", "\\\\").replace(",", "\\,"))
    return found


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; failures are exceptions."""
    args = parser().parse_args(argv)
    if args.type not in (None, "dumpfs", "fuse.dumpfs"):
        raise UsageError(f"-t {args.type}: only dumpfs is mounted here", hint=f"mount -t {args.type} ...")
    from dumpfs.cli.mount import mount_dump

    options = own_options(args.options, sloppy=args.sloppy)
    if args.verbose:
        text = f"{PROG}: {args.dump} on {args.mount_point} with {','.join(options) or 'no options'}"
        print(one_line(text), flush=True)
    mount_dump([args.dump], args.mount_point, options, fake=args.fake)
    return Code.OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script: run, report, and return the exit code."""
    try:
        secure_standard_streams()
        spare_threads()
        return run(sys.argv[1:] if argv is None else argv)
    except UsageError as exc:
        print_error(exc, prog=PROG)
        return Code.USAGE
    except DumpfsError as exc:
        print_error(exc, prog=PROG)
        return Code.FAILURE
    except OSError as exc:
        warn(f"{exc.filename or 'system'}: {exc.strerror or exc}", prog=PROG)
        return Code.SYSTEM
    except KeyboardInterrupt:
        return Code.USER


if __name__ == "__main__":
    sys.exit(main())
