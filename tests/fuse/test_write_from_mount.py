"""Writing from a mounted dump gives what writing from the dump itself gives; what has no content stays so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page
from tests.fuse.conftest import run

PAGE = 4096
WRITE = [sys.executable, "-m", "dumpfs.cli.main", "write", "--message-level", "4"]


@pytest.mark.parametrize("level", ["0", "1", "31"])
@pytest.mark.parametrize("name", ["", "vmcore"], ids=["mount point", "vmcore"])
def test_filtered_dump_keeps_exactly_its_pages(mount, data, tmp_path, level, name):
    source = data("mkd-raw-d31.kdump")
    point: Path = mount(source)
    assert run(*WRITE, "-l", "-d", level, point / name, tmp_path / "mounted").returncode == 0
    assert run(*WRITE, "-l", "-d", level, source, tmp_path / "direct").returncode == 0
    assert (tmp_path / "mounted").read_bytes() == (tmp_path / "direct").read_bytes()


@pytest.mark.parametrize("codec", ["-c", "-E"])
def test_page_that_the_mount_cannot_read_never_becomes_zeros(mount, tmp_path, codec):
    pages = {pfn: Page(b"page %3d" % pfn * 512, codec="zlib") for pfn in range(64)}
    pages[20] = Page(kind=Kind.CORRUPT, stored_form=(1, b"not zlib"))
    pages[30] = Page(kind=Kind.EXCLUDED)
    pages[40] = Page(bytes(PAGE), codec="zero")
    memory = Memory(PAGE, 64, pages)
    (tmp_path / "source").write_bytes(build_kdump(memory, KdumpSpec(machine="x86_64")).data)
    mount.expect("page 0x14 is corrupt")
    point: Path = mount(tmp_path / "source")
    assert run(*WRITE, codec, point, tmp_path / "out").returncode == 4
    image = open_image([str(tmp_path / "out")])
    states = [image.read_page(pfn)[1].name for pfn in (20, 30, 40)]
    image.close()
    assert states == (["LOST", "EXCLUDED", "STORED"] if codec == "-c" else ["ABSENT", "EXCLUDED", "STORED"])


def test_other_files_of_a_mount_are_refused(mount, data, tmp_path):
    point: Path = mount(data("mkd-raw-d31.kdump"))
    done = run(*WRITE, point / "hmem", tmp_path / "out")
    assert done.returncode == 3
    assert "not from its other files" in done.stderr
