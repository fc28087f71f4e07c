"""`dumpfs write`: make a dump from anything that can be read; its options are makedumpfile's."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from dumpfs.cli.common import one_line, print_error, warn
from dumpfs.cli.progress import Progress, render_duration
from dumpfs.cli.write_options import add_arguments, refuse_unsupported, resolve
from dumpfs.errors import DumpfsError, IncompleteDumpError
from dumpfs.units import render_size

if TYPE_CHECKING:
    from dumpfs.cli.write_options import Resolved
    from dumpfs.writer.pipeline.run import Hooks, WriteReport, WriteRequest
    from dumpfs.writer.plan import WritePlan

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments", "run"]

DESCRIPTION = """\
Make a dump from a dump: filter it, compress it, turn it into another format, join or split it.

The source is anything dumpfs reads, /proc/vmcore and a mounted dump (the mount point, or its vmcore) included.
Options are makedumpfile's; dumpfs-write(1) has the table of all of them.

exit codes: 0 written, 2 usage, 4 written but pages of the source could not be read, 8 incomplete or not written."""

EPILOG = """\
examples:
  dumpfs write -l -d 31 /proc/vmcore /var/crash/vmcore
  dumpfs write -E /var/crash/vmcore vmcore.elf
  dumpfs write -F -c -d 31 /proc/vmcore | ssh host 'dumpfs write -R vmcore'
"""

INTERMIXED = True
"""Options may stand between file names, as makedumpfile's users are used to."""
MESSAGE_PROGRESS, MESSAGE_COMMON, MESSAGE_ERROR, MESSAGE_DEBUG, MESSAGE_REPORT = 1, 2, 4, 8, 16
"""makedumpfile's --message-level bits."""
EXIT_PAGES_LOST = 4
_JSON_SCHEMA = 1
_WORDS = {
    "ram": "pages of memory",
    "zero": "zero pages",
    "cache": "cache pages without private data",
    "cache_private": "cache pages with private data",
    "user": "user pages",
    "free": "free pages",
    "hwpoison": "broken (hwpoison) pages",
    "offline": "offline pages",
}


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    resolved = resolve(args)
    refuse_unsupported(args)
    if args.check_params:
        return 0
    if resolved.action != "write":
        return _other(resolved, args)
    return _write(resolved, args)


def _other(resolved: Resolved, args: argparse.Namespace) -> int:
    from dumpfs.cli import write_actions

    if resolved.action == "rearrange":
        with _stoppable() as stop:
            return write_actions.rearrange(resolved, args, stop)
    action = {
        "dmesg": write_actions.dump_dmesg,
        "vmcoreinfo": write_actions.generate_vmcoreinfo,
        "vtop": write_actions.translate,
    }[resolved.action]
    return action(resolved, args)


class _Stop:
    """Whether a signal asked to stop."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self) -> str:
        return self.reason

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGINT, SIGTERM and SIGHUP. What waits for a pipe does not look: the second signal ends us."""
        if self.reason:
            from multiprocessing import active_children

            for worker in active_children():
                worker.kill()  # it may wait for the same pipe
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = f"ended by {signal.Signals(number).name}"


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop.heard) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _write(resolved: Resolved, args: argparse.Namespace) -> int:
    gc.disable()  # nothing that is being loaded is garbage: 8 ms
    from dumpfs.writer.pipeline.run import write_dump
    from dumpfs.writer.resume import OtherDumpError

    gc.freeze()
    gc.enable()
    level_index = 0
    anew = False
    with _stoppable() as stop:
        while True:
            request = resolved.request(level_index, anew=anew)
            reporter = _Reporter(args.message_level, stop)
            try:
                report = write_dump(request, reporter.hooks)
            except DumpfsError as exc:
                reporter.close()
                if isinstance(exc, OtherDumpError) and level_index + 1 < len(resolved.levels):
                    level_index += 1  # of a list of levels, it may be the next one's
                    continue
                if not args.message_level & MESSAGE_ERROR:
                    return exc.exit_code
                raise
            reporter.close()
            if not report.cause or level_index + 1 >= len(resolved.levels) or stop.reason or not report.totals.errno:
                break
            level_index += 1
            anew = True
            _drop(report)
            warn(f"{report.cause}: once more with -d {resolved.levels[level_index]}")
    return _tell(args, request, report, reporter)


def _drop(report: WriteReport) -> None:
    """Remove an incomplete dump that the next level of -d takes the place of."""
    for name in report.names:
        if os.path.isfile(name):  # a device is written over instead
            os.unlink(name)


