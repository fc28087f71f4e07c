"""Bars of a tree that can be copied, and of storage that is slow."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from barlib import CORPUS, Measured, bar, corpus, mounted, now, tool, workdir

BIG = ("hmem", "vmcore", "vmcore-tasks", "vmcore-kern", "pages")
"""What nobody copies who copies the rest."""


def whole_dumps() -> list[str]:
    """Names of the corpus dumps that are one file."""
    names = {str(path.relative_to(CORPUS)).removesuffix(".xz") for path in CORPUS.rglob("*") if path.is_file()}
    endings = (".vmcore", ".elf", ".kdump", ".kdump-zlib", ".kdump-lzo", ".kdump-snappy")
    return sorted(name for name in names if name.endswith(endings))


def copies(tree: Path, target: Path) -> dict[str, Sequence[str | Path]]:
    """Commands that copy or search all but the big files, by name."""
    small = [tree / name for name in sorted(os.listdir(tree)) if name not in BIG]
    return {
        "cp": ["cp", "-r", *small, target],
        "rsync": [tool("rsync"), "-a", *(f"--exclude=/{name}" for name in BIG), f"{tree}/", target],
        "tar": ["tar", "-C", tree, *(f"--exclude=./{name}" for name in BIG), "-cf", target / "tar", "."],
        "grep": ["grep", "-rc", "", *small],
    }


@bar(
    "copying",
    "cp -r, rsync -a, tar and grep -r of all but the big files end with 0, on every corpus dump, right after mounting",
)
def copying() -> Measured:
    failed = []
    worst = 0.0
    names = whole_dumps()
    target = workdir() / "copy"
    for name in names:
        for tool_name in ("cp", "rsync", "tar", "grep"):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            with mounted(corpus(name)) as mount:
                begin = now()
                command = copies(mount.path, target)[tool_name]
                done = subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=300)
                worst = max(worst, now() - begin)
            if done.returncode:
                failed.append(f"{tool_name} of {name}: {done.stderr.decode(errors='replace').strip()[:100]}")
    shutil.rmtree(target, ignore_errors=True)
    text = f"{len(names)} dumps, 4 programs; the longest took {worst:.1f} s; {'; '.join(failed) or 'none failed'}"
    return Measured(text, not failed)
