"""The `dumpfs` command: picks a verb, runs it, and turns failures into one line and an exit code.

A verb is one module and one line in `VERBS`. The module has `add_arguments(parser)` and `run(args) -> int`, and may
have `DESCRIPTION` and `EPILOG` texts for `--help`, and `INTERMIXED` true where options may stand between file names.
It is imported when picked, so `dumpfs --help` loads neither pyfuse3 nor a codec.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from dumpfs import __version__
from dumpfs.cli.common import (
    PROG,
    HelpFormatter,
    Parser,
    leave,
    nearest,
    one_line,
    print_error,
    secure_standard_streams,
    silence_stdout,
    spare_threads,
    warn,
)
from dumpfs.errors import DumpfsError, UsageError


class Verb(NamedTuple):
    """One line of the table of commands."""

    module: str
    help: str


VERBS: dict[str, Verb] = {
    "mount": Verb("dumpfs.cli.mount", "mount a dump as files"),
    "umount": Verb("dumpfs.cli.umount", "unmount it, or clear what a killed mount left behind"),
    "info": Verb("dumpfs.cli.info", "tell what a dump is and what its kernel died of"),
    "ls": Verb("dumpfs.cli.ls", "list the files of the tree, without a mount"),
    "cat": Verb("dumpfs.cli.cat", "print one file of the tree, without a mount"),
    "dmesg": Verb("dumpfs.cli.dmesg", "print the dead kernel's log"),
    "write": Verb("dumpfs.cli.write", "make a dump: filter, compress, convert, split, join"),
    "check": Verb("dumpfs.cli.check", "read every page and count the bad ones"),
}

_OTHER_NAMES = {"unmount": "umount", "log": "dmesg", "list": "ls", "dir": "ls", "verify": "check", "convert": "write"}
"""What the verbs are called elsewhere."""

_EPILOG = """\
examples:
  dumpfs mount /var/crash/202406011200 /mnt
  gdb -x /mnt/gdbinit vmlinux
  dumpfs umount /mnt
  dumpfs dmesg dump.kdump | tail

"dumpfs VERB --help" tells more about one verb; so do dumpfs(1) and, about the files, dumpfs(5).
"""


def top_parser() -> argparse.ArgumentParser:
    """The parser of everything before the verb."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} [--help] [--version] VERB ...",
        description=f"Mount a crashed Linux kernel's dump (kdump or ELF) as files.\n\nverbs:\n{verbs}",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def load_verb(name: str) -> ModuleType:
    """Import the module of a verb.

    Raises:
        UsageError: there is no such verb.
    """
    verb = VERBS.get(name)
    if verb is None:
        near = _OTHER_NAMES.get(name) or nearest(name, VERBS)
        all_verbs = f"one of {', '.join(VERBS)}; see {PROG} --help"
        raise UsageError(f"no verb {name!r}", hint=f"did you mean {PROG} {near}?" if near else all_verbs)
    return import_module(verb.module)


def verb_parser(name: str) -> argparse.ArgumentParser:
    """The complete parser of one verb, also for the tests that compare it with the man pages.

    Raises:
        UsageError: there is no such verb.
    """
    module = load_verb(name)
    summary = VERBS[name].help
    parser = Parser(
        prog=f"{PROG} {name}",
        description=getattr(module, "DESCRIPTION", summary[0].upper() + summary[1:] + "."),
        epilog=getattr(module, "EPILOG", None),
        formatter_class=HelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; failures are exceptions."""
    rest = top_parser().parse_args(argv).rest
    if not rest:
        raise UsageError("no verb given", hint=f"one of {', '.join(VERBS)}; see {PROG} --help")
    name = rest[0]
    if name in ("help", "version"):
        return _help(rest) if name == "help" else run(["--version"])
    _refuse_bare_dump(rest)
    parser = verb_parser(name)
    intermixed = getattr(load_verb(name), "INTERMIXED", False)
    args = (parser.parse_intermixed_args if intermixed else parser.parse_args)(rest[1:])
    try:
        code = load_verb(name).run(args)
    except DumpfsError as exc:
        if getattr(args, "json", False):
            _print_json_error(exc)
        raise
    sys.stdout.flush()
    return int(code)


def _help(words: Sequence[str]) -> int:
    """`dumpfs help [VERB]`, as other programs have it."""
    parser = verb_parser(words[1]) if len(words) > 1 else top_parser()
    parser.print_help()
    return 0


def _refuse_bare_dump(words: Sequence[str]) -> None:
    """Tell who leaves out the verb what to type: `dumpfs DUMP MOUNTPOINT` is how other file systems are mounted.

    Raises:
        UsageError: the first word is a file.
    """
    name = words[0]
    if name in VERBS or not os.path.exists(name):
        return
    command = f"{PROG} mount {shlex.join(words)}" if len(words) > 1 else f"{PROG} info {shlex.quote(name)}"
    raise UsageError(f"no verb is given, only {name}", hint=command)


def _print_json_error(exc: DumpfsError) -> None:
    """What a command with --json prints when it fails, beside the message on standard error."""
    import json

    facts = {"error": one_line(exc.message), "hint": one_line(exc.hint) if exc.hint else None, "exit": exc.exit_code}
    print(json.dumps(facts, indent=2), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script, without arguments: run, report, and end the process.

    With arguments, return the exit code.
    """
    if argv is None:
        leave(_main(sys.argv[1:]))
    return _main(argv)


def _main(argv: Sequence[str]) -> int:
    try:
        secure_standard_streams()
        spare_threads()
        return run(argv)
    except DumpfsError as exc:
        print_error(exc)
        return exc.exit_code
    except BrokenPipeError:
        # What a C program that dies of SIGPIPE looks like to its shell.
        silence_stdout()
        return 128 + signal.SIGPIPE
    except OSError as exc:
        silence_stdout()
        where = f"{exc.filename}: " if exc.filename is not None else ""
        warn(f"{where}{exc.strerror or exc}")
        return DumpfsError.exit_code
    except MemoryError:
        silence_stdout()
        warn("not enough memory for what the dump asks for")
        return DumpfsError.exit_code
    except KeyboardInterrupt:
        silence_stdout()
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
