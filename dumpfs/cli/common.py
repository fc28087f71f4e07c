"""What every command shares: the parser, messages, output, and the arguments that name a dump.

Loads neither pyfuse3 nor a codec.
"""

from __future__ import annotations

import argparse
import atexit
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from dumpfs.errors import DumpfsError, UsageError
from dumpfs.units import one_line as one_line  # every command shows text with it

if TYPE_CHECKING:
    from dumpfs.vfs.context import Dump, OpenOptions

PROG = "dumpfs"
_STDERR = 2
_COLUMNS = 80
"""Width of help where there is no terminal."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UsageError`s: one line, a hint, exit code 2.

    Long options are written out: a script that relied on `--js` would forbid every other option that begins so.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # as argparse has it
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        prefix = f"{PROG} "
        verb = self.prog.removeprefix(prefix)
        where = f"{verb}: " if self.prog.startswith(prefix) else ""
        near = ""
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split(" ")[0].partition("=")[0]
            near = nearest(word, self._option_string_actions) if word.startswith("--") else ""
        raise UsageError(f"{where}{message}", hint=f"did you mean {near}?" if near else f"{self.prog} --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of some names that was most likely meant, or ''."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.6)), "")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help; every parser makes one to check its arguments.

    argparse asks shutil how wide the terminal is, and that loads every compressor there is.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Descriptions and examples as they are, but for lines that are too long: those go on below, indented alike."""
        from textwrap import wrap

        lines = []
        for line in text.splitlines():
            # A table's second column begins behind two spaces or more.
            column = max((match.end() for match in re.finditer(r"(?<=\S)\s{2,}(?=\S)", line)), default=0)
            column = column or len(line) - len(line.lstrip())
            wrapped = wrap(
                line,
                width,
                subsequent_indent=" " * min(column, width // 2),
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
                replace_whitespace=False,
            )
            lines += [indent + piece for piece in wrapped or [""]]
        return "\n".join(lines)


def columns() -> int:
    """Characters in a line of the terminal, as shutil finds out."""
    text = os.environ.get("COLUMNS", "")
    if text.isdecimal() and int(text):
        return int(text)
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def spare_threads() -> None:
    """Have numpy start no threads for linear algebra: no dump needs it, and they cost as much CPU as all the rest."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def secure_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed, lest a dump gets its descriptor."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > _STDERR:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # they live as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def warn(message: str, hint: str | None = None, *, prog: str = PROG) -> None:
    """Print a one-line message, and a hint, on stderr; a stderr that is closed is no reason to fail."""
    lines = [f"{prog}: {one_line(message)}"]
    if hint:
        lines.append(f"hint: {one_line(hint)}")
    try:
        print("\n".join(lines), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def print_error(exc: DumpfsError, *, prog: str = PROG) -> None:
    """Print an expected failure on stderr: `dumpfs: message`, and `hint: ...` where there is one."""
    warn(exc.message, exc.hint, prog=prog)


def write_stdout(data: bytes | memoryview) -> None:
    """Write bytes to standard output, past the text layer.

    Raises:
        OSError: it cannot be written; `main` turns that into a message (BrokenPipeError ends quietly).
    """
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def silence_stdout() -> None:
    """Point stdout at /dev/null, so that the interpreter's last flush after a broken pipe says nothing."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes 40 ms once numpy is loaded.

    What asked to be called at the end is, and output is flushed; whether that could be written, `run` has seen before.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)


def add_dump_arguments(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Add `DUMP...` (or one `DUMP`) and `-o` for the options that say how to read it."""
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTION[,OPTION...]",
        action="append",
        default=[],
        help="how to read the dump (see dumpfs(1), mount options); may be repeated",
    )
    parser.add_argument(
        "dump",
        metavar="DUMP",
        nargs="+" if several else 1,
        help="dump file; every part of a split set; or a folder that holds one dump",
    )


def open_options(args: argparse.Namespace) -> OpenOptions:
    """The `OpenOptions` of `-o`.

    Raises:
        UsageError: an option is unknown, malformed, or concerns mounting only.
    """
    from dumpfs.fuse.options import parse_open_options

    return parse_open_options(args.options)


def open_dump(args: argparse.Namespace) -> Dump:
    """The dump that `add_dump_arguments`'s arguments name; the caller closes it.

    Raises:
        DumpfsError: it cannot be opened, or the options are wrong.
    """
    from dumpfs.vfs.context import Dump

    options = open_options(args)
    return Dump.open(args.dump, options)
