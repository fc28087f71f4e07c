"""The flattened wrapper: a file as records of (offset, size, bytes), for pipes.

Source: makedumpfile's common.h. Integers are big-endian whatever the payload is.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

HEADER_SIZE = 4096
END_MARK = struct.pack(">qq", -1, -1)


def flat_header() -> bytes:
    """Signature, type 1, version 1, padded to 4096 bytes."""
    return (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(HEADER_SIZE, b"\0")


def record(offset: int, data: bytes) -> bytes:
    """One record."""
    return struct.pack(">qq", offset, len(data)) + data


def wrap(records: Iterable[tuple[int, bytes]], end_mark: bool = True) -> bytes:
    """A flattened file of these records, in this order."""
    return flat_header() + b"".join(record(o, d) for o, d in records) + (END_MARK if end_mark else b"")


def flatten(
    payload: bytes,
    seed: int = 0,
    *,
    largest: int = 5000,
    shuffle: bool = False,
    overlaps: int = 0,
    drop_zeros: bool = False,
    end_mark: bool = True,
) -> bytes:
    """`payload` cut into records of random sizes.

    Args:
        largest: bytes of a record at most.
        shuffle: records come in random order.
        overlaps: number of records with wrong bytes that come first and are overwritten by later ones.
        drop_zeros: records that are all zero are left out (a gap reads as zeros), but for the last.
    """
    rng = random.Random(seed)
    records: list[tuple[int, bytes]] = []
    position = 0
    while position < len(payload):
        size = rng.randint(1, largest)
        piece = payload[position : position + size]
        if not drop_zeros or any(piece) or position + size >= len(payload):
            records.append((position, piece))
        position += size
    if shuffle:
        rng.shuffle(records)
    wrong = []
    if records and not drop_zeros:
        for _ in range(overlaps):
            offset = rng.randrange(len(payload))
            wrong.append((offset, rng.randbytes(rng.randint(1, min(largest, len(payload) - offset)))))
    return wrap(wrong + records, end_mark)
