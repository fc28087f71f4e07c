"""Files that take long to build: built once for all workers, while other requests go on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
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
    fd = os.open(tree / "zero", os.O_RDONLY | os.O_DIRECT)
    for i in range(20):
        assert len(os.pread(fd, 5, ZERO_SIZE - 5 - i * PAGE)) == 5
    os.close(fd)
    assert all(process.poll() is None for process in waiting), "answers waited for what was being built"
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
    assert "views_built: 2\n" in (tree / "status").read_text()  # and what /status needs to know
    assert "Kernel panic" in (tree / "dmesg").read_text()
    assert "views_built: 2\n" in (tree / "status").read_text()


def known_by_leader(tree: Path) -> bytes:
    """What files contain that were built by a process that knew what the leader found out."""
    (pid,) = builders(tree, "leader")
    return b"found by %s\n" % pid.encode()


def standing_by(mount: Mounter, tree: Path) -> list[int]:
    """Helpers that are there although nothing is being built: neither the supervisor nor one of its workers."""
    return mount.processes(tree)[3:]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_sure_to_be_wanted_is_built_at_once_by_who_knows(mount, workers):
    tree = mount.fake(f"workers={workers}")
    assert (tree / "leader").read_bytes() == SLOW
    wait_until(lambda: builders(tree, "sure"), "building has begun before anybody asked")
    assert (tree / "sure").read_bytes() == known_by_leader(tree)
    assert len(builders(tree, "sure")) == 1


def test_what_follows_is_built_once_for_all_readers(mount):
    tree = mount.fake("workers=2")
    waiting = [*readers(tree / "sure", 2), *readers(tree / "leader", 2), *readers(tree / "perhaps", 2)]
    outputs(waiting)
    assert [len(builders(tree, name)) for name in ("leader", "sure", "perhaps")] == [1, 1, 1]


def test_nothing_follows_where_nobody_asked_for_the_first(mount):
    tree = mount.fake()
    assert (tree / "sure").read_bytes() == b"nothing\n"
    assert builders(tree, "leader") == builders(tree, "perhaps") == []


def test_what_may_be_wanted_is_built_by_who_knows_once_it_is_asked_for(mount):
    tree = mount.fake("workers=2")
    (tree / "leader").read_bytes()
    assert outputs(readers(tree / "perhaps", 3)) == {known_by_leader(tree)[:12]}
    assert len(builders(tree, "perhaps")) == 1
    assert builders(tree, "perhaps not") == []


def test_who_stands_by_leaves_and_others_build(mount):
    tree = mount.fake("workers=2")
    (tree / "leader").read_bytes()
    (tree / "perhaps").read_bytes()
    wait_until(lambda: not standing_by(mount, tree), "the helper has left")
    assert builders(tree, "perhaps not") == []
    assert (tree / "perhaps not").read_bytes() == b"nothing\n"
    assert (tree / "perhaps").read_bytes() == known_by_leader(tree)


def test_who_stands_by_is_not_missed_when_killed(mount):
    mount.expect("is gone; another begins|killed by signal 9")
    tree = mount.fake("workers=2")
    (tree / "leader").read_bytes()
    for pid in standing_by(mount, tree):
        os.kill(pid, signal.SIGKILL)
    assert (tree / "perhaps").read_bytes()[:2] in (b"fo", b"no")
    assert (tree / "sure").read_bytes()


def test_follower_whose_helper_dies_is_built_by_the_next(mount):
    mount.expect("the helper that was building .* was killed by signal 9")
    tree = mount.fake()
    (tree / "reckless").read_bytes()
    wait_until(lambda: builders(tree, "sure dies once"), "building has begun")
    assert (tree / "sure dies once").read_bytes() == b"nothing\n"
    assert len(builders(tree, "sure dies once")) == 2


def test_unmounting_ends_who_stands_by(mount):
    tree = mount.fake("workers=2")
    (tree / "leader").read_bytes()
    assert standing_by(mount, tree)
    assert run("umount", tree).returncode == 0
    wait_until(lambda: not mount.processes(tree), "no process is left", seconds=1.5)
