"""Descriptions of dumps, drawn by hypothesis."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.build import notes
from tests.build.elf import EM_AARCH64, EM_ARM, EM_S390, EM_X86_64, ElfSpec, Segment
from tests.build.kdump import KdumpSpec
from tests.build.model import Kind, Memory, Page

CODECS = ["raw", "zero", "zlib", "lzo", "snappy", "zstd", "zstd-without-size"]

LAYOUTS = [
    ("64", "little", "x86_64"),
    ("64", "little", ""),
    ("64", "big", "s390x"),
    ("64", "big", ""),
    ("32packed", "little", "i686"),
    ("32padded", "little", "mips"),
    ("32packed", "big", "ppc"),
    ("32padded", "big", "ppc"),
]
"""Sub header layout, byte order and machine name of headers that exist, or might."""


def page_content(seed: int, size: int) -> bytes:
    """Content that compresses well, badly or not at all, by the last digit of `seed`."""
    rng = random.Random(seed)
    kind = seed % 5
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return bytes((seed & 0xFF,)) * size
    if kind == 2:
        return rng.randbytes(size)
    if kind == 3:
        return rng.randbytes(size // 2) + bytes(size // 2)
    return (rng.randbytes(16) * (size // 16))[:size]


@st.composite
def kdump_pages(draw: st.DrawFn, block_size: int) -> Page:
    """A stored or excluded page."""
    if draw(st.integers(0, 3)) == 0:
        return Page(kind=Kind.EXCLUDED)
    codec = draw(st.sampled_from(CODECS))
    data = bytes(block_size) if codec == "zero" else page_content(draw(st.integers(0, 9999)), block_size)
    return Page(data, codec=codec)


@st.composite
def memories(draw: st.DrawFn, excluded: bool = True, block_sizes: tuple[int, ...] = (4096,)) -> Memory:
    """Up to some forty pages in a few islands, some of them across the borders of bitmap chunks."""
    block_size = draw(st.sampled_from(block_sizes))
    pages: dict[int, Page] = {}
    for _ in range(draw(st.integers(0, 4))):
        base = draw(st.sampled_from([0, 1, 7, 63, 500, 4085, 8190, 32760]))
        for pfn in range(base, base + draw(st.integers(1, 20))):
            if draw(st.integers(0, 9)):
                pages[pfn] = draw(kdump_pages(block_size))
    if not excluded:
        pages = {pfn: page for pfn, page in pages.items() if page.kind is not Kind.EXCLUDED}
    top = max(pages, default=0) + 1
    return Memory(block_size, top + draw(st.sampled_from([0, 1, 5, 100])), pages)


@st.composite
def kdump_specs(draw: st.DrawFn) -> KdumpSpec:
    """Headers of every version, word size, byte order and packing."""
    layout, byteorder, machine = draw(st.sampled_from(LAYOUTS))
    info = draw(st.sampled_from([None, notes.vmcoreinfo_text(), notes.vmcoreinfo_text() + b"X=" + b"y" * 5000 + b"\n"]))
    return KdumpSpec(
        layout=layout,
        byteorder=byteorder,
        machine=machine,
        version=draw(st.integers(0, 6)),
        status=draw(st.sampled_from([0, 1, 2, 4, 0x20])),
        timestamp=draw(st.sampled_from([0, 1700000000])),
        dump_level=draw(st.sampled_from([0, 1, 31])),
        phys_base=draw(st.sampled_from([0, 0x1000000, -0x3BA00000])),
        nr_cpus=draw(st.integers(0, 5)),
        vmcoreinfo=info,
        notes=b"".join(notes.prstatus(i + 1, byteorder) for i in range(draw(st.integers(0, 14)))),
        eraseinfo=draw(st.sampled_from([b"", b"erase something 8\n"])),
        shuffle=draw(st.sampled_from([None, 1])),
        junk=draw(st.booleans()),
    )


@st.composite
def elf_descriptions(draw: st.DrawFn) -> tuple[list[Segment], ElfSpec]:
    """RAM ranges with holes, aliases and unaligned ends, in the styles of the producers."""
    word = draw(st.sampled_from([8, 4]))
    byteorder = draw(st.sampled_from(["little", "big"]))
    machine = draw(
        st.sampled_from(
            [EM_X86_64, EM_AARCH64] if (word, byteorder) == (8, "little") else [EM_S390 if word == 8 else EM_ARM]
        )
    )
    style = draw(st.sampled_from(["kernel", "makedumpfile", "qemu"]))
    segments: list[Segment] = []
    position = draw(st.sampled_from([0, 4096, 0x9F000, 0x100000]))
    for _ in range(draw(st.integers(0, 5))):
        head = draw(st.sampled_from([0, 0, 0, 1024, 4095]))
        tail = draw(st.sampled_from([0, 0, 0, 1024, 1]))
        paddr = position + head
        pages = draw(st.integers(1, 6))
        stored = draw(st.sampled_from(["all", "all", "some", "none"]))
        size = pages * 4096 - head - tail
        if size <= 0:
            continue
        content = page_content(draw(st.integers(0, 9999)), size)
        kept = {"all": size, "some": max((pages // 2) * 4096 - head, 0), "none": 0}[stored]
        vaddr = (0xFFFF888000000000 + paddr) if word == 8 else 0xC0000000 + paddr
        segments.append(Segment(paddr, content[:kept], size, vaddr if style != "qemu" else 0))
        position += pages * 4096 + draw(st.sampled_from([0, 4096, 0x10000]))
    if segments and draw(st.booleans()):
        target = draw(st.integers(0, len(segments) - 1))
        alias = segments[target]
        low = draw(st.integers(0, len(alias.data)))
        text = 0xFFFFFFFF81000000 if word == 8 else 0xC8000000
        segments.append(Segment(alias.paddr + low, alias.data[low:], None, text, same_as=target, same_offset=low))
    spec = ElfSpec(
        word=word,
        byteorder=byteorder,
        machine=machine,
        style=style,
        notes=b"".join(notes.prstatus(i + 1, byteorder) for i in range(draw(st.integers(0, 3)))),
        xnum=draw(st.booleans()),
        align=4096 if style == "kernel" else 1,
    )
    return segments, spec
