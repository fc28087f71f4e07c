"""The logs of real dumps, against what makedumpfile, crash and the guests themselves say they are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from dumpfs.formats import open_image
from dumpfs.linux.kernel import Kernel, find_kernel
from dumpfs.linux.printk import records, render_dmesg
from dumpfs.linux.printk_ring import _open

EXACT = [
    (("deb61/raw-d31.kdump",), "deb61/log.expected"),
    (("tiny/kdump-kaslr.vmcore",), "tiny/kdump-kaslr.log.expected"),
    (("tiny/qemu-kaslr.elf",), "tiny/qemu-kaslr.log.expected"),
    (("tiny/qemu-kaslr.kdump-zlib",), "tiny/qemu-kaslr.log.expected"),
    (("tiny/qemu-kaslr.kdump-lzo",), "tiny/qemu-kaslr.log.expected"),
    (("tiny/qemu-kaslr.kdump-snappy",), "tiny/qemu-kaslr.log.expected"),
    (("tiny/mkd-snappy-d31.kdump",), "tiny/mkd.log.expected"),
    (("tiny/mkd-zstd-d31.kdump",), "tiny/mkd.log.expected"),
    (("tiny/mkd-split-zlib-d31.2", "tiny/mkd-split-zlib-d31.1"), "tiny/mkd.log.expected"),
    (("foreign/arm64/arm64.kdump-zlib",), "foreign/arm64/log.expected"),
]


def kernel_of(paths: list[Path], **options: object) -> Kernel:
    return find_kernel(open_image([str(path) for path in paths]), **options)


@pytest.mark.parametrize(("names", "expected"), EXACT, ids=[names[0] for names, _ in EXACT])
def test_log_is_what_makedumpfile_prints(corpus: Callable[[str], Path], names: tuple[str, ...], expected: str):
    dmesg = render_dmesg(kernel_of([corpus(name) for name in names]))
    assert dmesg.text == corpus(expected).read_bytes()
    assert dmesg.notices == ()


def test_log_of_the_committed_dump_is_what_makedumpfile_prints(data: Callable[[str], Path]):
    kernel = kernel_of([data("mkd-raw-d31.kdump")])
    assert kernel.problems == ()
    assert render_dmesg(kernel).text == data("mkd.log.expected").read_bytes()


def test_records_tell_level_facility_and_caller(data: Callable[[str], Path]):
    kernel = kernel_of([data("mkd-raw-d31.kdump")])
    marker = next(r for r in records(kernel) if r.text == b"dumpfs-corpus marker line")
    assert (marker.facility, marker.level) == (1, 4)  # written to /dev/kmsg with <12>
    assert [r.seq for r in records(kernel)] == list(range(len(list(records(kernel)))))


def test_s390x_log_has_every_line_of_the_guest_in_order(corpus: Callable[[str], Path]):
    wanted = corpus("foreign/s390x/truth/dmesg.txt").read_text().splitlines()
    text = render_dmesg(kernel_of([corpus("foreign/s390x/s390x.kdump-zlib")])).text.decode()
    lines = iter(line.strip() for line in text.splitlines())
    assert [line for line in wanted if line.strip() not in lines] == []


def stripped(line: str) -> str:
    """A line without its time: the guest's dmesg repeats the time on lines after a record's first."""
    return line[line.index("]") + 1 :].strip() if line.startswith("[") else line.strip()


def test_log_without_vmcoreinfo_is_found_by_searching_memory(corpus: Callable[[str], Path]):
    kernel = kernel_of([corpus("tiny/qemu-kaslr-novmci.kdump-zlib")])
    assert kernel.vmcoreinfo is None
    text = render_dmesg(kernel.deep).text.decode()
    wanted = corpus("tiny/truth/kaslr-novmci/dmesg.txt").read_text()
    assert [stripped(line) for line in text.splitlines()] == [stripped(line) for line in wanted.splitlines()]


@pytest.mark.parametrize("name", ["mkd-incomplete-zlib-d31.kdump", "mkd-incomplete-elf-d31.elf"])
def test_an_incomplete_dump_is_understood_as_far_as_it_goes(data: Callable[[str], Path], name: str):
    kernel = kernel_of([data(name)])
    assert kernel.release == "6.1.192-dumpfs-tiny"
    assert kernel.phys_base == 0
    assert kernel.problems


@pytest.mark.parametrize(("part", "says_panic"), [("data", True), ("infos", True), ("descs", False)])
def test_a_real_log_with_a_lost_page_says_what_is_missing(tmp_path, data, capfd, part, says_panic):
    """The descriptor of one page of the log is emptied; the text, the message and the exit code tell of it."""
    source = data("mkd-raw-d31.kdump")
    kernel = kernel_of([source])
    ring = _open(kernel.space, kernel.vmcoreinfo)
    pfn = kernel.space.translate(getattr(ring, part).vaddr + 0x1000) >> 12
    raw = bytearray(source.read_bytes())
    block, sub, bitmaps = struct.unpack_from("<3I", raw, 428)
    entry = block * (1 + sub + bitmaps) + 24 * kernel.image.stored.rank(pfn)
    raw[entry : entry + 24] = bytes(24)
    path = tmp_path / "dump"
    path.write_bytes(raw)

    assert main(["dmesg", str(path)]) == 4
    out, err = capfd.readouterr()
    whole = data("mkd.log.expected").read_text().splitlines()
    (gap,) = (line for line in out.splitlines() if line.startswith("-- "))
    assert f"(page {pfn:#x} is lost" in gap
    there = [line for line in out.splitlines() if line != gap]
    assert len(there) < len(whole)
    assert all(line in whole for line in there)
    assert "the log is not whole: something is missing in 1 place" in err
    assert main(["info", str(path)]) == 0
    panic = capfd.readouterr().out.splitlines()[0]
    assert ("Kernel panic - not syncing" in panic) is says_panic
    assert ("unknown: its log is not whole, with 1 gap" in panic) is not says_panic
    assert main(["write", "--dump-dmesg", str(path), str(tmp_path / "log")]) == 4
    assert gap in (tmp_path / "log").read_text()
