"""Small dumps for the tests of the commands."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page

PAGE = 4096
BAD_ZLIB = (1, b"x\x9cnot a deflate stream")
MAX_PFN = 64


def content(pfn: int) -> bytes:
    """Content that tells pages apart and compresses well."""
    return (b"%015x\n" % pfn) * (PAGE // 16)


def stored(pfn: int, codec: str = "zlib") -> Page:
    """A good page."""
    return Page(content(pfn), codec=codec)


def corrupt(pfn: int) -> Page:
    """A page whose stored bytes cannot be decompressed."""
    return Page(content(pfn), kind=Kind.CORRUPT, stored_form=BAD_ZLIB)


def memory(bad: AbstractSet[int] = frozenset()) -> Memory:
    """RAM at 0x0-0x1f and 0x30-0x3f; 0x10-0x17 are excluded, `bad` are corrupt."""
    pages = {pfn: corrupt(pfn) if pfn in bad else stored(pfn) for pfn in [*range(0x20), *range(0x30, 0x40)]}
    pages |= {pfn: Page(kind=Kind.EXCLUDED) for pfn in range(0x10, 0x18)}
    return Memory(PAGE, MAX_PFN, pages)


def write_kdump(path: Path, bad: AbstractSet[int] = frozenset(), spec: KdumpSpec | None = None) -> str:
    """Write the dump of `memory(bad)`; returns its name."""
    path.write_bytes(build_kdump(memory(bad), spec or KdumpSpec(status=1, dump_level=31)).data)
    return str(path)


def flat_memory() -> bytes:
    """What /hmem of the dump holds when excluded pages are zeros."""
    model = memory()
    return b"".join(model.content(pfn) for pfn in range(MAX_PFN))
