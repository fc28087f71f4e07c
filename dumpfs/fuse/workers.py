"""The processes that answer a mount's requests, and the one that looks after them.

The supervisor mounts, forks the workers and then only waits: for a signal that ends the mount, for workers that end
because the file system was unmounted, and for workers that die. It answers no request, so it may look at the mount.

Each worker has a FUSE device of its own, cloned from the session's. The kernel lists the requests that were read from
a device and not yet answered, and fails them when the device is closed; so the supervisor keeps every worker's device
open. When a worker dies, the supervisor has the kernel put what is on these lists back into its queue (Linux 6.9,
FUSE_NOTIFY_RESEND), and forks another: nobody notices but by a delay. It puts back what other workers are just
answering, too; their answers are refused with ENOENT, which libfuse takes calmly, and given a second time, which does
no harm where nothing can be changed. On an older kernel, and when workers crash one after the other, perhaps of what
they are asked, the dead worker's device is closed and its requests fail with ECONNABORTED.

Where a clone is not to be had (/dev/fuse is closed to the user), workers share the session's device. Where requests
should fail they could only hang for ever then, and the mount ends instead.

Sources: Linux include/uapi/linux/fuse.h (numbers, header of a notification), fs/fuse/dev.c (what becomes of requests).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from dumpfs.fuse.eventloop import EventLoop
from dumpfs.fuse.mounts import FUSE_DEVICE
from dumpfs.fuse.process import adopt_orphans, render_exit, spawn
from dumpfs.memory.allocator import keep_freed_memory
from dumpfs.vfs.counters import SharedCounters

if TYPE_CHECKING:
    from dumpfs.fuse.requests import Reader

_LOG = logging.getLogger("dumpfs")

_FUSE_DEV_IOC_CLONE = 0x8004E500  # linux/fuse.h: _IOR(229, 0, uint32_t)
_MAX_TASKS = 128
"""Requests that may wait in one worker (for a slow view) before it takes no more. Those that are asked again because a
worker died wait twice in the others."""
_RESEND = struct.pack("=IiQ", 16, 7, 0)
"""A `fuse_out_header` that is a notification (unique 0): its length, FUSE_NOTIFY_RESEND."""
_CRASH_SECONDS = 60.0
"""When workers crash twice within this time, it may be the second for what the first was asked."""
_MAX_FRUITLESS = 5
"""More workers in a row than this that crashed before they were asked anything, and the mount is given up."""
_MAX_LOGGED = 20
_LOGGED_SECONDS = 60.0
"""How many deaths are logged in so short a time; /status counts them all."""
_STOP_SECONDS = 1.0
"""How long workers may take to end after the file system was unmounted."""
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_WATCHED = _STOPPING | {signal.SIGCHLD}


class Exit(IntEnum):
    """Exit codes of a worker; any other is that of one that crashed."""

    UNMOUNTED = 0
    ABORTED = 3
    """Somebody broke the connection (/sys/fs/fuse/connections/N/abort)."""


class Workers:
    """The workers of a mounted session. Used by the supervisor alone.

    Args:
        count: how many.
        loop: the event loop, which knows the session's descriptor.
        counters: where each worker counts.
        reader: answers reads, for the loop in C, or None where that shall not take the requests.
    """

    def __init__(self, count: int, loop: EventLoop, counters: SharedCounters, reader: Reader | None = None) -> None:
        self._reader = reader
        self._loop = loop
        self._counters = counters
        self._slots: dict[int, int] = {}
        # By slot: the device of its worker, the session's where it has none of its own.
        self._devices = {slot: self._clone() for slot in range(count)}
        self._asked: dict[int, int] = {}
        self._killed_for_memory = _killed_for_memory()
        self._crashed = -_CRASH_SECONDS
        self._fruitless = 0
        self._logged: list[float] = []
        self.failed = False
        """Whether the mount ends because workers died, and not because somebody wanted it to."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(self._slots)

    def start(self, count: int | None = None) -> None:
        """Fork them all, or the first `count`; those that run already stay."""
        adopt_orphans()  # helpers whose worker died
        running = set(self._slots.values())
        for slot in tuple(self._devices)[:count]:
            if slot not in running:
                self._fork(slot)

    def _fork(self, slot: int) -> None:
        self._asked[slot] = self._counters.asked(slot)
        # Workers end by SIGTERM's default: they have nothing to tidy up, and a handler might come too late
        # for a read that blocks.
        pid = spawn(lambda: self._work(slot), on_parent_death=signal.SIGTERM)
        self._slots[pid] = slot

    def _clone(self) -> int:
        """A FUSE device of its own for a worker, or the session's."""
        try:
            device = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return self._loop.fd
        try:
            fcntl.ioctl(device, _FUSE_DEV_IOC_CLONE, struct.pack("I", self._loop.fd))
        except OSError:
            os.close(device)
            return self._loop.fd
        return device

    def _close(self, slot: int) -> None:
        """Close a worker's device, if it has one of its own; when nobody else has it open, its requests fail."""
        if self._devices[slot] != self._loop.fd:
            os.close(self._devices[slot])
        self._devices[slot] = self._loop.fd

    def close_devices(self) -> None:
        """Close what the supervisor keeps open for the workers; in its children, and when they have ended.

        A child that asks something of the mount could never be killed if it held the device that its request was
        read from.
        """
        for slot in self._devices:
            self._close(slot)

    def _work(self, slot: int) -> int:
        """What a worker does."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the supervisor unmounts
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        if self._devices[slot] != self._loop.fd:
            os.dup2(self._devices[slot], self._loop.fd, inheritable=False)
        self.close_devices()
        self._counters.attach(slot)
        keep_freed_memory()
        self._loop.serve()
        if self._reader is not None:
            self._loop.take_over(os.dup(self._loop.fd), self._reader, self._counters)
        try:
            self._loop.run(_MAX_TASKS)
        except OSError as exc:
            if exc.errno != errno.ECONNABORTED:
                raise
            return Exit.ABORTED
        return Exit.UNMOUNTED

    # -- supervising

    def supervise(self, extra: Callable[[int, int], bool] | None = None, timeout: float | None = None) -> str | None:
        """Wait until the mount is to end; why, for the log, or None when `extra` or `timeout` ended the wait.

        Args:
            extra: called with process id and status of ended children that are no workers; True ends the wait.
            timeout: seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG) if self._slots or extra else (0, 0)
            if pid in self._slots:
                reason = self._ended(pid, status)
                if reason is not None:
                    return reason
            elif pid:
                if extra is not None and extra(pid, status):
                    return None
                if extra is None and status:
                    _LOG.warning("helper %d, whose worker died before, %s", pid, render_exit(status))
            else:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                info = signal.sigtimedwait(_WATCHED, 3600.0 if left is None else left)
                if info is not None and info.si_signo in _STOPPING:
                    return f"signal {signal.Signals(info.si_signo).name}"

    def _ended(self, pid: int, status: int) -> str | None:
        """A worker has ended: why the mount must, too, or None after another was started in its place."""
        slot = self._slots.pop(pid)
        self._counters.detach(slot)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == Exit.UNMOUNTED:
            return "unmounted"
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == Exit.ABORTED:
            return "the connection was aborted"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in _STOPPING:
            return f"signal {signal.Signals(os.WTERMSIG(status)).name} to worker {pid}"
        how = f"worker {pid} {render_exit(status)}"
        crashed = self._has_crashed(status)
        if not crashed or self._counters.asked(slot) != self._asked[slot]:
            self._fruitless = 0
        else:
            self._fruitless += 1
        if self._fruitless > _MAX_FRUITLESS:
            _LOG.error("%s; so did %d before, and none was asked anything", how, _MAX_FRUITLESS)
            self.failed = True
            return "workers keep dying"
        fate = self._rescue(slot, crashed)
        if fate is None:
            _LOG.error("%s, and what it was asked cannot be answered any more", how)
            self.failed = True
            return "a worker died"
        self._counters.restarted()
        self._fork(slot)
        self._log_death("%s; %s, and another takes its place", how, fate)
        return None

    def _has_crashed(self, status: int) -> bool:
        """Whether a worker may have died of what it was asked, and others would.

        SIGKILL comes from people and does not, unless the kernel sent it because memory ran out. So however many
        workers are killed by hand, nothing is lost, and the mount goes on.
        """
        before, self._killed_for_memory = self._killed_for_memory, _killed_for_memory()
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return not killed or self._killed_for_memory != before

    def _rescue(self, slot: int, crashed: bool) -> str | None:
        """Take care of a dead worker's requests: what became of them, for the log, or None when nothing can be done.

        A request of which a worker dies would kill one after the other if it were asked again each time. Which one
        it is nobody knows, so after a second crash that may be of the same request, all that this worker had taken
        fail: the one it was at, and those that waited for a slow view. With devices of their own for the workers, the
        mount goes on however many such a request kills: others have done nothing to lose it, and whoever asks it
        again waits for every one of them.
        """
        now = time.monotonic()
        again = crashed and now - self._crashed < _CRASH_SECONDS
        if crashed:
            self._crashed = now
        if not again and self._resend():
            return "its requests are asked again"
        if self._devices[slot] == self._loop.fd:
            return None
        self._close(slot)
        self._devices[slot] = self._clone()
        return "its requests failed"

    def _resend(self) -> bool:
        """Have the kernel put all requests that were taken and not answered back into its queue; False if it cannot."""
        try:
            os.write(self._loop.fd, _RESEND)
        except OSError:
            return False  # EINVAL: older than Linux 6.9
        return True

    def _log_death(self, *message: str) -> None:
        now = time.monotonic()
        self._logged = [when for when in self._logged if now - when < _LOGGED_SECONDS]
        if len(self._logged) < _MAX_LOGGED:
            self._logged.append(now)
            _LOG.error(*message)

    def stop(self) -> None:
        """Wait for the workers after the file system was unmounted; kill those that do not end."""
        self._wait_for_workers()
        self.close_devices()

    def _wait_for_workers(self) -> None:
        for signum in (None, signal.SIGTERM, signal.SIGKILL):
            for pid in self._slots:
                if signum is not None:
                    os.kill(pid, signum)
            until = time.monotonic() + _STOP_SECONDS
            while self._slots and time.monotonic() < until:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid:
                    self._slots.pop(pid, None)
                else:
                    signal.sigtimedwait({signal.SIGCHLD}, 0.1)
            if not self._slots:
                return


def _killed_for_memory() -> int:
    """How many processes of this machine the kernel has killed because memory ran out; 0 when it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def block_signals() -> None:
    """Keep the signals that the supervisor waits for from acting by themselves; before the first fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
