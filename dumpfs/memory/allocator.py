"""How the C library treats memory that was freed.

glibc gives large blocks back to the kernel as soon as they are free, and the kernel zeroes and maps every page of the
next one. A process that decodes runs of pages allocates a megabyte for each, so this costs it 0.17 page faults and
half a microsecond (of some four) for every page, and several times that on a machine short of memory.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Parameters of mallopt(3)."""
_KEPT_BYTES = 32 << 20
"""The largest mmap threshold that glibc takes, and enough for every buffer of a worker."""


def keep_freed_memory() -> None:
    """Have this process, and those it forks, keep some megabytes of freed memory for the next buffer.

    Does nothing where the C library has no mallopt (musl).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