class _Reporter:
    """Draws the progress bar and passes on what the writer has to say."""

    def __init__(self, message_level: int, stop: _Stop) -> None:
        from dumpfs.writer.pipeline.run import Hooks

        self._level = message_level
        self._bar: Progress | None = None
        self._page_size = 0
        self.elapsed = 0.0
        self.hooks: Hooks = Hooks(started=self._started, progress=self._progress, stop=stop, notice=self._notice)
        self.hooks.debug = self._debug

    def _started(self, plan: WritePlan) -> None:
        self._page_size = plan.facts.page_size
        self._bar = Progress("writing", plan.count * self._page_size)
        if not self._level & MESSAGE_PROGRESS:
            self._bar.active = False

    def _progress(self, pages: int) -> None:
        if self._bar is not None:
            self._bar.advance(pages * self._page_size)

    def _notice(self, text: str) -> None:
        if self._level & MESSAGE_COMMON:
            warn(text)

    def _debug(self, text: str) -> None:
        if self._level & MESSAGE_DEBUG:
            warn(text)

    def close(self) -> None:
        """Wipe the bar."""
        if self._bar is not None:
            self.elapsed = self._bar.elapsed
            self._bar.close()


def _tell(args: argparse.Namespace, request: WriteRequest, report: WriteReport, reporter: _Reporter) -> int:
    """Report, and return the exit code."""
    facts = _facts(request, report, reporter.elapsed)
    if args.json:
        print(json.dumps(facts, indent=2))
    elif request.dry_run or args.message_level & MESSAGE_REPORT:
        print(_statistics(report), file=sys.stdout if request.dry_run else sys.stderr)
    if report.cause or report.source_incomplete:
        error = _incomplete(report)
        if args.message_level & MESSAGE_ERROR:
            print_error(error)
        return error.exit_code
    if request.dry_run:
        return 0
    if args.message_level & MESSAGE_COMMON and not args.json:
        speed = report.totals.pages * report.plan.facts.page_size / max(reporter.elapsed, 1e-6) / 1e6
        warn(
            f"{', '.join(report.names)}: {report.totals.pages} pages, {render_size(report.totals.nbytes)} of data "
            f"in {render_duration(reporter.elapsed)} ({speed:.0f} MB/s)"
        )
    if report.totals.lost:
        if args.message_level & MESSAGE_ERROR:
            warn(f"{report.totals.lost} pages could not be read from the source and are marked as lost in the dump")
        return EXIT_PAGES_LOST
    return 0


def _incomplete(report: WriteReport) -> IncompleteDumpError:
    names = ", ".join(report.names) or "the dump"
    if report.cause:
        return IncompleteDumpError(
            f"{names}: {report.missing} of {report.plan.count} pages are missing: {report.cause}",
            hint="what is there can be read"
            + ("; the same command with --resume writes the rest" if report.resumable else ""),
        )
    return IncompleteDumpError(
        f"{names}: marked incomplete, as its source is: {report.source_incomplete}",
        hint="every page that the source has is there",
    )


def _facts(request: WriteRequest, report: WriteReport, elapsed: float) -> dict[str, object]:
    plan = report.plan
    return {
        "schema": _JSON_SCHEMA,
        "files": report.names,
        "complete": not report.cause and not report.source_incomplete,
        "cause": report.cause or report.source_incomplete,
        "level": request.level,
        "page_size": plan.facts.page_size,
        "pages": {
            "planned": plan.count,
            "written": report.totals.pages,
            "missing": report.missing,
            "lost": report.totals.lost,
            "shared_zero": report.totals.zero,
        },
        "classes": report.stats,
        "data_bytes": report.totals.nbytes,
        "estimated_bytes": None if report.estimate is None else report.estimate.nbytes,
        "seconds": round(elapsed, 3),
    }


def _statistics(report: WriteReport) -> str:
    plan = report.plan
    size = plan.facts.page_size
    lines = [f"{count:>12}  {_WORDS.get(name, one_line(name))}" for name, count in report.stats.items()]
    lines.append(f"{plan.count:>12}  pages to be stored, {render_size(plan.count * size)} before compression")
    if report.estimate is not None:
        text, sampled = render_size(report.estimate.nbytes), report.estimate.sampled
        if sampled:
            text = f"about {text}, judging by {sampled} of them"
        lines.append(f"{'':12}  as a file: {text}")
    return "\n".join(lines)
