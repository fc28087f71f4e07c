"""Command line of bench/run, after it has set everything up."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

from barlib import ROOT, Missing, say  # noqa: E402

from page import debuggers, forms, plot, reading, render, starting, store, writing  # noqa: E402
from page.measure import ORDER, SECTIONS, Plan  # noqa: E402

_MODULES = (reading, starting, debuggers, writing)  # importing them fills SECTIONS


def main() -> int:
    """Measure the sections asked for, keep them, write the page of all that is kept."""
    parser = argparse.ArgumentParser(prog="bench/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and bytes: a few minutes")
    parser.add_argument("--only", metavar="SECTION,...", help=f"of: {', '.join(ORDER)}")
    parser.add_argument("--no-measuring", action="store_true", help="write the page of what earlier runs kept")
    parser.add_argument("--out", type=Path, default=ROOT / "bench", help="folder for the page (default: bench)")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(ORDER)
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    plan = Plan(arguments.quick)
    if not arguments.no_measuring:
        try:
            forms.make_all()
        except Missing as exc:
            parser.error(str(exc))
        for name in ORDER:
            if name in wanted:
                measure(name, plan)
    write_page(plan, arguments.out)
    return 0


def measure(name: str, plan: Plan) -> None:
    """Measure a section and keep it."""
    section = SECTIONS[name]
    say(f"{section.title} ...")
    load, start = os.getloadavg()[0], time.monotonic()
    rows = list(section.measure(plan))
    store.keep(plan, section, rows, time.monotonic() - start, load)
    say(f"{section.title}: {time.monotonic() - start:.0f} s")


def write_page(plan: Plan, folder: Path) -> None:
    """RESULTS.md and its plot."""
    kept = store.load(plan)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(render.page(plan, kept))
    if not plot.draw(kept, folder / render.PLOT):
        say("matplotlib is not installed: the plot stays as it was")
    say(f"wrote {folder / 'RESULTS.md'}")


sys.exit(main())
