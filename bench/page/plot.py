"""The page's plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page.measure import OURS, Row
from page.store import Kept, rows_of

_COLOURS = {OURS: "#0b6e4f", "buffered": "#6bbf9c", "libkdumpfile": "#c1502e", "passthrough": "#9a9a9a"}
_CODECS = ("zlib", "lzo", "snappy", "zstd")
_READERS = (1, 2, 3, 4)
_SECONDS = (0.01, 0.1, 1, 10)
_TIMES = (0.5, 1, 2, 5, 10, 20)


def draw(kept: Kept, path: Path) -> bool:
    """Write the plot; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "dumpfs", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "svg.fonttype": "path"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 9), layout="constrained")
    panels = ((_sequential, "sequential"), (_readers, "parallel"), (_times, ""), (_writing, "writing"))
    for (panel, needs), ax in zip(panels, axes.flat, strict=True):
        if needs and needs not in kept:
            ax.set_axis_off()
            continue
        panel(ax, kept)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)
    pyplot.close(figure)
    return True


def _rows(kept: Kept, name: str) -> dict[str, Row]:
    return {row.title: row for row in rows_of(kept, name)} if name in kept else {}


def _sequential(ax: Any, kept: Kept) -> None:
    """MB/s of each codec, by reader."""
    rows = _rows(kept, "sequential")
    bars = [
        (OURS, "O_DIRECT", OURS, "dumpfs /hmem, O_DIRECT"),
        (OURS, "buffered", "buffered", "dumpfs /hmem, buffered"),
        ("libkdumpfile", "O_DIRECT", "libkdumpfile", "libkdumpfile, in process"),
    ]
    width = 0.8 / len(bars)
    for number, (side, mode, colour, label) in enumerate(bars):
        chosen = [rows[f"{codec}, /hmem, {mode}"] for codec in _CODECS]
        at = [i + (number - 1) * width for i in range(len(chosen))]
        heights = [row.middle(side) for row in chosen]
        ax.bar(at, heights, width, label=label, color=_COLOURS[colour])
        if side == OURS:
            for x, height, row in zip(at, heights, chosen, strict=True):
                ax.text(x, height, f"{row.ratio('libkdumpfile'):.1f}×", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(_CODECS)), _CODECS)
    ax.set_ylabel("MB of memory per second")
    ax.set_title("Sequential reading, dd bs=8M, caches dropped (×: beside libkdumpfile)")
    ax.set_ylim(top=ax.get_ylim()[1] * 1.25)
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def _readers(ax: Any, kept: Kept) -> None:
    """Random reads of 1 to 4 readers."""
    rows = _rows(kept, "parallel")
    for codec, style in (("zlib", "-"), ("lzo", "--")):
        if f"{codec}, random, 1 reader" not in rows:
            continue  # a quick run has zlib only
        chosen = [rows[f"{codec}, random, {n} reader{'s' * (n > 1)}"] for n in _READERS]
        for side in (OURS, "libkdumpfile"):
            label = f"{side}, {codec}" + (" (one loop, in process)" if side != OURS else "")
            heights = [row.middle(side) / 1000 for row in chosen]
            ax.plot(_READERS, heights, style, marker="o" * (side == OURS), color=_COLOURS[side], label=label)
    ax.set_xticks(_READERS)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("readers at once")
    ax.set_ylabel("1000 reads of 4 KiB per second")
    ax.set_title("Random reading, O_DIRECT")
    ax.legend(frameon=False, fontsize=8)


def _times(ax: Any, kept: Kept) -> None:
    """Waiting times: the log, opening, gdb."""
    wanted = (
        ("log", "log, caches dropped", "kernel log, cold"),
        ("log", "log, everything cached", "kernel log, cached"),
        ("open", "lzo", "open lzo"),
        ("open", "lzo, flattened", "open flattened"),
        ("open", "1 TiB, sparse", "open 1 TiB"),
        ("gdb", "with the vmlinux, first time", "gdb stacks, first"),
        ("gdb", "with the vmlinux, second time", "gdb stacks, again"),
        ("programs", "drgn, every inode", "drgn inodes"),
        ("programs", "crash, foreach bt", "crash foreach bt"),
    )
    marks = {OURS: "o", "libkdumpfile": "s", "drgn": "^", "crash": "v", "makedumpfile": "D", "local file": "x"}
    shown: dict[str, tuple[list[float], list[int]]] = {}
    labels = []
    for name, title, label in wanted:
        row = _rows(kept, name).get(title)
        if row is not None:
            for side in row.values:
                xs, ys = shown.setdefault(side, ([], []))
                xs.append(row.middle(side))
                ys.append(len(labels))
            labels.append(label)
    for side, (xs, ys) in shown.items():
        colour = _COLOURS.get(side, "#444444")
        ax.plot(xs, ys, linestyle="", marker=marks.get(side, "P"), color=colour, label=side, zorder=2 + (side == OURS))
    if not shown:
        ax.set_axis_off()
        return
    ax.set_xscale("log")
    ax.set_xticks(_SECONDS, [f"{tick:g}" for tick in _SECONDS])
    ax.minorticks_off()
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.grid(axis="y", color="#dddddd")
    ax.set_xlabel("seconds (logarithmic); left is faster")
    ax.set_title("Waiting for an answer")
    ax.legend(frameon=False, fontsize=8)


def _writing(ax: Any, kept: Kept) -> None:
    """Times as fast as makedumpfile, each form."""
    rows = [row for row in _rows(kept, "writing").values() if row.ratios("makedumpfile")]
    values = [row.ratio("makedumpfile") for row in rows]
    colours = [_COLOURS[OURS if value >= 1 else "buffered"] for value in values]
    ax.barh([row.title for row in rows], [value - 1 for value in values], left=1, color=colours)
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        ax.text(max(value, 1), number, f" {value:.1f}× ({row.middle(OURS):.1f} s)", va="center", fontsize=8)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xticks(_TIMES, [f"{tick:g}" for tick in _TIMES])
    ax.minorticks_off()
    ax.set_xlim(min(*values, 0.5) / 1.3, max(*values, 2) * 3)
    ax.invert_yaxis()
    ax.set_xlabel("times as fast as makedumpfile (line: equal)")
    ax.set_title("Writing dumps")
