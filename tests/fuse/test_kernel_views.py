"""The kernel's memory through a mount: cores that a helper plans for all workers."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.fuse.conftest import DUMPFS

CORES = ["vmcore", "vmcore-tasks", "vmcore-kern"]


def inline(path: Path, name: str) -> bytes:
    """A file of a dump without a mount."""
    return subprocess.run([DUMPFS, "cat", str(path), name], capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_reads_by_the_same_plan(mount, data, name, workers):
    dump = data("mkd-raw-d31.kdump")
    tree = mount(dump, f"workers={workers}")
    expected = inline(dump, name)
    assert (tree / name).stat().st_size == len(expected)
    for _ in range(2):
        with open(tree / name, "rb", buffering=0) as file:
            assert b"".join(iter(lambda: file.read(1 << 20), b"")) == expected


def test_notices_of_a_core_are_told_by_whichever_worker(mount, data):
    tree = mount(data("mkd-incomplete-zlib-d31.kdump"), "workers=3")
    (tree / "vmcore").stat()
    notices = {
        tuple(line for line in (tree / "status").read_text().splitlines() if line.startswith("  /vmcore: "))
        for _ in range(12)
    }
    assert notices == {("  /vmcore: what 1 page tables map is left out, for they are not in the dump",)}


def test_a_core_that_cannot_be_made_says_why(mount, data):
    mount.expect("page 0x[0-9a-f]+ is lost")
    tree = mount(data("mkd-incomplete-zlib-d31.kdump"))
    with pytest.raises(OSError):
        (tree / "vmcore-tasks").read_bytes()
    status = (tree / "status").read_text()
    assert "vmcore-tasks: " in status.split("could not be built:")[1]


def test_other_files_answer_while_a_core_is_first_opened(mount, data):
    tree = mount(data("mkd-raw-d31.kdump"))
    for name in ("dmesg", "version"):
        (tree / name).read_bytes()
    opening = [threading.Thread(target=(tree / name).stat) for name in CORES]
    for thread in opening:
        thread.start()
    answered = 0
    while any(thread.is_alive() for thread in opening):
        assert (tree / "dmesg").stat().st_size
        with open(tree / "version", "rb") as file:
            assert len(file.read(10)) == 10
        answered += any(thread.is_alive() for thread in opening)
    for thread in opening:
        thread.join()
    assert answered > 0, "every answer waited for the cores"
