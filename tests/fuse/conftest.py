"""Mounts through the real kernel, with the installed command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dumpfs.fuse.options import MountOptions

BIN = Path(sys.executable).parent
DUMPFS = str(BIN / "dumpfs")
FAKE_MOUNT = str(Path(__file__).with_name("fake_mount.py"))
FAKE = [sys.executable, FAKE_MOUNT]
SECONDS = 60.0
"""What a command may take on a busy machine."""
_TROUBLE = re.compile(r": (WARNING|ERROR|CRITICAL): |^Traceback ", re.MULTILINE)


def why_not() -> str | None:
    """Why FUSE cannot be used here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as exc:
        return f"/dev/fuse cannot be opened: {exc.strerror}"
    if os.geteuid() and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a mount test; the shared conftest makes a skip a failure under CI."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("fuse")


@pytest.fixture(autouse=True)
def _fuse() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll until `condition` holds; fail the test with `what` after a while."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"still not so after {seconds} s: {what}")
        time.sleep(0.01)


def is_mounted(path: Path) -> bool:
    """Whether the table of mounts has the path."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split(" ")[4] == str(path) for line in table)


def status(pid: int) -> dict[str, str]:
    """What /proc/PID/status says; empty for a process that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in lines)


def run(*command: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output as text."""
    kwargs = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False, **kwargs}
    return subprocess.run([str(part) for part in command], **kwargs)  # type: ignore[call-overload, no-any-return]


class Mounter:
    """Mounts dumps, and knows their logs and processes.

    Calling it mounts and returns the mount point. `-o log=` is added; when the test ends, everything is unmounted and
    a warning, error or traceback in a log fails the test, unless it was declared with `expect`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self._expected: list[str] = []

    def point(self) -> Path:
        """A new folder to mount on, that will be unmounted."""
        path = self._folder / f"mnt{len(self._paths)}"
        path.mkdir()
        self._paths.append(path)
        return path

    def __call__(self, dump: Path | Sequence[Path], *options: str) -> Path:
        """Mount a dump, or the parts of one, with `-o` options."""
        parts = [dump] if isinstance(dump, Path) else list(dump)
        return self._mount([DUMPFS, "mount"], parts, options)

    def fake(self, *options: str, change: str = "") -> Path:
        """Mount the tree of `fake_mount`; `change` are statements run before, that know `dumpfs.fuse.workers` as w."""
        script = f"import os, runpy, sys, dumpfs.fuse.workers as w\n{change}\n"
        script += f"runpy.run_path({FAKE_MOUNT!r}, run_name='__main__')"
        return self._mount([sys.executable, "-c", script] if change else FAKE, [self._folder], options)

    def _mount(self, command: list[str], parts: Sequence[Path], options: Sequence[str]) -> Path:
        path = self.point()
        texts = ["-o", ",".join([f"log={self.log_file(path)}", *options])]
        # No pipe: what the command leaves running must not hold it.
        done = run(*command, *texts, *parts, path, timeout=SECONDS)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        self.wait_for_workers(path, options)
        return path

    def wait_for_workers(self, path: Path, options: Sequence[str]) -> None:
        """Return when all workers are at work: a mount answers before."""
        said = [text.removeprefix("workers=") for text in options if text.startswith("workers=")]
        count = int(said[-1]) if said else MountOptions().workers
        wait_until(lambda: len(self._workers(path)) >= count, "all workers are at work")

    def _workers(self, path: Path) -> list[int]:
        """Process ids of those that take requests: children of the supervisor that no longer block its signals."""
        supervisor, *others = self.processes(path) or [0]
        found = []
        for pid in others:
            facts = status(pid)
            blocked = int(facts.get("SigBlk", "0"), 16) >> (signal.SIGTERM - 1) & 1
            if facts.get("PPid") == str(supervisor) and not facts["State"].startswith("Z") and not blocked:
                found.append(pid)
        return found

    def log_file(self, path: Path) -> Path:
        """The log of the mount at `path`."""
        return self._folder / f"{path.name}.log"

    def log(self, path: Path) -> str:
        """What that log says."""
        return self.log_file(path).read_text()

    def expect(self, pattern: str) -> None:
        """Declare a warning, error or traceback that the test provokes; the pattern must match its message."""
        self._expected.append(pattern)

    def processes(self, path: Path) -> list[int]:
        """Process ids that serve the mount, the supervisor first."""
        parents = {}
        for entry in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(path).encode() in line and not line[0].startswith(b"fusermount"):
                parents[int(entry)] = int(status(int(entry)).get("PPid", "0"))
        return sorted(parents, key=lambda pid: parents[pid] in parents)  # numbers wrap

    def finish(self) -> None:
        """Unmount everything and look at the logs."""
        for path in self._paths:
            if is_mounted(path):
                run(DUMPFS, "umount", "-l", path)
            for pid in self.processes(path):
                wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}/fd/0"), f"process {pid} ends")
        for path in self._paths:
            if self.log_file(path).exists():
                self._check(self.log(path))

    def _check(self, log: str) -> None:
        lines = log.splitlines()
        unexpected = [
            line
            for line in lines
            if _TROUBLE.search(line) and not any(re.search(pattern, line) for pattern in self._expected)
        ]
        assert not unexpected, f"unexpected trouble in the log:\n{log}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounter]:
    """Mounts a dump: `mount(path, "holes=error")` is the mount point; see `Mounter`."""
    mounter = Mounter(tmp_path)
    yield mounter
    mounter.finish()


@pytest.fixture
def foreground(mount: Mounter) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Path]]]:
    """Mounts the made-up tree with -f; the process, whose stderr is a pipe, and the mount point."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], Path]:
        path = mount.point()
        texts = ["-o", ",".join(options)] if options else []
        process = subprocess.Popen(
            [*FAKE, "-f", *texts, str(path.parent), str(path)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        wait_until(lambda: process.poll() is not None or is_mounted(path), "mounted")
        if process.poll() is None:
            mount.wait_for_workers(path, options)
        return process, path

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
