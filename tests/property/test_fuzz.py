"""A seeded loop of random damage: headers, descriptors, records, program headers, notes, cuts.

DUMPFS_FUZZ_ITERATIONS sets how many files are damaged (300), DUMPFS_FUZZ_SEED where the loop begins; a failure names
the seed of its own file, which alone reproduces it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.property import samples
from tests.property.hostile import attempt, bounded_memory

ITERATIONS = int(os.environ.get("DUMPFS_FUZZ_ITERATIONS", "300"))
FIRST_SEED = int(os.environ.get("DUMPFS_FUZZ_SEED", "1"))
_ROUND = 50
_EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    1 << 63,
    (1 << 64) - 1,
    (1 << 64) - 4096,
)


def hot_zones(name: str, data: bytes) -> list[tuple[int, int]]:
    """Where headers and tables lie, which is where damage says most."""
    if name.startswith("flat"):
        return [(0, 40), (4096, 4096 + 600), (len(data) - 40, len(data))]
    if name.startswith("lime"):
        return [(0, 32), (32 + 0x5000, 64 + 0x5000)]
    if name.startswith("elf"):
        return [(0, 600), (0x1000, 0x1400)]
    built = samples.kdump(name.removeprefix("kdump-"))
    p = built.places
    return [
        (8, 464),
        (p["sub"], p["sub"] + 104),
        (p["notes"], p["notes_end"]),
        (p["bitmap1"], p["bitmap1"] + 530),
        (p["bitmap2"], p["bitmap2"] + 530),
        (p["descriptors"], p["descriptors_end"]),
        (p["pages"], len(data)),
    ]


def damaged(seed: int) -> tuple[str, bytes]:
    """One file, damaged in one to five places."""
    rng = random.Random(seed)
    name = rng.choice(sorted(samples.everything()))
    data = bytearray(samples.everything()[name])
    zones = hot_zones(name, bytes(data))
    for _ in range(rng.randint(1, 5)):
        low, high = rng.choice(zones)
        position = rng.randrange(low, max(min(high, len(data) - 8), low + 1))
        kind = rng.randrange(6)
        if kind == 0:
            data[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[position] = rng.randrange(256)
        elif kind in (2, 3):
            width = rng.choice((2, 4, 8))
            position -= position % 4
            value = rng.choice(_EXTREMES) & (1 << 8 * width) - 1
            data[position : position + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 4:
            size = rng.choice((4, 24, 100, 4096))
            source = rng.randrange(len(data))
            data[position : position + size] = data[source : source + size]
        else:
            size = rng.choice((4, 24, 100, 4096))
            data[position : position + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    if rng.randrange(8) == 0:
        del data[rng.randrange(len(data)) :]
    return name, bytes(data)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    samples.everything()
    with bounded_memory():
        yield


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + ITERATIONS, _ROUND))
def test_random_damage(tmp_path, first):
    for seed in range(first, min(first + _ROUND, FIRST_SEED + ITERATIONS)):
        name, data = damaged(seed)
        try:
            attempt(tmp_path, data, what=name)
        except BaseException as exc:
            exc.add_note(f"the file was {name} with damage of seed {seed}: DUMPFS_FUZZ_SEED={seed} repeats it")
            raise
