"""A mounted dump can be copied: what is listed can be read, and /status tells of the rest before anybody asks."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import run

BIG = frozenset(("hmem", "vmcore", "vmcore-tasks", "vmcore-kern", "pages"))
"""What nobody copies who copies the rest."""
DUMPS = ["mkd-raw-d31.kdump", "mkd-incomplete-zlib-d31.kdump", "mkd-incomplete-elf-d31.elf"]
CORPUS = ["tiny/qemu-kaslr-novmci.kdump-zlib", "foreign/s390x/s390x.kdump-zlib", "deb61/raw-d31.kdump"]


@pytest.fixture(params=[*DUMPS, *CORPUS])
def tree(request, mount, data, corpus) -> Path:
    """A mount that nobody has looked into."""
    name = request.param
    return mount(data(name) if name in DUMPS else corpus(name))


def files(folder: Path) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        yield from (os.path.relpath(os.path.join(path, name), folder) for name in names)


def small(tree: Path) -> list[Path]:
    return [tree / name for name in sorted(os.listdir(tree)) if name not in BIG]


def test_copies_end_well_and_have_everything(tree, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    done = run("cp", "-r", *small(tree), copy)
    assert (done.returncode, done.stderr) == (0, "")
    found = set(files(copy))
    assert {"README", "status", "memmap", "info.json", "bitmaps/ram", "cpus/0/registers"} <= found
    tar = tmp_path / "copy.tar"
    done = run("tar", "-C", tree, *(f"--exclude=./{name}" for name in BIG), "-cf", tar, ".")
    assert (done.returncode, done.stderr) == (0, "")
    with tarfile.open(tar) as archive:
        sizes = {member.name.removeprefix("./"): member.size for member in archive if member.isfile()}
    assert set(sizes) == found
    assert {name: size for name, size in sizes.items() if name != "status"} == {
        name: (copy / name).stat().st_size for name in found if name != "status"
    }
    assert sizes["status"] > 0


def test_search_and_rsync_end_well(tree, tmp_path):
    done = run("grep", "-rc", "", *small(tree))
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    copy = tmp_path / "copy"
    done = run("rsync", "-a", *(f"--exclude=/{name}" for name in BIG), f"{tree}/", copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert (copy / "status").read_text().startswith("dump:\n")


def test_status_tells_what_is_not_offered_before_anybody_asked(mount, data):
    tree = mount(data("mkd-incomplete-zlib-d31.kdump"))
    offered = (tree / "status").read_text().split("not offered:\n")[1].split("could not be built:")[0]
    assert "  config: no configuration in the kernel" in offered
    assert "  tasks: page 0x1881 is lost" in offered
    assert "  dmesg: page 0x1c36 is lost" in offered
    assert not {"config", "tasks", "dmesg", "kallsyms"} & set(os.listdir(tree))
    with pytest.raises(FileNotFoundError):
        (tree / "tasks").stat()


def test_status_tells_which_files_of_tasks_are_missing(mount, data):
    tree = mount(data("mkd-raw-d31.kdump"))
    assert "  tasks/*/cmdline: not of 5 of 36 processes: page 0x1bff is excluded" in (tree / "status").read_text()
    assert "cmdline" not in os.listdir(tree / "tasks" / "1")
    assert "cmdline" in os.listdir(tree / "tasks" / "2")
    with pytest.raises(OSError, match="No data available"):
        (tree / "tasks" / "1" / "cmdline").read_bytes()


def test_status_has_its_size(mount, data):
    tree = mount(data("mkd-raw-d31.kdump"), "workers=3")
    (tree / "status").read_bytes()
    for _ in range(20):
        size = (tree / "status").stat().st_size
        assert len((tree / "status").read_bytes()) == size > 0


def test_names_that_stay_are_the_same_for_every_worker(mount, data):
    tree = mount(data("mkd-incomplete-zlib-d31.kdump"), "workers=3")
    listings = {tuple(sorted(os.listdir(tree))) for _ in range(12)}
    assert len(listings) == 1
