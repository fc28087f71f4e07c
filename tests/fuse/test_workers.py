"""Workers that die: killed from outside, by what they are asked, or before they are asked anything."""

from __future__ import annotations

import errno
import os
import platform
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path

import pytest

from tests.fuse.conftest import DUMPFS, Mounter, is_mounted, run, wait_until
from tests.fuse.fake_mount import PAGE, SIZE, SLOW

KILLED = r"worker \d+ was killed by signal 9 \(SIGKILL\)"
CRASHED = r"worker \d+ ended with exit code 99"
AN_OLD_KERNEL = "w._RESEND = w.struct.pack('=IiQ', 16, 99, 0)"
"""A notification that no kernel knows, as none before 6.9 knows the true one."""
KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
LOST = set() if KERNEL >= (6, 9) else {errno.ECONNABORTED}
"""What readers may hear when a worker is killed."""


def children(pid: int) -> list[int]:
    """Processes that a process has started, or adopted."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pids: list[int]) -> bool:
    """Whether processes have ended (zombies have)."""
    return not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids)


def devices(pid: int) -> int:
    """How many descriptors of FUSE devices a process has, which may be closing some."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    return links.count("/dev/fuse")


def notes(tree: Path, name: str) -> list[int]:
    """Processes that the made-up files took notes of."""
    path = tree.parent / name
    return [int(word) for word in path.read_text().split()] if path.exists() else []


