"""Dumps that are simple enough for the loop in C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpfs.formats.base import PlainPages
from dumpfs.native import AVAILABLE

if TYPE_CHECKING:
    from dumpfs.native.loops import Pages

_PAGE_SIZES = tuple(1 << shift for shift in range(9, 17))


def open_pages(plain: PlainPages | None, page_size: int, *, zeros: bool = False, cache: int = 0) -> Pages | None:
    """Pages as the loop in C reads them, or None where it cannot.

    Args:
        plain: where they are; None: not simply in one file.
        page_size: bytes of each.
        zeros: whether memory that is not stored reads as zeros.
        cache: bytes of decoded pages to keep.
    """
    if plain is None or not AVAILABLE or page_size not in _PAGE_SIZES:
        return None
    from dumpfs.native import loops

    return loops.Pages(
        fd=plain.fd,
        bitmap=plain.bitmap,
        stop=plain.stop,
        ranks=memoryview(plain.ranks),
        table=plain.table,
        count=plain.descriptors,
        page_size=page_size,
        zeros=zeros,
        cache=cache,
    )
