"""One small file of each kind, to be damaged."""

from __future__ import annotations

from functools import cache

from tests.build import notes
from tests.build.elf import EM_ARM, EM_S390, ElfSpec, Segment, build_elf
from tests.build.flat import flatten
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.lime import build_lime
from tests.build.model import Built, Kind, Memory, Page
from tests.property.strategies import page_content

CODECS = ["zlib", "raw", "lzo", "zero", "snappy", "zstd"]


@cache
def memory() -> Memory:
    """Forty pages: all codecs, some excluded, a hole, two islands."""
    pages = {}
    for i, pfn in enumerate([*range(3, 20), *range(40, 60), *range(4090, 4100)]):
        codec = CODECS[i % len(CODECS)]
        content = bytes(4096) if codec == "zero" else page_content(5 * i + 3, 4096)
        pages[pfn] = Page(kind=Kind.EXCLUDED) if i % 7 == 5 else Page(content, codec=codec)
    return Memory(4096, 4200, pages)


def spec(layout: str = "64", byteorder: str = "little", version: int = 6, **more: object) -> KdumpSpec:
    """A header with notes, VMCOREINFO and erase info."""
    info = notes.vmcoreinfo_text()
    machine = {"64little": "x86_64", "64big": "s390x", "32packedlittle": "i686"}.get(layout + byteorder, "ppc")
    cpus = notes.prstatus(1, byteorder) + notes.prstatus(2, byteorder)
    return KdumpSpec(
        layout=layout,
        byteorder=byteorder,
        version=version,
        machine=machine,
        vmcoreinfo=info,
        notes=cpus,
        eraseinfo=b"erase x 8\n",
        timestamp=1700000000,
        **more,  # type: ignore[arg-type]
    )


KDUMPS = {
    "x86_64": spec(),
    "s390x": spec("64", "big"),
    "i686": spec("32packed"),
    "ppc": spec("32padded", "big"),
    "version-2": spec(version=2),
    "incomplete": spec(status=9),
    "split": spec(split=(0, 4095)),
}


@cache
def kdump(name: str) -> Built:
    """One of `KDUMPS`."""
    return build_kdump(memory(), KDUMPS[name])


SEGMENTS = (
    Segment(0x1000, page_content(3, 0x9EC00), None, 0xFFFF888000001000),
    Segment(0x100000, page_content(2, 0x8000), 0x20000, 0xFFFF888000100000),
    Segment(0x200000, b"", 0x10000, 0xFFFF888000200000),
    Segment(0x101000, page_content(2, 0x8000)[0x1000:], None, 0xFFFFFFFF81000000, same_as=1, same_offset=0x1000),
)
_NOTES = {
    order: notes.prstatus(1, order) + notes.note(b"VMCOREINFO", 0, notes.vmcoreinfo_text(), order)
    for order in ("little", "big")
}
ELFS = {
    "vmcore": ElfSpec(notes=_NOTES["little"], align=4096),
    "qemu": ElfSpec(notes=_NOTES["little"], style="qemu"),
    "makedumpfile": ElfSpec(notes=_NOTES["little"], style="makedumpfile", e_flags=1),
    "xnum": ElfSpec(notes=_NOTES["little"], xnum=True),
    "s390x": ElfSpec(byteorder="big", machine=EM_S390, notes=_NOTES["big"], style="qemu"),
    "arm": ElfSpec(word=4, machine=EM_ARM, notes=_NOTES["little"], style="qemu"),
}


@cache
def elf(name: str) -> Built:
    """One of `ELFS`."""
    narrow = ELFS[name].word == 4
    segments = [
        Segment(s.paddr, s.data, s.memsz, s.vaddr & 0x7FFFFFFF if narrow else s.vaddr, s.same_as, s.same_offset)
        for s in SEGMENTS
    ]
    return build_elf(segments, ELFS[name])


@cache
def lime() -> bytes:
    """Two ranges."""
    return build_lime([(0x1000, page_content(4, 0x5000)), (0x100000, page_content(3, 0x3400))])


@cache
def flat() -> bytes:
    """A flattened kdump with records out of order and overlapping."""
    return flatten(kdump("x86_64").data, 5, largest=3000, shuffle=True, overlaps=4)


@cache
def everything() -> dict[str, bytes]:
    """Every file by name."""
    files = {f"kdump-{name}": kdump(name).data for name in KDUMPS}
    files |= {f"elf-{name}": elf(name).data for name in ELFS}
    return files | {"lime": lime(), "flat-kdump": flat(), "flat-elf": flatten(elf("vmcore").data, 6, shuffle=True)}
