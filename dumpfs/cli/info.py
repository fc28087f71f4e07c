"""`dumpfs info`: what a dump is and what its kernel died of, or whether a vmlinux belongs to it."""

from __future__ import annotations

import argparse
import json
import os
from bisect import bisect_right
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from dumpfs.cli.cat import find_file
from dumpfs.cli.common import add_dump_arguments, one_line, open_dump
from dumpfs.cli.render import render_facts
from dumpfs.errors import DumpfsError, FormatError, UsageError, ViewError

if TYPE_CHECKING:
    from dumpfs.formats.base import DumpImage
    from dumpfs.linux.identity import KernelMatch
    from dumpfs.vfs.context import Dump

DESCRIPTION = """\
Tell what a dump is and what its kernel died of. Several dumps are told of one after
the other, a folder of dumps, or of folders such as /var/crash, as a table.

With --vmlinux: tell whether that file is the vmlinux of the kernel that crashed;
exit 0 if it is, 1 if it is not or if that cannot be told."""

EPILOG = """\
examples:
  dumpfs info dump.kdump
  dumpfs info --json dump.kdump | jq .crash.panic
  dumpfs info --vmlinux vmlinux dump.kdump
  dumpfs info /var/crash
"""

_SAMPLE = 256
"""Page records looked at for the mix of codecs."""
_MATCH_SCHEMA = 1
_SEARCHED_BYTES = 1 << 30
"""Stored memory that is searched for VMCOREINFO: some seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON: what /info.json has, and more")
    parser.add_argument("--vmlinux", metavar="FILE", help="tell whether this is the dumped kernel's vmlinux")
    add_dump_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    try:
        dump = open_dump(args)
    except (FormatError, UsageError):
        code = _many(args) if args.vmlinux is None else None
        if code is None:
            raise
        return code
    with closing(dump):
        if args.vmlinux is not None:
            match = match_vmlinux(dump, args.vmlinux)
            facts: dict[str, object] = {"schema": _MATCH_SCHEMA} | asdict(match)
            print(json.dumps(facts, indent=2) if args.json else one_line(match.sentence))
            return 0 if match.matches else 1
        facts = gather_facts(dump)
    print(json.dumps(facts, indent=2) if args.json else render_facts(facts))
    return 0


def _many(args: argparse.Namespace) -> int | None:
    """Tell of dumps that are no single one: the exit code, or None where they are not several dumps."""
    from dumpfs.cli.info_many import print_each, print_table, separate_dumps
    from dumpfs.formats.detect import find_dumps

    if len(args.dump) > 1:
        return print_each(args.dump, args) if separate_dumps(args.dump) else None
    folder = args.dump[0]
    return print_table(folder, args) if os.path.isdir(folder) and find_dumps(folder) else None


def gather_facts(dump: Dump) -> dict[str, object]:
    """What /info.json has, and what costs more: the end of the log and a sample of the page records."""
    from dumpfs.linux.panic import find_panic
    from dumpfs.vfs.views.info import build_info, kernel_facts

    facts = build_info(dump)
    log, problem = read_log(dump)
    panic = find_panic(log.text)
    if dump.kernel is not None and not problem:
        facts["kernel"] = kernel_facts(dump.kernel.deep)  # reading the log has searched for what was missing
    crash: dict[str, object] = {"panic": panic.headline} | asdict(panic) | {"problem": problem}
    crash |= {"log_gaps": log.gaps, "log_source": log.source}
    return facts | {"crash": crash, "codecs": sample_codecs(dump.image)}


class Log(NamedTuple):
    """The kernel log, and how much it is worth."""

    text: str = ""
    gaps: int = 0
    """Places of it where something is missing."""
    source: str | None = None
    """Name of the file beside the dump that it is from; None for memory."""


def read_log(dump: Dump) -> tuple[Log, str]:
    """The kernel log, and why it cannot be had, or ''; a large dump is not searched for it."""
    from dumpfs.vfs.views.dmesg import DmesgFile

    try:
        if dump.vmcoreinfo_text is None and dump.searched_bytes > _SEARCHED_BYTES:
            raise ViewError('the dump carries no VMCOREINFO; "dumpfs dmesg" searches its memory, which takes time')
        node = find_file(dump, "dmesg")
        text = node.read(0, node.size()).decode("utf-8", "replace")
    except DumpfsError as exc:
        return Log(), exc.message
    if not isinstance(node, DmesgFile):
        return Log(text), ""
    return Log(text, node.gaps, node.source or None), ""


def sample_codecs(image: DumpImage) -> dict[str, int]:
    """How some stored pages, spread evenly, are stored: counts by codec, and of states where they are bad."""
    stored = image.stored
    total = stored.count()
    counts: Counter[str] = Counter()
    for i in range(min(total, _SAMPLE)):
        index = i * total // min(total, _SAMPLE)
        # The first pfn with more than `index` members below it is one past the member of that number.
        pfn = bisect_right(range(stored.stop + 1), index, key=stored.rank) - 1
        info = image.info(pfn)
        counts[info.codec or info.state.name.lower()] += 1
    return dict(counts.most_common())


def match_vmlinux(dump: Dump, path: str) -> KernelMatch:
    """Whether the vmlinux at `path` is the dumped kernel's.

    Raises:
        DumpfsError: the file cannot be read as an ELF file.
    """
    from dumpfs.linux.identity import match_kernel, read_identity
    from dumpfs.linux.same_kernel import match_vmlinux as match

    kernel = dump.kernel
    if kernel is None:
        return match_kernel(read_identity(path), None, "", "")
    banner = next((line for line in read_log(dump)[0].text.splitlines() if "Linux version " in line), "")
    _, mark, text = banner.partition("Linux version ")
    return match(kernel, path, mark + text)
