"""usage: python -m tests.fuzz [--seconds N | --cases N] [--jobs N] [--folder F] [BASE ...]
python -m tests.fuzz --replay BASE:NUMBER | --shrink BASE:NUMBER | --list
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz import bases
from tests.fuzz.campaign import Campaign
from tests.fuzz.worker import run_cases


def main() -> int:
    """Exit status 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("bases", nargs="*", metavar="BASE", help="names or their beginnings; all")
    parser.add_argument("--seconds", type=float, help="how long to run (60 unless --cases is given)")
    parser.add_argument("--cases", type=int, help="inputs for each base")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (one a processor)")
    parser.add_argument("--folder", type=Path, default=Path("fuzz-notes"), help="for notes and findings")
    parser.add_argument("--list", action="store_true", help="print the bases")
    parser.add_argument("--replay", metavar="CASE", help="run one case again")
    parser.add_argument("--shrink", metavar="CASE", help="find the least damage that does it, print it as a test")
    args = parser.parse_args()
    if args.list:
        for name in bases.names():
            print(name if bases.load(name) is not None else f"{name} (not there)")
        return 0
    if args.replay:
        return replay(args.replay)
    if args.shrink:
        from tests.fuzz.shrink import shrink

        return shrink(args.shrink)
    names = [n for n in bases.names() if not args.bases or any(n.startswith(word) for word in args.bases)]
    seconds = args.seconds if args.seconds is not None or args.cases is not None else 60
    tally = Campaign(names, args.folder, args.jobs).run(seconds=seconds, cases=args.cases)
    for name, count in sorted(tally.runs.items()):
        print(f"{count:9,} {name}")
    print(tally)
    return 1 if tally.findings else 0


def replay(case: str) -> int:
    """Run one case in this process."""
    name, _, number = case.rpartition(":")
    with TemporaryDirectory() as folder:
        _, findings = run_cases(name, range(int(number), int(number) + 1), Path(folder), lambda seed, text: None)
    for finding in findings:
        cost = f"{finding.seconds:.1f} s, {finding.memory >> 20} MiB"
        print(f"{finding.kind} at {finding.stage} ({cost})\n{finding.what}")
    return 1 if findings else 0


sys.exit(main())
