"""Real dumps through the kernel: the right bytes, and what happens when the file is damaged or changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from dumpfs.vfs.context import Dump
from tests.build.kdump import KdumpSpec, split_parts
from tests.corpus import ROOT
from tests.fuse.conftest import is_mounted, run
from tests.unit.cli.dumps import MAX_PFN, flat_memory, memory

PAGE = 4096


@pytest.fixture
def dump(data) -> Path:
    return data("mkd-raw-d31.kdump")


@pytest.fixture
def own(dump, tmp_path) -> Path:
    """A copy of the dump that a test may damage."""
    return Path(shutil.copy(dump, tmp_path / "own.kdump"))


@pytest.fixture
def truth(data) -> dict[int, str]:
    """Page frame number to sha1 of some pages."""
    pages = json.loads(data("pages-mkd.json").read_text())
    return {int(paddr) // PAGE: sha1 for paddr, sha1 in pages.items()}


def stored(tree: Path) -> list[int]:
    """Numbers of the stored pages."""
    return sorted(map(int, os.listdir(tree / "pages")))


def attribute(tree: Path, pfn: int, name: str) -> bytes:
    return os.getxattr(tree / "pages" / str(pfn), f"user.dumpfs.{name}")


def read(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def test_every_known_page_has_its_sha1_through_hmem_and_pages(mount, dump, truth):
    tree = mount(dump)
    there = set(stored(tree))
    checked = 0
    for pfn, sha1 in truth.items():
        if pfn in there:
            checked += 1
            assert hashlib.sha1(read(tree / "hmem", pfn * PAGE, PAGE)).hexdigest() == sha1
            assert hashlib.sha1((tree / "pages" / str(pfn)).read_bytes()).hexdigest() == sha1
    assert checked > 50


def test_dd_of_hmem_is_the_page(mount, dump):
    tree = mount(dump)
    for pfn in stored(tree)[:: len(stored(tree)) // 20]:
        done = run("dd", f"if={tree}/hmem", "bs=4096", f"skip={pfn}", "count=1", "status=none", text=False)
        assert done.stdout == (tree / "pages" / str(pfn)).read_bytes()
        assert done.stdout == (tree / "pages" / hex(pfn)).read_bytes()


def test_pages_are_as_many_as_are_stored(mount, dump):
    tree = mount(dump)
    info = json.loads((tree / "info.json").read_text())
    count = int(run(f"ls -U {tree}/pages | wc -l", shell=True).stdout)
    assert str(count) in json.dumps(info)
    assert run(f"find {tree}/pages -type f | wc -l", shell=True).stdout.strip() == str(count)


def test_log_reads_the_same_with_and_without_a_mount(mount, dump, data):
    tree = mount(dump)
    assert (tree / "dmesg").read_bytes() == data("mkd.log.expected").read_bytes()


def test_buffered_direct_and_mapped_reads_agree(mount, dump):
    tree = mount(dump)
    plain = hashlib.sha1((tree / "vmcore").read_bytes()).hexdigest()
    direct = run(f"dd if={tree}/vmcore iflag=direct bs=1M status=none | sha1sum", shell=True).stdout.split()[0]
    assert plain == direct


def test_flipped_byte_costs_one_page(mount, data, tmp_path):
    mount.expect(r"page 0x[0-9a-f]+ is corrupt \(zlib: the stored bytes are damaged\)")
    own = Path(shutil.copy(data("mkd-incomplete-zlib-d31.kdump"), tmp_path / "own.kdump"))
    whole = mount(own)
    compressed = (pfn for pfn in stored(whole)[500:] if attribute(whole, pfn, "codec") == b"zlib")
    pfn = next(pfn for pfn in compressed if {pfn - 1, pfn + 1} <= set(stored(whole)))
    around = read(whole / "hmem", (pfn - 8) * PAGE, 8 * PAGE)
    offset, size = int(attribute(whole, pfn, "offset")), int(attribute(whole, pfn, "size"))
    with own.open("r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)[0]
        file.seek(offset + size // 2)
        file.write(bytes((byte ^ 0xFF,)))
    tree = mount(own)
    out = tmp_path / "out"
    total = (tree / "hmem").stat().st_size
    options = (f"skip={pfn - 8}", "count=16", "bs=4096", "conv=noerror,sync")
    assert "Input/output error" in run("dd", f"if={tree}/hmem", f"of={out}", *options).stderr
    assert out.read_bytes()[: 8 * PAGE] == around
    assert out.read_bytes()[8 * PAGE : 9 * PAGE] == bytes(PAGE)
    assert out.read_bytes()[9 * PAGE : 10 * PAGE] == (tree / "pages" / str(pfn + 1)).read_bytes()
    with pytest.raises(OSError) as failure:
        (tree / "pages" / str(pfn)).read_bytes()
    assert failure.value.errno == errno.EIO
    assert (tree / "hmem").stat().st_size == total
    assert (tree / "status").read_text().count(f"{pfn:#x}") == 1
    assert mount.log(tree).count(f"page {pfn:#x} ") == 1


def test_truncated_while_mounted_costs_the_lost_pages_only(mount, own):
    mount.expect("page 0x[0-9a-f]+ is (lost|corrupt)")
    tree = mount(own)
    pages = stored(tree)
    size = (tree / "hmem").stat().st_size
    by_offset = {int(attribute(tree, pfn, "offset")): pfn for pfn in pages[:: len(pages) // 50]}
    first, last = by_offset[min(by_offset)], by_offset[max(by_offset)]
    os.truncate(own, (min(by_offset) + max(by_offset)) // 2)
    with pytest.raises(OSError) as failure:
        (tree / "pages" / str(last)).read_bytes()
    assert failure.value.errno == errno.EIO
    assert len((tree / "pages" / str(first)).read_bytes()) == PAGE
    with pytest.raises(OSError) as failure:
        read(tree / "hmem", last * PAGE, PAGE)
    assert failure.value.errno == errno.EIO
    status = (tree / "status").read_text()
    assert "truncated from" in status
    assert f"{last:#x}" in status
    assert (tree / "hmem").stat().st_size == size
    assert is_mounted(tree)
    log = mount.log(tree)
    assert log.count(f"page {last:#x} ") == 1


def test_file_emptied_while_mounted_never_turns_pages_into_zeros(mount, own, tmp_path):
    mount.expect("page 0x[0-9a-f]+ is (lost|corrupt)")
    shutil.copy(own, tmp_path / "copy")
    with Dump.open([tmp_path / "copy"]) as dump:
        size = dump.memory_size
        pages = {pfn: dump.phys.read(pfn * PAGE, PAGE) for pfn in range(0, size // PAGE, 37)}
    tree = mount(own)
    os.truncate(own, 0)
    assert (tree / "hmem").stat().st_size == size
    failures = []
    for pfn, content in pages.items():
        try:
            found = read(tree / "hmem", pfn * PAGE, PAGE)
        except OSError as error:
            failures.append(error.errno)
        else:
            assert found == content
    assert set(failures) == {errno.EIO}
    assert len(failures) > len(pages) // 10
    assert is_mounted(tree)


@pytest.mark.parametrize("change", ["grown", "replaced", "removed"])
def test_changed_file_is_told_and_still_read(mount, own, tmp_path, change):
    tree = mount(own)
    pfn = stored(tree)[500]
    before = (tree / "pages" / str(pfn)).read_bytes()
    if change == "grown":
        with own.open("ab") as file:
            file.write(b"more")
    elif change == "replaced":
        (tmp_path / "new").write_bytes(b"something else")
        (tmp_path / "new").replace(own)
    else:
        own.unlink()
    assert change in (tree / "status").read_text()
    assert read(tree / "hmem", pfn * PAGE, PAGE) == before


def test_holes_are_zeros_or_errors_as_asked(mount, dump):
    zeros, errors = mount(dump), mount(dump, "holes=error")
    there = set(stored(zeros))
    excluded = next(pfn for pfn in range(1, 100_000) if pfn not in there and (zeros / "pages" / str(pfn)).exists())
    assert read(zeros / "hmem", excluded * PAGE, PAGE) == bytes(PAGE)
    for path, offset in ((errors / "hmem", excluded * PAGE), (errors / "pages" / str(excluded), 0)):
        with pytest.raises(OSError) as failure:
            read(path, offset, PAGE)
        assert failure.value.errno == errno.ENODATA
    assert attribute(zeros, excluded, "state") == b"excluded"


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    """A split set of two."""
    found = []
    for number, part in enumerate(split_parts(memory(), KdumpSpec(dump_level=31), [0, 32, MAX_PFN])):
        found.append(tmp_path / f"part{number}")
        found[-1].write_bytes(part.data)
    return found


def test_split_set_mounts_in_any_order(mount, parts):
    for order in (parts, parts[::-1]):
        assert (mount(order) / "hmem").read_bytes() == flat_memory()


def test_parts_may_be_named_by_option(mount, parts):
    assert (mount(parts[0], f"part={parts[1]}") / "hmem").read_bytes() == flat_memory()


def test_missing_part_loses_its_pages_only(mount, parts):
    mount.expect("page 0x[0-9a-f]+ is lost")
    tree = mount(parts[0])
    assert read(tree / "hmem", 0, 8 * PAGE) == flat_memory()[: 8 * PAGE]
    with pytest.raises(OSError) as failure:
        read(tree / "hmem", 0x30 * PAGE, PAGE)
    assert failure.value.errno == errno.EIO


CORPUS = Path(os.environ.get("DUMPFS_CORPUS", ROOT.parent / "shared" / "corpus"))
COMMITTED = ("mkd-raw-d31.kdump", "mkd-incomplete-zlib-d31.kdump", "mkd-incomplete-elf-d31.elf")
SOME = (
    "deb61/raw-d31.kdump",
    "tiny/kdump-kaslr.vmcore",
    "tiny/qemu-kaslr.elf",
    "tiny/qemu-kaslr.kdump-zlib",
    "tiny/qemu-kaslr.kdump-lzo",
    "tiny/qemu-kaslr-novmci.kdump-zlib",
    "tiny/mkd-zstd-d31.kdump",
    "foreign/arm64/arm64.kdump-zlib",
    "foreign/s390x/s390x.kdump-zlib",
)
AVAILABLE = [name for name in SOME if (CORPUS / name).exists() or (CORPUS / f"{name}.xz").exists()]
"""Only what is there: a mount test may not be skipped under CI, where the corpus need not be."""


@pytest.mark.parametrize("name", [*COMMITTED, *AVAILABLE])
def test_real_dump_mounts(mount, corpus, data, name):
    tree = mount(corpus(name) if name in SOME else data(name))
    assert json.loads((tree / "info.json").read_text())
    assert (tree / "hmem").stat().st_size > 0
    page = stored(tree)[len(stored(tree)) // 2]
    assert len((tree / "pages" / str(page)).read_bytes()) > 0
