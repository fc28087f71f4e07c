"""Where real dumps lie that are larger than what is committed, and unpacking those that are compressed."""

from __future__ import annotations

import lzma
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
CORPUS = Path(os.environ.get("DUMPFS_CORPUS", ROOT.parent / "shared" / "corpus"))
"""Optional; see tests/conftest.py."""
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = Path(os.environ.get("DUMPFS_CORPUS_CACHE", _CACHES / "dumpfs-corpus"))
"""Of unpacked files; outlives a run."""


def unpack(packed: Path, target: Path) -> None:
    """Decompress an .xz file; the target appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
        try:
            with lzma.open(packed) as source:
                shutil.copyfileobj(source, out, 1 << 20)
            Path(out.name).replace(target)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise


def find(folder: Path, name: str) -> Path | None:
    """A file of a folder by the name it has when unpacked, there or in the cache; None when the folder lacks it."""
    plain, packed = folder / name, folder / f"{name}.xz"
    if plain.exists():
        return plain
    if not packed.exists():
        return None
    target = CACHE / name
    if not target.exists() or target.stat().st_mtime < packed.stat().st_mtime:
        unpack(packed, target)
    return target
