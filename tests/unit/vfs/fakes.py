"""A dump held in memory, and what it takes to show it as files."""

from __future__ import annotations

from types import SimpleNamespace

from dumpfs.formats.base import Blob, DumpMeta, PageInfo, Utsname
from dumpfs.ranges import RangeSet
from dumpfs.units import PageState
from dumpfs.vfs.context import Dump, OpenOptions

PAGE = 4096
S, E, L, C, P = PageState.STORED, PageState.EXCLUDED, PageState.LOST, PageState.CORRUPT, PageState.PARTIAL


def page_bytes(pfn: int, size: int = PAGE) -> bytes:
    """Content that tells pages apart."""
    return (b"%015x\n" % pfn) * (size // 16)


class FakeImage:
    """A `DumpImage` from a mapping of block number to state; absent blocks are left out.

    Corrupt blocks look stored until they are read, as in a real dump.
    """

    def __init__(
        self,
        states: dict[int, PageState],
        partial: dict[int, tuple[int, int]] | None = None,
        block_size: int = PAGE,
        notes: bytes = b"",
        vmcoreinfo: bytes | None = None,
        **meta: object,
    ) -> None:
        self.states = states
        self.partial = partial or {}
        self.ram = RangeSet((p, p + 1) for p in states)
        self.stored = RangeSet((p, p + 1) for p, s in states.items() if s in (S, C, P))
        self.lost = RangeSet((p, p + 1) for p, s in states.items() if s is L)
        self.notices: tuple[str, ...] = ("something odd",)
        self._notes, self._vmcoreinfo = notes, vmcoreinfo
        facts: dict[str, object] = {
            "format": "kdump",
            "block_size": block_size,
            "max_pfn": max(states, default=-1) + 1,
            "byteorder": "little",
            "word_size": 8,
            "machine": "x86_64",
            "complete": L not in states.values(),
        }
        self.meta = DumpMeta(**(facts | meta))
        self.closed = False
        self.changed: list[str] = []

    def content(self, pfn: int) -> bytes:
        """What the block holds; zeros outside of RAM."""
        size = self.meta.block_size
        first, stop = self.partial.get(pfn, (0, size))
        return bytes(first) + page_bytes(pfn, size)[first:stop] + bytes(size - stop)

    def state(self, pfn: int) -> PageState:
        state = self.states.get(pfn, PageState.ABSENT)
        return S if state is C else state

    def info(self, pfn: int) -> PageInfo:
        state = self.state(pfn)
        stored = state in (S, P)
        detail = "cut short" if state is L else ""
        return PageInfo(state, "zlib" if stored else "", pfn * 100 if stored else 0, 99, 1, "fake", detail)

    def read_page(self, pfn: int) -> tuple[bytes, PageState, str]:
        state = self.states.get(pfn, PageState.ABSENT)
        if state in (S, P):
            return self.content(pfn), state, ""
        return b"", state, {C: "bad checksum", L: "cut short"}.get(state, "")

    def read_run(self, first: int, count: int) -> tuple[bytes, bytes]:
        pages = [self.read_page(pfn) for pfn in range(first, first + count)]
        size = self.meta.block_size
        return b"".join(p[0].ljust(size, b"\0") for p in pages), bytes(p[1] for p in pages)

    def stored_blobs(self, first: int, count: int) -> list[Blob]:
        raise NotImplementedError

    def notes(self) -> bytes:
        return self._notes

    def vmcoreinfo_text(self) -> bytes | None:
        return self._vmcoreinfo

    def eraseinfo(self) -> bytes:
        return b"erase secret\n"

    def changes(self) -> list[str]:
        return self.changed

    def close(self) -> None:
        self.closed = True


def fake_kernel(**facts: object) -> SimpleNamespace:
    """What views ask of a `Kernel`."""
    kernel = SimpleNamespace(
        machine="x86_64",
        arch=object(),
        byteorder="little",
        word_size=8,
        page_size=PAGE,
        vmcoreinfo=None,
        phys_base=0x1000000,
        kaslr_offset=0,
        page_offset=0xFFFF888000000000,
        text=None,
        space=SimpleNamespace(tables=None),
        uts=Utsname(release="6.1"),
        release="6.1",
        build_id="",
        cpus=2,
        crash_time=None,
        origins={"page_offset": "a guess"},
        problems=("a problem",),
    )
    vars(kernel).update(facts)
    kernel.may_be_searched = kernel.arch is not None
    kernel.doubt = ""
    if "deep" not in facts:
        kernel.deep = kernel
    return kernel


def fake_dump(image: FakeImage, kernel: SimpleNamespace | None = None, **options: object) -> Dump:
    """A `Dump` of a fake image."""
    dump = Dump(image, OpenOptions(**options), paths=["/dumps/fake"])
    dump.kernel = kernel if kernel is not None else fake_kernel()
    return dump
