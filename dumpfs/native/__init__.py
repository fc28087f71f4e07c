"""The few loops that are also written in C: that of a mount's worker, and compression.

Optional: where there was no compiler when dumpfs was installed, the Python code does the same more slowly.
DUMPFS_NATIVE=0 in the environment has that, too, for comparison and when the C code is suspected.
"""

from __future__ import annotations

import os

_VERSION = 1
"""Of what `loops` has and means; `module.c` has the same number. One that was compiled before a change is not used."""

try:
    if os.environ.get("DUMPFS_NATIVE") == "0":
        raise ImportError("DUMPFS_NATIVE=0")
    from dumpfs.native import loops

    if getattr(loops, "VERSION", None) != _VERSION:
        raise ImportError("compiled from another version's sources")
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True
    """Whether `dumpfs.native.loops` can be used."""
