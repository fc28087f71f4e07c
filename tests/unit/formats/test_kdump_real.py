"""The real dumps of tests/data, and those of the corpus where it is: pages by their SHA-1, and header facts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.formats.base import DumpImage
from dumpfs.units import PageState

_GOOD = (PageState.STORED, PageState.PARTIAL)


def check_pages(image: DumpImage, oracle: Path) -> Counter[PageState]:
    """Each page named in the oracle that is stored has its SHA-1; returns how many there were of each state."""
    counts: Counter[PageState] = Counter()
    meta = image.meta
    for address, digest in json.loads(oracle.read_text()).items():
        block, inside = divmod(int(address) - meta.first_paddr, meta.block_size)
        data, state, detail = image.read_page(block)
        counts[state] += 1
        assert state is not PageState.CORRUPT, detail
        if state in _GOOD:
            assert hashlib.sha1(data[inside : inside + 4096]).hexdigest() == digest, f"page at {address}"
            again = bytes(image.read_run(block, 1)[0])
            assert again == data
    return counts


# -- committed ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(data):
    image = open_image([data("mkd-raw-d31.kdump")])
    yield image
    image.close()


def test_sample_header(sample):
    meta = sample.meta
    assert (meta.format, meta.version, meta.machine, meta.block_size) == ("kdump", 6, "x86_64", 4096)
    assert (meta.max_pfn, sample.ram.count()) == (26586, 16248)
    assert sample.stored.count() == 6088
    assert (meta.dump_level, meta.compression, meta.nr_cpus, meta.phys_base) == (31, "none", 2, 0)
    assert (meta.uts.release, meta.uts.nodename) == ("6.1.192-dumpfs-tiny", "dumpfs-tiny")
    assert meta.timestamp == 1795190548
    assert meta.complete
    assert sample.notices == ()


def test_sample_pages(sample, data):
    counts = check_pages(sample, data("pages-mkd.json"))
    assert counts[PageState.STORED] > 100
    assert counts[PageState.LOST] == 0


def test_sample_notes(sample):
    assert sample.vmcoreinfo_text().startswith(b"OSRELEASE=6.1.192-dumpfs-tiny\n")
    assert sample.notes().count(b"CORE\0") == 2


def test_incomplete_kdump_holds_the_first_pages_of_the_sample(sample, data):
    image = open_image([data("mkd-incomplete-zlib-d31.kdump")])
    assert not image.meta.complete
    assert image.meta.incomplete_reason == "flagged incomplete by its writer: 4893 of 6088 pages are missing"
    assert list(image.ram.runs()) == list(sample.ram.runs())
    written = [p for run in image.stored.runs() for p in range(*run)]
    assert written == [p for run in sample.stored.runs() for p in range(*run)][:1195]
    for pfn in written:
        assert image.read_page(pfn) == sample.read_page(pfn)
    assert image.lost.count() == 4893
    image.close()


def test_incomplete_elf_agrees_with_the_sample(sample, data):
    image = open_image([data("mkd-incomplete-elf-d31.elf")])
    assert not image.meta.complete
    check_pages(image, data("pages-mkd.json"))
    compared = 0
    for run in image.stored.runs():
        for pfn in range(*run):
            if sample.state(pfn) is PageState.STORED and image.state(pfn) is PageState.STORED:
                assert image.read_page(pfn)[0] == sample.read_page(pfn)[0]
                compared += 1
    assert compared > 100
    image.close()


def test_every_page_of_the_sample_reads_the_same_alone_and_in_runs(sample):
    for first in range(0, sample.meta.max_pfn, 1024):
        data, states = sample.read_run(first, 1024)
        for i in range(0, 1024, 7):
            page, state, _ = sample.read_page(first + i)
            assert state == states[i]
            assert bytes(data[i * 4096 : (i + 1) * 4096]) == (page or bytes(4096))


# -- corpus ------------------------------------------------------------------------------------------------------------

FULL = {"kdump-kaslr.vmcore", "qemu-kaslr.elf", "arm64.kdump-zlib", "s390x.kdump-zlib"}
CORPUS = [
    (["deb61/raw-d31.kdump"], "deb61/pages.json"),
    (["tiny/kdump-kaslr.vmcore"], "tiny/pages-kdump-kaslr.json"),
    (["tiny/mkd-incomplete-elf-d31.elf"], "tiny/pages-mkd.json"),
    (["tiny/mkd-incomplete-zlib-d31.kdump"], "tiny/pages-mkd.json"),
    (["tiny/mkd-raw-d31.kdump"], "tiny/pages-mkd.json"),
    (["tiny/mkd-snappy-d31.kdump"], "tiny/pages-mkd.json"),
    (["tiny/mkd-zstd-d31.kdump"], "tiny/pages-mkd.json"),
    (["tiny/mkd-split-zlib-d31.2", "tiny/mkd-split-zlib-d31.1"], "tiny/pages-mkd.json"),
    (["tiny/mkd-split-zlib-d31.1"], "tiny/pages-mkd.json"),
    (["tiny/qemu-kaslr.elf"], "tiny/pages-qemu-kaslr.json"),
    (["tiny/qemu-kaslr.kdump-zlib"], "tiny/pages-qemu-kaslr.json"),
    (["tiny/qemu-kaslr.kdump-lzo"], "tiny/pages-qemu-kaslr.json"),
    (["tiny/qemu-kaslr.kdump-snappy"], "tiny/pages-qemu-kaslr.json"),
    (["tiny/qemu-kaslr-novmci.kdump-zlib"], "tiny/pages-qemu-kaslr-novmci.json"),
    (["foreign/arm64/arm64.kdump-zlib"], "foreign/arm64/pages.json"),
    (["foreign/s390x/s390x.kdump-zlib"], "foreign/s390x/pages.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "oracle"), CORPUS, ids=lambda v: "+".join(v) if isinstance(v, list) else None)
def test_pages_of_the_corpus(corpus, files, oracle):
    image = open_image([corpus(name) for name in files])
    counts = check_pages(image, corpus(oracle))
    assert counts[PageState.STORED] > 20
    if Path(files[0]).name in FULL or "qemu" in files[0]:
        assert set(counts) <= {PageState.STORED, PageState.PARTIAL}
    if len(files) == 1 and "split" in files[0]:
        assert counts[PageState.LOST]
        assert not image.meta.complete
    image.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "forms",
    [
        ["tiny/mkd-raw-d31.kdump", "tiny/mkd-snappy-d31.kdump", "tiny/mkd-zstd-d31.kdump"],
        [
            "tiny/qemu-kaslr.elf",
            "tiny/qemu-kaslr.kdump-zlib",
            "tiny/qemu-kaslr.kdump-lzo",
            "tiny/qemu-kaslr.kdump-snappy",
        ],
    ],
    ids=["makedumpfile", "qemu"],
)
def test_one_memory_reads_the_same_in_all_its_forms(corpus, forms):
    digests = set()
    for name in forms:
        image = open_image([corpus(name)])
        digest = hashlib.sha1()
        for first, stop in image.ram.runs():
            for low in range(first, stop, 1024):
                data, states = image.read_run(low, min(1024, stop - low))
                digest.update(bytes(data) + bytes(states))
        digests.add(digest.hexdigest())
        image.close()
    assert len(digests) == 1