class Reader(threading.Thread):
    """Reads pages past the kernel's cache, compares them, and keeps account of what is not as it should be."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__()
        self._path = path
        self._random = random.Random(seed)
        self.enough = threading.Event()
        self.reads = 0
        self.errors: set[int] = set()
        self.wrong: list[int] = []

    def run(self) -> None:
        buffer = memoryview(mmap(-1, SIZE))
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        while not self.enough.is_set():
            first = self._random.randrange(SIZE // PAGE)
            pfns = range(first, min(first + self._random.choice((1, 1, 40)), SIZE // PAGE))
            expected = b"".join(bytes((pfn & 255,)) * PAGE for pfn in pfns)
            try:
                size = os.preadv(fd, [buffer[: len(expected)]], first * PAGE)
            except OSError as exc:
                self.errors.add(exc.errno or 0)
            else:
                if buffer[:size] != expected:
                    self.wrong.append(first)
            self.reads += 1
        with suppress(OSError):  # the mount may be gone
            os.close(fd)


@contextmanager
def reading(path: Path) -> Iterator[list[Reader]]:
    """Four readers at work."""
    readers = [Reader(path, seed) for seed in range(4)]
    for reader in readers:
        reader.start()
    try:
        wait_until(lambda: all(reader.reads for reader in readers), "all read")
        yield readers
    finally:
        for reader in readers:
            reader.enough.set()
        for reader in readers:
            reader.join()


def kill_workers(mount: Mounter, tree: Path, readers: list[Reader], count: int) -> None:
    """Kill workers, each after every reader has read something since the last."""
    supervisor = mount.processes(tree)[0]
    chosen = random.Random(7)
    for deaths in range(1, count + 1):
        goals = [reader.reads + 1 for reader in readers]
        wait_until(lambda goals=goals: all(r.reads >= g for r, g in zip(readers, goals, strict=True)), "all read")
        wait_until(lambda: children(supervisor), "there is a worker")
        os.kill(chosen.choice(children(supervisor)), signal.SIGKILL)
        wait_until(lambda deaths=deaths: mount.log(tree).count("takes its place") == deaths, "the death was noticed")


def test_killed_worker_is_replaced_and_status_tells(mount, data):
    mount.expect(KILLED)
    tree = mount(data("mkd-raw-d31.kdump"), "workers=2")
    victim = mount.processes(tree)[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "another takes its place" in mount.log(tree), "the death was noticed")
    wait_until(lambda: len(mount.processes(tree)) == 3, "another has taken its place")
    assert (tree / "vmcoreinfo").read_bytes()
    status = (tree / "status").read_text()
    assert "workers_restarted: 1" in status
    assert str(victim) not in status.split("workers:")[1].splitlines()[0].split()
    assert mount.log(tree).count(f"worker {victim} ") == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_readers_notice_nothing_of_killed_workers(mount, workers):
    mount.expect(KILLED)
    tree = mount.fake(f"workers={workers}")
    with reading(tree / "good") as readers:
        kill_workers(mount, tree, readers, 15)
    assert [reader.wrong for reader in readers] == [[]] * 4
    assert set().union(*(reader.errors for reader in readers)) <= LOST
    wait_until(lambda: len(children(mount.processes(tree)[0])) == workers, "as many as before")


def test_older_kernel_fails_the_requests_of_killed_workers_only(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=2", change=AN_OLD_KERNEL)
    with reading(tree / "good") as readers:
        kill_workers(mount, tree, readers, 10)
    assert [reader.wrong for reader in readers] == [[]] * 4
    assert set().union(*(reader.errors for reader in readers)) <= {errno.ECONNABORTED}
    assert mount.log(tree).count("its requests failed, and another takes its place") == 10
    assert (tree / "text").read_text() == "some text\n"


def test_workers_that_share_a_device_are_replaced_too(mount):
    if LOST:
        pytest.skip("needs Linux 6.9")
    mount.expect(KILLED)
    tree = mount.fake("workers=2", change="w._FUSE_DEV_IOC_CLONE = 0")
    with reading(tree / "good") as readers:
        kill_workers(mount, tree, readers, 5)
    assert [reader.wrong for reader in readers] == [[]] * 4
    assert [reader.errors for reader in readers] == [set()] * 4


def test_mount_ends_when_what_a_dead_worker_was_asked_cannot_be_answered(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=2", change=f"w._FUSE_DEV_IOC_CLONE = 0\n{AN_OLD_KERNEL}")
    os.kill(mount.processes(tree)[-1], signal.SIGKILL)
    wait_until(lambda: not is_mounted(tree), "the mount has ended")
    assert "the mount ends: a worker died" in mount.log(tree)


@pytest.mark.parametrize("workers", [1, 3])
def test_request_that_kills_whoever_takes_it_fails_and_nothing_else(mount, workers):
    mount.expect(CRASHED)
    tree = mount.fake(f"workers={workers}")
    with reading(tree / "good") as readers:
        for tries in range(8):
            fd = os.open(tree / "poison", os.O_RDONLY | os.O_DIRECT)
            with pytest.raises(OSError) as failure:
                os.pread(fd, PAGE, 0)
            os.close(fd)
            assert failure.value.errno == errno.ECONNABORTED
            # The first is asked again, for one crash may have any reason.
            assert len(notes(tree, "poison")) == tries + (1 if LOST else 2)
        goals = [reader.reads + 1 for reader in readers]
        wait_until(lambda: all(r.reads >= g for r, g in zip(readers, goals, strict=True)), "the others go on")
    assert [reader.wrong for reader in readers] == [[]] * 4
    assert set().union(*(reader.errors for reader in readers)) <= LOST
    assert is_mounted(tree)


def test_workers_that_crash_before_they_are_asked_anything_end_the_mount(mount, tmp_path):
    mount.expect(f"{KILLED}|ended with exit code 98")
    broken = f"work = w.Workers._work\nw.Workers._work = lambda *a: 98 if os.path.exists('{tmp_path}/go') else work(*a)"
    tree = mount.fake("workers=2", change=broken)
    (tmp_path / "go").touch()
    os.kill(mount.processes(tree)[-1], signal.SIGKILL)
    wait_until(lambda: not is_mounted(tree), "the mount has ended")
    assert "the mount ends: workers keep dying" in mount.log(tree)
    assert mount.log(tree).count("exit code 98") == 6


def test_foreground_mount_whose_workers_keep_dying_says_so_and_fails(mount, data):
    path = mount.point()
    script = (
        "import sys, dumpfs.fuse.workers as w\n"
        "w.Workers._work = lambda *_: 98\n"
        "from dumpfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run(sys.executable, "-c", script, "mount", "-f", data("mkd-raw-d31.kdump"), path)
    assert done.returncode == 7
    assert f"{path}: the new mount ended: workers keep dying" in done.stderr
    assert not is_mounted(path)


def test_many_deaths_do_not_fill_the_log(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=1", change="w._MAX_LOGGED = 3")
    supervisor = mount.processes(tree)[0]
    for _ in range(6):
        worker = children(supervisor)
        assert (tree / "text").stat().st_size == 10
        os.kill(worker[0], signal.SIGKILL)
        wait_until(lambda worker=worker: children(supervisor) not in ([], worker), "another took its place")
    assert mount.log(tree).count("takes its place") == 3


# -- what a worker leaves behind


def building(tree: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Somebody who reads a slow file, and the process that builds it."""
    script = f"import os; fd = os.open({str(tree / 'slow-slow')!r}, os.O_RDONLY); os.write(1, os.read(fd, 12))"
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: notes(tree, "slow"), "building has begun")
    return reader, notes(tree, "slow")[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_file_is_built_to_the_end_although_its_worker_is_killed(mount, workers):
    mount.expect(KILLED)
    tree = mount.fake(f"workers={workers}")
    supervisor = mount.processes(tree)[0]
    reader, helper = building(tree)
    os.kill(parent(helper), signal.SIGKILL)
    wait_until(lambda: parent(helper) == supervisor, "the helper was adopted")
    if not LOST:
        assert reader.communicate(timeout=60)[0] == SLOW[:12]
    assert (tree / "slow-slow").read_bytes() == SLOW
    assert notes(tree, "slow") == [helper]
    wait_until(lambda: not os.path.exists(f"/proc/{helper}"), "the helper leaves no zombie")
    reader.communicate(timeout=60)


def test_every_process_has_the_devices_it_needs_and_no_other(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=3")
    supervisor, victim, *_ = mount.processes(tree)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "takes its place" in mount.log(tree), "the death was noticed")
    wait_until(lambda: [devices(pid) for pid in children(supervisor)] == [1, 1, 1], "each worker has its own")
    assert devices(supervisor) == 4, "the session's, and one of each worker"
    reader, helper = building(tree)
    wait_until(lambda: devices(helper) == 0, "a helper has none")
    reader.communicate(timeout=60)


def test_killed_supervisor_leaves_no_process(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=2")
    pids = mount.processes(tree)
    with reading(tree / "good") as readers:
        reader, helper = building(tree)
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: gone([*pids, helper]), "everything has ended")
        reader.communicate(timeout=60)
        wait_until(lambda: all(r.errors for r in readers), "nobody waits for an answer")
    assert run(DUMPFS, "umount", tree).returncode == 0


def test_killed_supervisor_leaves_no_adopted_helper(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=2")
    pids = mount.processes(tree)
    reader, helper = building(tree)
    os.kill(parent(helper), signal.SIGKILL)
    wait_until(lambda: parent(helper) == pids[0], "the helper was adopted")
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: gone([*mount.processes(tree), helper]), "everything has ended")
    reader.communicate(timeout=60)
    assert run(DUMPFS, "umount", tree).returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_readers_of_a_mount_that_ends_do_not_wait(mount, signum):
    tree = mount.fake("workers=2")
    pids = mount.processes(tree)
    with reading(tree / "good") as readers:
        os.kill(pids[0], signum)
        wait_until(lambda: gone(pids), "everything has ended")
        wait_until(lambda: all(r.errors for r in readers), "nobody waits for an answer")
    if is_mounted(tree):
        assert run(DUMPFS, "umount", "-l", tree).returncode == 0


def test_unmounting_ends_the_helper_of_a_killed_worker(mount):
    mount.expect(KILLED)
    tree = mount.fake("workers=2")
    supervisor = mount.processes(tree)[0]
    reader, helper = building(tree)
    os.kill(parent(helper), signal.SIGKILL)
    wait_until(lambda: parent(helper) == supervisor, "the helper was adopted")
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: gone([supervisor, helper]), "everything has ended")
    reader.communicate(timeout=60)
