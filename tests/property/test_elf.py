"""Whatever is read from an ELF core or a LiME image equals its description."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.formats.elf import open_elf
from dumpfs.formats.lime import open_lime
from dumpfs.formats.raw import open_raw
from tests.build.elf import EM_AARCH64, EM_ARM, EM_S390, EM_X86_64, ElfSpec, Segment, build_elf, memory_of
from tests.build.lime import build_lime
from tests.build.model import Built, Kind, Memory
from tests.property import checks
from tests.property.strategies import elf_descriptions, page_content

MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64", EM_S390: "s390x", EM_ARM: "arm"}


@settings(max_examples=150)
@given(elf_descriptions(), st.integers(0, 999))
def test_pages_are_those_of_the_description(description, seed):
    segments, spec = description
    image = open_elf(checks.sources(build_elf(segments, spec).data))
    meta = image.meta
    assert (meta.format, meta.word_size, meta.byteorder) == ("elf", spec.word, spec.byteorder)
    assert meta.machine == MACHINES[spec.machine]
    assert meta.complete
    assert image.notes() == spec.notes
    assert (meta.nr_cpus or 0) == spec.notes.count(b"CORE")
    checks.check_image(image, memory_of(segments), seed)


@settings(max_examples=60)
@given(elf_descriptions())
def test_kernel_addresses_are_kept_in_file_order(description):
    segments, spec = description
    image = open_elf(checks.sources(build_elf(segments, spec).data))
    assert list(image.meta.virtual_loads) == [(s.vaddr, s.paddr, s.size) for s in segments if s.vaddr and s.size]


def cut_memory(segments: list[Segment], built: Built, cut: int) -> Memory:
    """The memory whose pages beyond `cut` bytes of the file are lost."""
    memory = memory_of(segments)
    lost = set()
    for index, segment in enumerate(segments):
        offset, size = built.blobs[index]
        for position in range(size):
            if offset + position >= cut:
                first = (segment.paddr + position) // 4096
                lost |= set(range(first, (segment.paddr + size - 1) // 4096 + 1))
                break
    return memory.changed(lost, Kind.LOST)


@settings(max_examples=60)
@given(elf_descriptions(), st.floats(0, 1))
def test_pages_behind_the_cut_of_a_copy_are_lost(description, where):
    segments, spec = description
    built = build_elf(segments, spec)
    start = built.places["data"]
    cut = start + int((len(built.data) - start) * where)
    memory = cut_memory(segments, built, cut)
    image = open_elf(checks.sources(built.data[:cut]))
    assert image.meta.complete == (not memory.where(Kind.LOST))
    for pfn in memory.ram():
        assert image.state(pfn) == memory.kind(pfn)
        assert image.read_page(pfn)[0] == (memory.content(pfn) if memory.kind(pfn) in (0, 5) else b"")
    first, stop = min(memory.pages, default=0), memory.max_pfn
    data, states = image.read_run(first, stop - first)
    assert bytes(states) == memory.run(first, stop - first)[1]
    assert bytes(data) == memory.run(first, stop - first)[0]


@settings(max_examples=30)
@given(elf_descriptions())
def test_program_headers_that_were_never_written_are_no_memory(description):
    """makedumpfile ended early leaves later program headers all zero."""
    segments, spec = description
    if not segments or any(s.same_as is not None for s in segments):
        return
    built = build_elf(segments, spec)
    size = 56 if spec.word == 8 else 32
    last = built.places["phdrs"] + size * len(segments)
    flags = struct.pack(spec.prefix + "I", 1)
    data = built.poked(last, bytes(size))
    offset = 48 if spec.word == 8 else 36
    image = open_elf(checks.sources(data[:offset] + flags + data[offset + 4 :]))
    assert not image.meta.complete
    checks.check_image(image, memory_of(segments[:-1]))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9000), st.integers(0, 999)), min_size=1, max_size=5),
    st.integers(0, 999),
)
def test_lime_ranges_are_memory(description, seed):
    ranges, position = [], 0
    for gap, size, content in description:
        paddr = (position + 4095) // 4096 * 4096 + gap * 4096
        ranges.append((paddr, page_content(content, 16384)[:size]))
        position = paddr + size
    image = open_lime(checks.sources(build_lime(ranges)))
    assert (image.meta.format, image.meta.complete) == ("lime", True)
    checks.check_image(image, memory_of([Segment(p, d) for p, d in ranges]), seed)


@settings(max_examples=20)
@given(st.integers(1, 20000), st.integers(0, 999))
def test_a_raw_image_is_memory_from_zero_on(size, seed):
    content = page_content(seed, 20480)[:size]
    image = open_raw(checks.sources(content))
    checks.check_image(image, memory_of([Segment(0, content)]), seed)


def test_more_program_headers_than_a_short_counts():
    segments = [Segment(i * 8192, b"", 4096) for i in range(66000)]
    segments[-1] = Segment(66000 * 8192, b"x" * 4096)
    image = open_elf(checks.sources(build_elf(segments, ElfSpec(xnum=True)).data))
    assert image.ram.count() == 66000
    assert image.read_page(66000 * 2)[0] == b"x" * 4096
