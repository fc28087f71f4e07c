"""`dumpfs info` of several dumps: whole, one after the other, or of a folder of them as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from dumpfs.cli.common import columns, one_line, open_options, print_error
from dumpfs.cli.render import render_facts
from dumpfs.errors import DumpfsError

_UNKNOWN = "-"
_MIN_PANIC = 24
"""Characters of the last column, however narrow the terminal."""


def separate_dumps(paths: Sequence[str]) -> bool:
    """Whether several files are dumps of their own, as far as they are dumps, and none is a part of a set."""
    from dumpfs.formats import open_image
    from dumpfs.formats.pieces import split_address

    found = 0
    if any(split_address(path)[1] is not None for path in paths):
        return False
    for path in paths:
        try:
            with closing(open_image([path])) as image:
                sub = image.meta.header.get("sub")
                if isinstance(sub, dict) and sub.get("split"):
                    return False
                found += 1
        except DumpfsError:
            continue
    return found > 0


def print_each(paths: Sequence[str], args: argparse.Namespace) -> int:
    """Facts of each dump under its name; with --json a list. Returns the exit code of the first that fails, or 0."""
    code = 0
    told = []
    for path in paths:
        facts, error = _facts(path, args)
        code = code or (error.exit_code if error is not None else 0)
        if args.json:
            told.append({"path": one_line(path), **(facts or _error_facts(error))})
            continue
        print(f"==> {one_line(path)} <==")
        if facts is not None:
            print(render_facts(facts))
        elif error is not None:
            print_error(error)
        print(flush=True)
    if args.json:
        print(json.dumps(told, indent=2))
    return code


def print_table(folder: str, args: argparse.Namespace) -> int:
    """A line for each dump in a folder, and in the folders in it; with --json a list. Returns as `print_each`.

    Raises:
        DumpfsError: there is none.
    """
    from dumpfs.formats.detect import find_dumps

    paths = find_dumps(folder)
    if args.json:
        return print_each(paths, args)
    code = 0
    rows: list[tuple[str, ...]] = [("dump", "crashed", "kernel", "state", "panic")]
    for path in paths:
        facts, error = _facts(path, args)
        code = code or (error.exit_code if error is not None else 0)
        name = path.removeprefix(folder.rstrip("/") + "/")
        rows.append((name, *(_row(facts) if facts is not None else (*[_UNKNOWN] * 2, "error", _reason(error, path)))))
    widths = [max(len(one_line(row[i])) for row in rows) for i in range(4)]
    room = max(columns() - sum(widths) - 2 * len(widths), _MIN_PANIC)
    for row in rows:
        cells = [f"{one_line(cell):<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join((*cells, _cut(one_line(row[4]), room))).rstrip())
    return code


def _facts(path: str, args: argparse.Namespace) -> tuple[dict[str, Any] | None, DumpfsError | None]:
    """Facts of a dump, or why there are none: one bad dump must not hide the others."""
    from dumpfs.cli.info import gather_facts
    from dumpfs.vfs.context import Dump

    try:
        with closing(Dump.open([path], open_options(args))) as dump:
            return gather_facts(dump), None
    except DumpfsError as exc:
        return None, exc


def _reason(error: DumpfsError | None, path: str) -> str:
    return "" if error is None else error.message.removeprefix(f"{path}: ")


def _error_facts(error: DumpfsError | None) -> dict[str, Any]:
    if error is None:
        return {}
    hint = one_line(error.hint) if error.hint else None
    return {"error": one_line(error.message), "hint": hint, "exit": error.exit_code}


def _row(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """When, which kernel, how complete, and of what it died."""
    kernel, crash = facts["kernel"] or {}, facts["crash"]
    seconds = kernel.get("crash_time") or facts["dump"]["timestamp"]
    try:
        when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else _UNKNOWN
    except (ValueError, OverflowError, OSError):
        when = _UNKNOWN
    release = kernel.get("release") or facts["dump"]["uts"]["release"] or _UNKNOWN
    state = "complete" if facts["dump"]["complete"] else "incomplete"
    panic = crash["panic"] or (f"unknown: {crash['problem']}" if crash["problem"] else _UNKNOWN)
    return when, release, state, panic.removeprefix("Kernel panic - not syncing: ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
