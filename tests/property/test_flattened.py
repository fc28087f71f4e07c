"""A flattened file reads as the file it stands for, whatever the order and shape of its records."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.formats.elf import open_elf
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.sources.flattened import FlattenedSource
from dumpfs.sources.local import MemorySource
from tests.build.elf import build_elf, memory_of
from tests.build.flat import HEADER_SIZE, flatten, wrap
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.property import checks
from tests.property.strategies import elf_descriptions, kdump_specs, memories


def unwrapped(data: bytes) -> FlattenedSource:
    return FlattenedSource(MemorySource(data, "flat"))


def check_source(source: FlattenedSource, expected: bytes, seed: int) -> None:
    """Reads anywhere, by both ways."""
    assert source.size == len(expected)
    assert source.read_at(0, len(expected) + 10) == expected
    rng = random.Random(seed)
    for _ in range(30):
        offset = rng.randrange(len(expected) + 20)
        size = rng.choice([0, 1, 16, 100, 4096, 20000])
        assert source.read_at(offset, size) == expected[offset : offset + size]
        buffer = bytearray(size)
        done = source.read_into(offset, memoryview(buffer))
        assert bytes(buffer[:done]) == expected[offset : offset + size]


@settings(max_examples=100)
@given(
    st.binary(min_size=1, max_size=3000),
    st.integers(0, 999),
    st.sampled_from([1, 7, 100, 5000]),
    st.booleans(),
    st.integers(0, 20),
    st.booleans(),
)
def test_records_of_any_shape(payload, seed, largest, shuffle, overlaps, drop_zeros):
    flat = flatten(payload, seed, largest=largest, shuffle=shuffle, overlaps=overlaps, drop_zeros=drop_zeros)
    source = unwrapped(flat)
    assert source.complete
    check_source(source, payload, seed)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=200)), min_size=1, max_size=30))
def test_the_later_record_wins_and_gaps_are_zero(records):
    expected = bytearray(max(o + len(d) for o, d in records))
    for offset, data in records:
        expected[offset : offset + len(data)] = data
    check_source(unwrapped(wrap(records)), bytes(expected), 1)


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=3000), st.integers(0, 999), st.floats(0, 1))
def test_a_stream_that_ends_early_is_served_as_far_as_it_goes(payload, seed, where):
    flat = flatten(payload, seed, largest=300)
    cut = HEADER_SIZE + 17 + int((len(flat) - HEADER_SIZE - 17) * where)
    source = unwrapped(flat[:cut])
    assert source.complete == (cut == len(flat))
    assert bool(source.incomplete_reason) == (not source.complete)
    found = source.read_at(0, source.size)
    assert payload.startswith(found)
    assert len(payload) - len(found) <= len(flat) - cut


@settings(max_examples=30)
@given(memories(), kdump_specs(), st.integers(0, 999), st.booleans(), st.integers(0, 5))
def test_a_flattened_kdump(memory, spec, seed, shuffle, overlaps):
    flat = flatten(build_kdump(memory, spec).data, seed, shuffle=shuffle, overlaps=overlaps)
    image = KdumpImage.open([unwrapped(flat)])
    assert "flattened" in image.meta.variant
    checks.check_image(image, memory, seed)


@settings(max_examples=30)
@given(elf_descriptions(), st.integers(0, 999), st.booleans(), st.integers(0, 5))
def test_a_flattened_elf(description, seed, shuffle, overlaps):
    segments, spec = description
    flat = flatten(build_elf(segments, spec).data, seed, shuffle=shuffle, overlaps=overlaps)
    checks.check_image(open_elf([unwrapped(flat)]), memory_of(segments), seed)


@settings(max_examples=10)
@given(memories(), st.integers(0, 999))
def test_parts_of_a_split_set_may_be_flattened_each(memory, seed):
    bounds = sorted({0, memory.max_pfn // 2, memory.max_pfn})
    parts = [unwrapped(flatten(b.data, seed, shuffle=True)) for b in split_parts(memory, KdumpSpec(), bounds)]
    checks.check_image(KdumpImage.open(parts), memory, seed)
