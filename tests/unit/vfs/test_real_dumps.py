"""Real dumps through every view of memory: what is stored has the content that the machine's memory had."""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_right

import pytest
from elftools.elf.elffile import ELFFile

from dumpfs.units import PageState
from dumpfs.vfs.context import Dump

COMMITTED = [("mkd-raw-d31.kdump", "pages-mkd.json"), ("mkd-incomplete-zlib-d31.kdump", "pages-mkd.json")]
CORPUS = [
    ("tiny/kdump-kaslr.vmcore", "tiny/pages-kdump-kaslr.json"),
    ("tiny/qemu-kaslr.elf", "tiny/pages-qemu-kaslr.json"),
    ("tiny/qemu-kaslr.kdump-zlib", "tiny/pages-qemu-kaslr.json"),
    ("tiny/qemu-kaslr.kdump-lzo", "tiny/pages-qemu-kaslr.json"),
    ("tiny/qemu-kaslr.kdump-snappy", "tiny/pages-qemu-kaslr.json"),
    ("tiny/qemu-kaslr-novmci.kdump-zlib", "tiny/pages-qemu-kaslr-novmci.json"),
    ("tiny/mkd-zstd-d31.kdump", "tiny/pages-mkd.json"),
    ("tiny/mkd-snappy-d31.kdump", "tiny/pages-mkd.json"),
    ("deb61/raw-d31.kdump", "deb61/pages.json"),
    ("foreign/arm64/arm64.kdump-zlib", "foreign/arm64/pages.json"),
    ("foreign/s390x/s390x.kdump-zlib", "foreign/s390x/pages.json"),
]
PAGE = 4096


class Core:
    """Memory by physical address, as the program headers of /vmcore say, read with another ELF library."""

    def __init__(self, node) -> None:
        self._node = node
        elf = ELFFile(io.BytesIO(node.planned().headers))
        rows = [s.header for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        self._rows = sorted((r.p_paddr, r.p_memsz, r.p_offset) for r in rows)
        self._rows = [r for i, r in enumerate(self._rows) if not self._inside_another(i)]

    def _inside_another(self, i: int) -> bool:
        paddr, size, _ = self._rows[i]
        return any(a <= paddr and paddr + size <= a + n and n > size for a, n, _ in self._rows)

    def read(self, paddr: int, size: int) -> bytes:
        base, memsz, offset = self._rows[bisect_right(self._rows, (paddr, 1 << 64, 0)) - 1]
        size = min(size, base + memsz - paddr)
        return self._node.read(offset + paddr - base, size).ljust(PAGE, b"\0")


def check(path, truth_path) -> None:
    truth = {int(paddr): digest for paddr, digest in json.loads(truth_path.read_text()).items()}
    with Dump.open([str(path)]) as dump:
        tree = dump.tree
        hmem, core = tree.lookup_path("hmem"), Core(tree.lookup_path("vmcore"))
        bits = tree.lookup_path("bitmaps/stored").read(0, 1 << 30)
        compared = 0
        for paddr, digest in truth.items():
            pfn = paddr // PAGE
            state = dump.phys.state(pfn)
            good = state in (PageState.STORED, PageState.PARTIAL)
            assert good == (pfn // 8 < len(bits) and bits[pfn // 8] >> pfn % 8 & 1 == 1)
            if not good:
                continue
            compared += 1
            for data in (
                hmem.read(paddr, PAGE),
                tree.lookup_path(f"pages/{pfn}").read(0, PAGE),
                core.read(paddr, PAGE),
            ):
                assert hashlib.sha1(data).hexdigest() == digest, hex(paddr)
        assert compared > 10


@pytest.mark.parametrize(("name", "truth"), COMMITTED, ids=[name for name, _ in COMMITTED])
def test_pages_of_a_committed_dump_are_the_machines(name, truth, data):
    check(data(name), data(truth))


@pytest.mark.parametrize(("name", "truth"), CORPUS, ids=[name for name, _ in CORPUS])
def test_pages_of_a_corpus_dump_are_the_machines(name, truth, corpus):
    check(corpus(name), corpus(truth))


def test_split_set_shows_the_same_files_as_the_whole(corpus, data):
    parts = [str(corpus(f"tiny/mkd-split-zlib-d31.{n}")) for n in (2, 1)]
    with Dump.open(parts) as split, Dump.open([str(data("mkd-raw-d31.kdump"))]) as whole:
        for path in ("hmem", "vmcore", "bitmaps/ram", "bitmaps/stored", "memmap", "vmcoreinfo"):
            a, b = split.tree.lookup_path(path), whole.tree.lookup_path(path)
            assert a.size() == b.size()
            for offset in range(0, a.size(), 1 << 20):
                assert a.read(offset, 1 << 20) == b.read(offset, 1 << 20), path
        assert list(split.tree.lookup_path("pages").entries(0)) == list(whole.tree.lookup_path("pages").entries(0))


def test_every_view_of_a_dump_reads_whole_and_in_pieces_alike(data):
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        for path, node in dump.tree.files():
            if node.volatile:
                continue
            size = min(node.size(), 1 << 20)
            whole = node.read(0, size)
            pieces = [node.read(offset, 10_007) for offset in range(0, size, 10_007)]
            assert b"".join(pieces)[:size] == whole, path
