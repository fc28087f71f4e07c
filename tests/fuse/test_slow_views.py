"""Files that take long to build: built once for all workers, while other requests go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounter, run, wait_until
from tests.fuse.fake_mount import PAGE, SLOW, ZERO_SIZE

READ = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); sys.stdout.buffer.write(os.read(fd, 12))"


def readers(path: Path, count: int) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(count)
    ]


def outputs(processes: list[subprocess.Popen[bytes]]) -> set[bytes]:
    return {process.communicate(timeout=60)[0] for process in processes}


def builders(tree: Path, name: str) -> list[str]:
    """Processes that began to build a file."""
    notes = tree.parent / name
    return notes.read_text().split() if notes.exists() else []


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_file_is_built_once_for_all_workers_and_readers(mount: Mounter, workers):
    tree = mount.fake(f"workers={workers}")
    assert outputs(readers(tree / "slow-slow", 5)) == {SLOW[:12]}
    assert len(builders(tree, "slow")) == 1
    assert (tree / "slow-slow").stat().st_size == len(SLOW)
    assert (tree / "slow-slow").read_bytes() == SLOW
    assert len(builders(tree, "slow")) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_other_files_answer_while_one_is_built(mount, workers):
    tree = mount.fake(f"workers={workers}")
    waiting = readers(tree / "slow-slow", 4)
    wait_until(lambda: builders(tree, "slow"), "building has begun")
    slowest = 0.0
    fd = os.open(tree / "zero", os.O_RDONLY | os.O_DIRECT)
    for i in range(20):
        begin = time.monotonic()
        assert len(os.pread(fd, 5, ZERO_SIZE - 5 - i * PAGE)) == 5
        slowest = max(slowest, time.monotonic() - begin)
    os.close(fd)
    assert all(process.poll() is None for process in waiting), "still being built"
    assert slowest < 0.3
    assert outputs(waiting) == {SLOW[:12]}


def test_listing_builds_nothing_but_stat_tells_the_true_size(mount):
    tree = mount.fake()
    assert "slow-slow" in os.listdir(tree)
    assert builders(tree, "slow") == []
    assert (tree / "slow-slow").stat().st_size == len(SLOW)


def test_file_with_nothing_to_hand_over_is_read_by_each_worker(mount):
    tree = mount.fake("workers=2")
    assert (tree / "slow-inline").stat().st_size == len(SLOW)
    assert (tree / "slow-inline").read_bytes() == SLOW
    assert len(builders(tree, "inline")) == 1


def test_reader_that_gives_up_waiting_does_no_harm(mount):
    tree = mount.fake("workers=2")
    waiting = readers(tree / "slow-slow", 3)
    wait_until(lambda: builders(tree, "slow"), "building has begun")
    for process in waiting:
        process.kill()
    for process in waiting:
        process.communicate(timeout=60)
    assert (tree / "text").read_text() == "some text\n"
    assert (tree / "slow-slow").read_bytes() == SLOW
    assert len(builders(tree, "slow")) == 1


def test_file_that_cannot_be_built_says_so_to_everybody(mount):
    mount.expect("made up: cannot be built")
    tree = mount.fake()
    for _ in range(4):
        with pytest.raises(OSError) as failure:
            (tree / "slow-fails").read_bytes()
        assert failure.value.errno == errno.ENODATA
    assert len(builders(tree, "fails")) == 1
    assert mount.log(tree).count("made up: cannot be built") == 1
    assert (tree / "slow-fails").stat().st_size == 0
    assert run("ls", "-l", tree / "slow-fails").returncode == 0


def test_bug_while_building_is_eio_with_a_traceback(mount):
    mount.expect("unexpected error while building|Traceback")
    tree = mount.fake()
    with pytest.raises(OSError) as failure:
        (tree / "slow-bug").read_bytes()
    assert failure.value.errno == errno.EIO
    assert "ZeroDivisionError" in mount.log(tree)
    assert (tree / "text").read_text() == "some text\n"


def test_helper_that_dies_is_replaced(mount):
    mount.expect("the helper that was building .* was killed by signal 9")
    tree = mount.fake()
    assert (tree / "slow-dies once").read_bytes() == SLOW
    assert len(builders(tree, "dies once")) == 2


def test_helper_that_keeps_dying_gives_the_file_up(mount):
    mount.expect("the helper that was building .* was killed by signal 9|3 helper processes died")
    tree = mount.fake()
    for _ in range(2):
        with pytest.raises(OSError) as failure:
            (tree / "slow-dies").read_bytes()
        assert failure.value.errno == errno.EIO
    assert len(builders(tree, "dies")) == 3


def test_log_is_built_before_anybody_asks(mount, data):
    tree = mount(data("mkd-raw-d31.kdump"))
    assert "views_built: 1\n" in (tree / "status").read_text()
    assert "Kernel panic" in (tree / "dmesg").read_text()
    assert "views_built: 1\n" in (tree / "status").read_text()
