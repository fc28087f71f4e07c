"""The raw numbers of earlier runs, and what the machine is."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from barlib import CACHE, DUMPFS, ROOT, VENV_BIN, big, run
from readlib import stored_runs

from page.measure import Plan, Row, Section

Kept = dict[str, Any]


def _path(plan: Plan) -> Path:
    return CACHE / ("results-quick.json" if plan.quick else "results.json")


def load(plan: Plan) -> Kept:
    """What was kept: section name to its rows and circumstances."""
    path = _path(plan)
    return json.loads(path.read_text()) if path.exists() else {}


def keep(plan: Plan, section: Section, rows: list[Row], seconds: float, load_before: float) -> None:
    """Replace what was kept of a section."""
    kept = load(plan)
    kept[section.name] = {
        "rows": [asdict(row) for row in rows],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(seconds),
        "load": round(load_before, 1),
        "pages": sum(stop - first for first, stop in stored_runs(big("lzo-d0.kdump"))),
        "machine": machine(),
        "versions": versions(),
    }
    part = _path(plan).with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1, ensure_ascii=False))
    part.rename(_path(plan))


def rows_of(kept: Kept, name: str) -> list[Row]:
    """The rows of a section, as they were measured."""
    return [Row(**row) for row in kept[name]["rows"]]


def _field(path: str, key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1].strip() if found else ""


def machine() -> str:
    """What was measured on, in a line that names neither it nor its owner."""
    vendor = _field("/proc/cpuinfo", "vendor_id") or "unknown"
    virtual = ", virtual" if " hypervisor" in _field("/proc/cpuinfo", "flags") else ""
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20)
    kernel = re.match(r"\d+\.\d+", platform.release())
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} processors ({platform.machine()}, {vendor}{virtual}), {memory:.0f} GiB, Linux {kernel and kernel[0]}"
    )


def versions() -> dict[str, str]:
    """dumpfs and what it is compared with."""
    found = {"dumpfs": _first(r"[\d.]+\S*", DUMPFS, "--version"), "Python": platform.python_version()}
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD")
    if commit.returncode == 0:
        found["dumpfs"] += f" ({commit.stdout.decode().strip()})"
    for package in ("pyfuse3", "drgn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["libfuse"] = _first(r"[\d.]+", "pkg-config", "--modversion", "fuse3")
    found["libkdumpfile"] = _first(r"[\d.]+", "pkg-config", "--modversion", "libkdumpfile")
    found["crash"] = _first(r"crash ([\d.]+)", "crash", "--version")
    found["makedumpfile"] = _first(r"version ([\d.]+)", "makedumpfile", "-v")
    found["gdb"] = _first(r"([\d.]+)\s*$", "gdb", "--version")
    found["drgn"] = found.get("drgn") or _first(r"[\d.]+", VENV_BIN / "drgn", "--version")
    return {name: text for name, text in found.items() if text}


def _first(pattern: str, *command: str | Path) -> str:
    try:
        result = run(*command)
    except OSError:
        return ""
    found = re.search(pattern, (result.stdout + result.stderr).decode(errors="replace"), re.MULTILINE)
    return found[found.lastindex or 0] if found else ""
