"""`dumpfs dmesg`: print the dead kernel's log."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace

from dumpfs.cli.cat import find_file, report_lack, write_file
from dumpfs.cli.common import add_dump_arguments, open_options, warn

DESCRIPTION = "Print the dead kernel's log, without a mount."

EPILOG = """\
examples:
  dumpfs dmesg dump.kdump | tail
  dumpfs dmesg --caller vmcore
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--caller", action="store_true", help="show which thread (T) or processor (C) wrote each line, as dmesg does"
    )
    parser.add_argument("--device", action="store_true", help="show the device each line is about, where it has one")
    add_dump_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from dumpfs.vfs.context import Dump
    from dumpfs.vfs.views.dmesg import DmesgFile

    options = open_options(args)
    options = replace(options, caller=options.caller or args.caller, device=options.device or args.device)
    with closing(Dump.open(args.dump, options)) as dump:
        log = find_file(dump, "dmesg")
        write_file(log, 0, None)
        if isinstance(log, DmesgFile) and log.source:
            warn(log.notices[0])
    return report_lack(log)
