"""Whatever is read from a kdump-compressed file equals its description."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.formats.kdump.image import KdumpImage
from tests.build.kdump import KdumpSpec, build_kdump, split_parts
from tests.build.model import Built, Kind, Memory
from tests.property import checks
from tests.property.strategies import kdump_specs, memories


def open_kdump(*files: bytes) -> KdumpImage:
    return KdumpImage.open(checks.sources(*files))


def check_header(image: KdumpImage, memory: Memory, spec: KdumpSpec) -> None:
    meta = image.meta
    assert (meta.format, meta.version, meta.byteorder, meta.word_size) == (
        "kdump",
        spec.version,
        spec.byteorder,
        spec.word,
    )
    assert (meta.block_size, meta.max_pfn) == (memory.block_size, memory.max_pfn)
    assert meta.dump_level == (spec.dump_level if spec.version >= 1 else None)
    assert meta.phys_base == spec.phys_base
    assert meta.uts.machine == spec.machine
    assert meta.compression == {0: "none", 1: "zlib", 2: "lzo", 4: "snappy", 0x20: "zstd"}[spec.status & ~8]
    if spec.version >= 3:
        assert (image.vmcoreinfo_text() or None) == spec.vmcoreinfo
    if spec.version >= 4:
        assert image.notes().startswith(spec.notes)
    if spec.version >= 5:
        assert image.eraseinfo() == spec.eraseinfo


@settings(max_examples=100)
@given(memories(), kdump_specs(), st.integers(0, 999))
def test_pages_are_those_of_the_description(memory, spec, seed):
    built = build_kdump(memory, spec)
    image = open_kdump(built.data)
    check_header(image, memory, spec)
    assert image.meta.complete
    checks.check_image(image, memory, seed)
    checks.check_kdump_storage(image, memory)


@settings(max_examples=25)
@given(memories(block_sizes=(1024, 8192, 16384, 65536, 262144)), kdump_specs())
def test_blocks_may_be_of_any_size(memory, spec):
    if memory.block_size == 1024:
        spec = replace(spec, notes=b"")
    image = open_kdump(build_kdump(memory, spec).data)
    check_header(image, memory, spec)
    checks.check_image(image, memory)


@settings(max_examples=25)
@given(memories(excluded=False), kdump_specs())
def test_a_single_bitmap_serves_as_both(memory, spec):
    spec = replace(spec, bitmaps=1)
    image = open_kdump(build_kdump(memory, spec).data)
    checks.check_image(image, memory)


@settings(max_examples=40)
@given(memories(), kdump_specs(), st.integers(0, 40), st.booleans())
def test_pages_that_were_never_written_are_lost(memory, spec, kept, flagged):
    """The writer ran out of space: descriptors are written in order, those behind the last are zero."""
    written = memory.where(Kind.STORED)
    memory = memory.changed(set(written[kept:]), Kind.LOST)
    spec = replace(spec, status=spec.status | 8 if flagged else spec.status, shuffle=None)
    image = open_kdump(build_kdump(memory, spec).data)
    assert image.meta.complete == (not flagged and kept >= len(written))
    assert bool(image.meta.incomplete_reason) == (not image.meta.complete)
    checks.check_image(image, memory)


def check_cut(image: KdumpImage, memory: Memory, built: Built, cut: int) -> None:
    """The pages of `built`, of which only `cut` bytes are there, are lost from the first that is not whole.

    Zero pages behind it, whose shared copy is still there, can be read; the set of stored pages leaves them out.
    """
    lost = {p for p, (offset, size) in built.blobs.items() if built.descriptors[p] + 24 > cut or offset + size > cut}
    unlisted = {p for p in built.blobs if p >= min(lost, default=memory.max_pfn)}
    cut_memory = memory.changed(lost, Kind.LOST)
    assert image.meta.complete == (not lost and cut >= built.places["descriptors"])
    checks.check_image(image, cut_memory, stored=[p for p in memory.where(Kind.STORED) if p not in unlisted])


@settings(max_examples=60)
@given(memories(), kdump_specs(), st.floats(0, 1))
def test_pages_behind_the_cut_of_a_copy_are_lost(memory, spec, where):
    spec = replace(spec, eraseinfo=b"", shuffle=None)
    built = build_kdump(memory, spec)
    start = built.places["descriptors"]
    cut = start + int((len(built.data) - start) * where)
    check_cut(open_kdump(built.data[:cut]), memory, built, cut)


@settings(max_examples=40)
@given(memories(), kdump_specs(), st.floats(0, 1))
def test_a_copy_that_ends_in_its_bitmaps_has_lost_all_pages(memory, spec, where):
    """Which pages were left out on purpose is not known then, and zeros must not stand for them."""
    built = build_kdump(memory, spec)
    first, stop = built.places["bitmap1"], built.places["descriptors"]
    cut = first + int((stop - 1 - first) * where)
    known = 8 * (cut - first)
    pages = {p: replace(page, kind=Kind.LOST) for p, page in memory.pages.items() if p < known}
    image = open_kdump(built.data[:cut])
    assert not image.meta.complete
    assert image.meta.incomplete_reason
    checks.check_image(image, replace(memory, pages=pages))


@settings(max_examples=60)
@given(
    memories(),
    kdump_specs(),
    st.lists(st.integers(0, 33000), max_size=4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_split_set_is_one_dump_in_any_order(memory, spec, cuts, full_room, rng):
    spec = replace(spec, version=max(spec.version, 2), full_room=full_room)
    bounds = sorted({0, memory.max_pfn, *(c % memory.max_pfn for c in cuts)})
    parts = [b.data for b in split_parts(memory, spec, bounds)]
    rng.shuffle(parts)
    image = open_kdump(*parts)
    assert image.meta.complete
    checks.check_image(image, memory)
    checks.check_kdump_storage(image, memory)


@settings(max_examples=50)
@given(memories(), kdump_specs(), st.lists(st.integers(0, 33000), min_size=1, max_size=4), st.integers(0, 9))
def test_a_missing_part_loses_only_its_own_pages(memory, spec, cuts, which):
    spec = replace(spec, version=max(spec.version, 2))
    bounds = sorted({0, memory.max_pfn, *(c % memory.max_pfn for c in cuts)})
    parts = split_parts(memory, spec, bounds)
    if len(parts) < 2:
        return
    gone = which % len(parts)
    lost = {p for p in memory.where(Kind.STORED) if bounds[gone] <= p < bounds[gone + 1]}
    image = open_kdump(*(b.data for i, b in enumerate(parts) if i != gone))
    assert image.meta.complete == (not lost)
    checks.check_image(image, memory.changed(lost, Kind.LOST))


@settings(max_examples=40)
@given(
    memories(),
    kdump_specs(),
    st.lists(st.integers(0, 33000), max_size=3),
    st.integers(0, 9),
    st.sampled_from(["bitmap1", "descriptors", "pages"]),
    st.floats(0, 1),
)
def test_a_part_that_is_cut_loses_only_its_own_pages(memory, spec, cuts, which, place, where):
    spec = replace(spec, version=max(spec.version, 2), eraseinfo=b"", shuffle=None)
    bounds = sorted({0, memory.max_pfn, *(c % memory.max_pfn for c in cuts)})
    if len(bounds) == 2 and place == "bitmap1":
        return  # the only part: nobody else has the bitmaps
    parts = split_parts(memory, spec, bounds)
    which %= len(parts)
    built = parts[which]
    start = built.places[place]
    cut = start + int((len(built.data) - start) * where)
    files = [b.data for b in parts]
    files[which] = built.data[:cut]
    check_cut(open_kdump(*files), memory, built, cut)


@settings(max_examples=40)
@given(memories(), kdump_specs(), st.data())
def test_a_damaged_page_is_corrupt_and_its_neighbours_are_not(memory, spec, data):
    stored = memory.where(Kind.STORED)
    if not stored:
        return
    victim = data.draw(st.sampled_from(stored))
    form, descriptor = data.draw(
        st.sampled_from(
            [
                ((1, b"not zlib at all"), None),
                ((2, b"\xff" * 40), None),
                ((4, b"\x80\x20\xff"), None),
                ((0x20, b"\x28\xb5\x2f\xfd\0\0"), None),
                ((3, b"two codecs"), None),
                ((8, b"no codec"), None),
                ((0x41, b"no codec"), None),
                ((0, b"raw but short"), None),
                (None, (512, memory.block_size + 1, 1)),
                (None, (512, memory.block_size + 1, 0)),
                (None, (512, 0xFFFFFFFF, 2)),
            ]
        )
    )
    pages = dict(memory.pages)
    pages[victim] = replace(pages[victim], kind=Kind.CORRUPT, codec="raw", stored_form=form, descriptor=descriptor)
    broken = replace(memory, pages=pages)
    image = open_kdump(build_kdump(broken, spec).data)
    assert image.meta.complete
    data_, state, detail = image.read_page(victim)
    assert (data_, state) == (b"", Kind.CORRUPT)
    assert detail
    for pfn in stored:
        if pfn != victim:
            assert image.read_page(pfn)[:2] == (memory.content(pfn), Kind.STORED)
    first = max(victim - 3, 0)
    run, states = image.read_run(first, 7)
    assert (bytes(run), bytes(states)) == broken.run(first, 7)


@settings(max_examples=20)
@given(memories(), kdump_specs(), st.sampled_from([0, 1 << 40, (1 << 64) - 4096, (1 << 64) - 1, (1 << 63)]))
def test_a_descriptor_that_points_nowhere_is_a_lost_page(memory, spec, offset):
    stored = memory.where(Kind.STORED)
    if not stored:
        return
    pages = dict(memory.pages)
    pages[stored[0]] = replace(pages[stored[0]], kind=Kind.LOST, codec="raw", descriptor=(offset, memory.block_size, 0))
    image = open_kdump(build_kdump(replace(memory, pages=pages), spec).data)
    assert image.read_page(stored[0])[1] == Kind.LOST
    assert image.read_run(stored[0], 1)[1] == bytes((Kind.LOST,))
    for pfn in stored[1:]:
        assert image.read_page(pfn)[:2] == (memory.content(pfn), Kind.STORED)


@pytest.mark.parametrize("version", range(7))
@pytest.mark.parametrize("layout", ["64", "32packed", "32padded"])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_a_dump_without_any_page(version, layout, byteorder):
    memory = Memory(4096, 5000)
    image = open_kdump(build_kdump(memory, KdumpSpec(layout=layout, byteorder=byteorder, version=version)).data)
    checks.check_image(image, memory)
