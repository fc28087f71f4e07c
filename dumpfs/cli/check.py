"""`dumpfs check`: read every page of a dump and count the ones that cannot be read."""

from __future__ import annotations

import argparse
import json
import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING

from dumpfs.cli.common import add_dump_arguments, one_line, open_dump
from dumpfs.cli.progress import Progress
from dumpfs.units import PageState, render_size

if TYPE_CHECKING:
    from dumpfs.formats.base import DumpImage
    from dumpfs.memory.scan import BadRange, ScanTotals
    from dumpfs.vfs.context import Dump

DESCRIPTION = """\
Read every page of a dump and count the ones that cannot be read.

exit codes: 0 every stored page can be read and the dump is complete, 4 a page is corrupt,
5 a library to decompress them is missing, 8 the dump is incomplete or pages are lost,
130 interrupted."""

EPILOG = """\
examples:
  dumpfs check dump.kdump
  dumpfs check -q dump.kdump && echo good
  dumpfs check --json dump.1 dump.2
"""

_SCHEMA = 1
"""Counts incompatible changes of the JSON names."""
_SHOWN_RANGES = 20
"""Bad ranges printed for a person."""
_JSON_RANGES = 1000
"""Bad ranges listed with --json."""
_MAX_JOBS_PER_PROCESSOR = 4
"""More processes than that only get in each other's way, whatever --jobs asks for."""
_BYTES_PER_JOB = 64 << 20
"""A further process is worth its start for every this many bytes of pages."""

EXIT_CORRUPT = 4
EXIT_INCOMPLETE = 8
EXIT_INTERRUPTED = 128 + signal.SIGINT


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing; the exit code tells")
    parser.add_argument(
        "--jobs", metavar="N", type=_positive, default=None, help="processes that decode (default: one per processor)"
    )
    add_dump_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    with closing(open_dump(args)) as dump:
        totals, interrupted = _scan(dump, args)
        need_codecs(dump.image, totals)
        report = build_report(dump, totals, interrupted)
    if not args.quiet:
        print(json.dumps(report, indent=2) if args.json else render_report(report))
    return exit_code(report)


