"""bench/RESULTS.md from what was kept."""

from __future__ import annotations

from barlib import PAGE

from page.measure import CEILINGS, ORDER, OURS, SECTIONS, Plan, Row
from page.store import Kept, rows_of

PLOT = "RESULTS.svg"
_DRAW = 0.03
"""Ratios this near to 1 are neither a gain nor a loss: runs differ by more."""


def _number(value: float, unit: str) -> str:
    if unit in ("s", "CPU s"):
        return f"{value:.3f} {unit}" if value < 0.1 else f"{value:.2f} {unit}"
    return f"{value:,.0f} {unit}"


def _absolute(row: Row, side: str) -> str:
    values = row.values.get(side)
    if not values:
        return "–"
    text = _number(row.middle(side), row.unit)
    if len(values) > 1 and side == OURS:  # the others' spread shows in the ratios
        low, high = (_number(v, row.unit).removesuffix(row.unit).strip() for v in (min(values), max(values)))
        text += f" ({low}–{high})"
    return text


def _ratio(row: Row, peer: str) -> str:
    ratios = row.ratios(peer)
    if not ratios:
        return "–"
    text = f"**{row.ratio(peer):.2f}**"
    return text + (f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else "")


def _peers(rows: list[Row]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys([*row.values, *row.missing])
    found.pop(OURS, None)
    return list(found)


def table(rows: list[Row]) -> list[str]:
    """A table with the ratio columns first, and below it why a cell is empty."""
    peers = _peers(rows)
    heads = ["", *(f"× {peer}" for peer in peers), OURS, *peers]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [row.title, *(_ratio(row, peer) for peer in peers), *(_absolute(row, side) for side in (OURS, *peers))]
        lines.append("| " + " | ".join(cells) + " |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for side, why in row.missing.items():
            reasons.setdefault(f"{side}: {why}", []).append(row.title)
    if reasons:
        lines.append("")
        lines += [f"* no value for {why} ({'; '.join(titles)})" for why, titles in reasons.items()]
    return lines


_GLANCE = (
    ("sequential", "zlib, /hmem, O_DIRECT", "libkdumpfile"),
    ("sequential", "lzo, /hmem, O_DIRECT", "libkdumpfile"),
    ("sequential", "snappy, /hmem, O_DIRECT", "libkdumpfile"),
    ("sequential", "zstd, /hmem, O_DIRECT", "libkdumpfile"),
    ("sequential", "zlib, /hmem, buffered", "libkdumpfile"),
    ("parallel", "zlib, random, 4 readers", "libkdumpfile"),
    ("parallel", "lzo, random, 4 readers", "libkdumpfile"),
    ("log", "log, caches dropped", "crash"),
    ("log", "log, caches dropped", "drgn"),
    ("open", "lzo, flattened", "crash"),
    ("gdb", "with the vmlinux, first time", "local file"),
    ("gdb", "with the vmlinux, second time", "local file"),
    ("programs", "strings /hmem", "local file"),
    ("programs", "drgn, every inode", "tool alone"),
    ("programs", "crash, foreach bt", "tool alone"),
    ("writing", "write -c -d 0", "makedumpfile"),
    ("writing", "write -l -d 0", "makedumpfile"),
    ("writing", "refilter zlib 0 to 17", "makedumpfile"),
)


def _glance(kept: Kept) -> list[str]:
    """The rows that matter most, each beside one peer."""
    lines = ["| × | as fast as | doing | dumpfs | the peer |", "|---:|---|---|---:|---:|"]
    for name, title, peer in _GLANCE:
        for row in rows_of(kept, name) if name in kept else []:
            if row.title == title and row.ratios(peer):
                what = f"{SECTIONS[name].title}: {title}"
                both = (_number(row.middle(side), row.unit) for side in (OURS, peer))
                lines.append(f"| **{row.ratio(peer):.2f}** | {peer} | {what} | {' | '.join(both)} |")
    return lines


def _behind(kept: Kept) -> list[str]:
    """Where a peer is faster, by section: in how many rows, and by how much."""
    lines = []
    for name in ORDER:
        rows = rows_of(kept, name) if name in kept else []
        for peer in _peers(rows):
            beside = [row for row in rows if row.ratios(peer)]
            slower = sorted((row.ratio(peer), row.title) for row in beside if row.ratio(peer) < 1 - _DRAW)
            if slower and peer not in CEILINGS:
                rest = f" to {slower[-1][0]:.2f} ({slower[-1][1]})" if len(slower) > 1 else ""
                lines.append(
                    f"* {SECTIONS[name].title}, beside {peer}: {len(slower)} of {len(beside)} rows, "
                    f"{slower[0][0]:.2f} ({slower[0][1]}){rest}"
                )
    return lines


def _circumstances(kept: Kept) -> list[str]:
    lines = []
    machines: dict[str, list[str]] = {}
    versions: dict[str, list[str]] = {}
    for name in ORDER:
        if name in kept:
            machines.setdefault(kept[name]["machine"], []).append(name)
            text = ", ".join(f"{who} {what}" for who, what in kept[name]["versions"].items())
            versions.setdefault(text, []).append(name)
    for texts, what in ((machines, "Machine"), (versions, "Versions")):
        for text, names in texts.items():
            lines.append(f"* {what}{f' ({chr(44).join(names)})' if len(texts) > 1 else ''}: {text}.")
    return lines


_METHOD = """\
Every ratio says **how many times as fast as the peer dumpfs is**: more than 1 is faster, of rates as of times. Times
are wall times; where CPU is meant, it is said.

* The dump is real: a Debian guest of 1280 MiB, crashed and saved by a capture kernel (`bench/guest`). It has programs,
  libraries, text, heaps and page cache, at dump level 0: {pages:,} stored pages, zero pages too, {nbytes:.2f} GB.
  makedumpfile wrote its zlib and lzo forms, `dumpfs write` those that Debian's makedumpfile cannot (snappy, zstd).
* What counts is bytes of stored pages. dumpfs and libkdumpfile read the same bytes in the same order, by one list, and
  a side that does not read them all fails the run; passthrough and local file read as many of an uncompressed file.
* The sides take turns, in reversed order every second time, with a fresh mount or process each time. A ratio is the
  median of the rounds' ratios, a value the median of the rounds' values; least and greatest in brackets.
* Caches are dropped (`drop_caches`) before each run of each side, or the inputs are read into the page cache before
  it; each section says which.
* dumpfs is measured through the kernel: FUSE, system calls and copies included, as any program sees it, with its
  default options. libkdumpfile is measured in process, in a C loop (`bench/peer_libkdumpfile.c`), as its users see it.
* *passthrough* is the ceiling: a FUSE file system in C (`bench/passthrough.c`, all threads that libfuse wants, the same
  read-ahead) that answers reads with bytes of an uncompressed file in the page cache. It decodes nothing.
* No result on this page was typed: `./bench/run` wrote it. Debian 12 on x86-64, root, 12 GB of disk:

      ./bench/run                             # all of it
      ./bench/run --quick                     # fewer rounds and bytes
      ./bench/run --only sequential,random    # parts; the others stay as they were measured
"""


def page(plan: Plan, kept: Kept) -> str:
    """The whole page."""
    lines = ["# How fast dumpfs is", ""]
    pages = max((part["pages"] for part in kept.values()), default=0)
    method = _METHOD.format(pages=pages, nbytes=pages * PAGE / 1e9)
    if plan.quick:
        lines += ["**A quick run**: fewer rounds, fewer bytes; see `./bench/run` for the real one.", ""]
    lines += [f"![ratios and rates]({PLOT})", "", *_glance(kept), "", "## Method", "", method]
    lines += _circumstances(kept)
    behind = _behind(kept)
    lines += ["", "## Where a peer is faster", ""]
    lines += [*(behind or ["Nowhere."]), "", f"Left out here: {' and '.join(sorted(CEILINGS))}, which decode nothing."]
    for name in ORDER:
        if name in kept:
            part, section = kept[name], SECTIONS[name]
            lines += ["", f"## {section.title}", "", section.about, "", *table(rows_of(kept, name))]
            lines += ["", f"*{part['date']}, {part['seconds']} s, load before: {part['load']}*"]
    absent = [name for name in ORDER if name not in kept]
    if absent:
        lines += ["", f"Not measured yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"
