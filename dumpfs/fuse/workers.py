"""The processes that answer a mount's requests, and the one that looks after them.

The supervisor mounts, forks the workers and then only waits: for a signal that ends the mount, for workers that end
because the file system was unmounted, and for workers that die. It answers no request, so it may look at the mount.

Each worker has a FUSE device of its own, cloned from the session's. When it dies, the kernel fails the requests it
had taken and keeps the connection, and the supervisor forks another. Where a clone is not to be had (/dev/fuse is
closed to the user), workers share one device; then a dead worker's requests would hang for ever, and the mount ends.
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

import pyfuse3
import trio

from dumpfs.fuse.eventloop import EventLoop
from dumpfs.fuse.mounts import FUSE_DEVICE
from dumpfs.fuse.process import render_exit, spawn
from dumpfs.memory.allocator import keep_freed_memory
from dumpfs.vfs.counters import SharedCounters

_LOG = logging.getLogger("dumpfs")

_FUSE_DEV_IOC_CLONE = 0x8004E500  # linux/fuse.h: _IOR(229, 0, uint32_t)
_MAX_TASKS = 32
"""Requests that may wait in one worker (for a slow view) before it takes no more."""
_MAX_DEATHS = 5
_DEATHS_SECONDS = 60.0
"""More deaths of workers than this in so short a time, and the mount is given up."""
_STOP_SECONDS = 1.0
"""How long workers may take to end after the file system was unmounted."""
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_WATCHED = _STOPPING | {signal.SIGCHLD}


class Exit(IntEnum):
    """Exit codes of a worker."""

    UNMOUNTED = 0
    FAILED = 1
    ABORTED = 3
    """Somebody broke the connection (/sys/fs/fuse/connections/N/abort)."""


class Workers:
    """The workers of a mounted session. Used by the supervisor alone.

    Args:
        count: how many.
        loop: the event loop, which knows the session's descriptor.
        counters: where each worker counts.
    """

    def __init__(self, count: int, loop: EventLoop, counters: SharedCounters) -> None:
        self._count = count
        self._loop = loop
        self._counters = counters
        self._slots: dict[int, int] = {}
        self._deaths: list[float] = []
        self.failed = False
        """Whether the mount ends because workers died, and not because somebody wanted it to."""
        # Each worker clones the device itself; here we only find out whether it can.
        self._cloning = self._clone() is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(self._slots)

    def start(self) -> None:
        """Fork them all."""
        for slot in range(self._count):
            self._fork(slot)

    def _fork(self, slot: int) -> None:
        # Workers end by SIGTERM's default: they have nothing to tidy up, and a handler might come too late
        # for a read that blocks.
        pid = spawn(lambda: self._work(slot), on_parent_death=signal.SIGTERM)
        self._slots[pid] = slot

    def _clone(self) -> int | None:
        """A FUSE device of our own for the session, or None."""
        try:
            device = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.ioctl(device, _FUSE_DEV_IOC_CLONE, struct.pack("I", self._loop.fd))
        except OSError:
            os.close(device)
            return None
        return device

    def _work(self, slot: int) -> int:
        """What a worker does."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the supervisor unmounts
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        if self._cloning:
            device = self._clone()
            if device is None:
                return Exit.FAILED
            os.dup2(device, self._loop.fd, inheritable=False)
            os.close(device)
        self._counters.attach(slot)
        keep_freed_memory()
        self._loop.serve()
        try:
            trio.run(pyfuse3.main, 1, _MAX_TASKS)
        except (OSError, BaseExceptionGroup) as exc:
            if not _is_abort(exc):
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
        now = time.monotonic()
        self._deaths = [when for when in self._deaths if now - when < _DEATHS_SECONDS] + [now]
        if not self._cloning:
            _LOG.error("%s, and what it was asked cannot be answered any more", how)
            self.failed = True
            return "a worker died"
        if len(self._deaths) > _MAX_DEATHS:
            _LOG.error("%s; that were %d in %d seconds", how, len(self._deaths), _DEATHS_SECONDS)
            self.failed = True
            return "workers keep dying"
        _LOG.error("%s; its requests failed, and another takes its place", how)
        self._counters.restarted()
        self._fork(slot)
        return None

    def stop(self) -> None:
        """Wait for the workers after the file system was unmounted; kill those that do not end."""
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


def _is_abort(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return any(map(_is_abort, exc.exceptions))
    return isinstance(exc, OSError) and exc.errno == errno.ECONNABORTED


def block_signals() -> None:
    """Keep the signals that the supervisor waits for from acting by themselves; before the first fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