def _scan(dump: Dump, args: argparse.Namespace) -> tuple[ScanTotals, bool]:
    """Read all pages; the second value is True when the user interrupted it."""
    from dumpfs.memory.allocator import keep_freed_memory
    from dumpfs.memory.scan import ScanTotals, scan_image

    image = dump.image
    block_size = image.meta.block_size
    total = image.stored.count() * block_size
    keep_freed_memory()
    processors = len(os.sched_getaffinity(0))
    jobs = min(args.jobs or processors, _MAX_JOBS_PER_PROCESSOR * processors)
    totals = ScanTotals()
    totals.add_lost(image.lost)
    results = scan_image(image, max(min(jobs, total // _BYTES_PER_JOB + 1), 1))
    with Progress("checking", 0 if args.quiet else total) as progress:
        if args.quiet:
            progress.active = False
        try:
            for result in results:
                totals.add(result)
                progress.advance(result.members * block_size)
        except KeyboardInterrupt:
            return totals, True
        finally:
            results.close()
    return totals, False


def need_codecs(image: DumpImage, totals: ScanTotals) -> None:
    """Refuse a verdict on pages that could not be decoded for want of a library: they may well be good.

    Raises:
        CodecUnavailableError: it names the package to install.
    """
    from dumpfs.codecs.registry import CODEC_MASK, codec

    for item in totals.bad_ranges()[:_JSON_RANGES]:
        info = image.info(item.first)
        if item.state is PageState.CORRUPT and info.state is PageState.STORED and info.flags & CODEC_MASK:
            codec(info.flags & CODEC_MASK)


def build_report(dump: Dump, totals: ScanTotals, interrupted: bool) -> dict[str, object]:
    """What `--json` prints; counts are kernel pages, `pfn`s are kernel page frame numbers."""
    image = dump.image
    meta = image.meta
    scale = meta.block_size // dump.page_size
    shift = meta.first_paddr // dump.page_size
    counts = {state: totals.counts[state] * scale for state in PageState}
    ram = image.ram.count() * scale
    found = sum(counts[s] for s in (PageState.STORED, PageState.PARTIAL, PageState.LOST, PageState.CORRUPT))
    ranges = totals.bad_ranges()
    bad = [_bad_entry(dump, r, scale, shift) for r in ranges[:_JSON_RANGES]]
    return {
        "schema": _SCHEMA,
        "dump": list(dump.paths),
        "result": _verdict(counts, meta.complete, interrupted),
        "complete": meta.complete,
        "incomplete_reason": meta.incomplete_reason,
        "page_size": dump.page_size,
        "pages": {
            "ram": ram,
            "readable": counts[PageState.STORED] + counts[PageState.PARTIAL],
            "partial": counts[PageState.PARTIAL],
            "excluded": None if interrupted else ram - found,
            "lost": counts[PageState.LOST],
            "corrupt": counts[PageState.CORRUPT],
        },
        "bad": bad,
        "bad_omitted": len(ranges) - len(bad) + totals.dropped,
    }


def _bad_entry(dump: Dump, item: BadRange, scale: int, shift: int) -> dict[str, object]:
    state, detail = dump.image.read_page(item.first)[1:]
    return {
        "state": item.state.name.lower(),
        "first": shift + item.first * scale,
        "stop": shift + item.stop * scale,
        "detail": detail if state == item.state else "",
    }


def _verdict(counts: dict[PageState, int], complete: bool, interrupted: bool) -> str:
    if interrupted:
        return "interrupted"
    if counts[PageState.CORRUPT]:
        return "corrupt"
    if counts[PageState.LOST] or not complete:
        return "incomplete"
    return "clean"


_EXIT_CODES = {"clean": 0, "corrupt": EXIT_CORRUPT, "incomplete": EXIT_INCOMPLETE, "interrupted": EXIT_INTERRUPTED}


def exit_code(report: dict[str, object]) -> int:
    """The exit code that goes with a report."""
    return _EXIT_CODES[str(report["result"])]


def render_report(report: dict[str, object]) -> str:
    """The report for a person."""
    pages, bad, page_size = report["pages"], report["bad"], report["page_size"]
    assert isinstance(pages, dict)
    assert isinstance(bad, list)
    assert isinstance(page_size, int)
    lines = []
    for name in ("ram", "readable", "partial", "excluded", "lost", "corrupt"):
        count = pages[name]
        if count is None or (name == "partial" and not count):
            continue
        size = f"  {render_size(count * page_size):>10}" if count else ""
        lines.append(f"{name:<9}{count:>12} pages{size}")
    corrupt = [entry for entry in bad if entry["state"] == "corrupt"]
    lines += [_render_range(entry) for entry in corrupt[:_SHOWN_RANGES]]
    if corrupt[_SHOWN_RANGES:]:
        lines.append(f"... and {len(corrupt) - _SHOWN_RANGES} more ranges of corrupt pages, which --json lists")
    lines += _render_lost([entry for entry in bad if entry["state"] == "lost"])
    return "\n".join([*lines, one_line(_render_verdict(report, pages))])


def _render_range(entry: dict[str, object]) -> str:
    first, stop = int(str(entry["first"])), int(str(entry["stop"]))
    what = f"page {first:#x}" if stop == first + 1 else f"pages {first:#x} to {stop - 1:#x} ({stop - first})"
    why = f": {entry['detail']}" if entry["detail"] else ""
    return one_line(f"{what}: {entry['state']}{why}")


def _render_lost(entries: list[dict[str, object]]) -> list[str]:
    """One line for each reason: lost pages come in hundreds of ranges with excluded pages between them."""
    reasons: dict[str, list[tuple[int, int]]] = {}
    for entry in entries:
        reasons.setdefault(str(entry["detail"]), []).append((int(str(entry["first"])), int(str(entry["stop"]))))
    lines = []
    for why, ranges in reasons.items():
        count = sum(stop - first for first, stop in ranges)
        whole = {"state": "lost", "first": ranges[0][0], "stop": ranges[-1][1], "detail": why}
        few = len(ranges) == 1
        lines.append(_render_range(whole) if few else f"{count} of the {_render_range(whole)}")
    return lines


def _render_verdict(report: dict[str, object], pages: dict[str, int]) -> str:
    dump = report["dump"]
    assert isinstance(dump, list)
    result = report["result"]
    text = f"{', '.join(dump)}: {result}"
    if result == "clean":
        return f"{text}: every stored page can be read"
    if result == "interrupted":
        return f"{text}: the counts above are of what was read so far"
    if result == "incomplete" and report["incomplete_reason"]:
        return f"{text}: {report['incomplete_reason']}"
    return f"{text}: {pages['corrupt'] + pages['lost']} pages cannot be read"
