"""A mount from its beginning to its end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyfuse3

from dumpfs.errors import DumpfsError, MountError
from dumpfs.fuse.adapter import Adapter, TreeLike
from dumpfs.fuse.eventloop import EventLoop
from dumpfs.fuse.mounts import find_mount, mount_failure, raise_read_ahead, unmount
from dumpfs.fuse.options import MountOptions
from dumpfs.fuse.process import spawn
from dumpfs.fuse.workers import Workers, block_signals
from dumpfs.native import AVAILABLE
from dumpfs.vfs.counters import SharedCounters

_LOG = logging.getLogger("dumpfs")

_ANSWER_SECONDS = 20.0
"""How long the kernel's greeting, and the first answer of a new mount, may take."""
_READ_AHEAD_KIB = 1024
"""The kernel's default of 128 makes its requests that small; 1 MiB is the largest request there is."""
_MAX_FSNAME = 200
"""Characters of the dump's path in the table of mounts."""


class Session:
    """One mount. `mount`, then `serve`; both in the same process, which becomes the supervisor.

    Args:
        tree: the files.
        counters: shared by the workers.
        mount_point: resolved path of a folder.
        options: how to mount.
        name: what the table of mounts calls the source: the dump's path.
        total_bytes: size of the dump's files.
        ahead: names in the root of slow files to build before anybody asks.
        debug: have libfuse print every request on stderr.
    """

    def __init__(
        self,
        tree: TreeLike,
        counters: SharedCounters,
        mount_point: str,
        options: MountOptions,
        *,
        name: str,
        total_bytes: int = 0,
        ahead: Sequence[str] = (),
        debug: bool = False,
    ) -> None:
        self._mount_point = mount_point
        self._options = options
        self._name = name
        self._debug = debug
        self._tree = tree
        self._ahead = ahead
        self._counters = counters
        self._loop = EventLoop()
        self._device = ""
        self._greeted = False
        self._adapter = Adapter(tree, counters, options, self._loop, total_bytes=total_bytes, on_init=self._on_greeting)

    def mount(self) -> None:
        """Mount, and answer the kernel's greeting.

        Raises:
            MountError: it did not work; nothing is mounted then.
        """
        block_signals()
        self._begin()
        self._loop.install()
        with _captured_stderr() as printed:
            try:
                pyfuse3.init(self._adapter, self._mount_point, self._fuse_options())
            except RuntimeError as exc:
                raise mount_failure(self._mount_point, printed()) from exc
        self._loop.tasks.run(pyfuse3.main, timeout=_ANSWER_SECONDS)
        if not self._greeted:
            pyfuse3.close(unmount=True)
            raise MountError(f"{self._mount_point}: the kernel did not greet the new mount")
        mounted = find_mount(self._mount_point)
        self._device = mounted.device if mounted is not None else ""
        raise_read_ahead(self._device, _READ_AHEAD_KIB)

    def failures(self) -> dict[int, str]:
        """Files that could not be built, by inode number, with the reason; any worker may ask."""
        return self._adapter.failures()

    def _begin(self) -> None:
        """Find out what the first request of anybody needs, the root's attributes; helpers begin with what is slow."""
        try:
            self._tree.root.subdirectories()
            for name in self._ahead:
                node = self._tree.root.lookup(name)
                if node is not None:
                    self._adapter.begin(node)
        except (DumpfsError, OSError) as exc:
            _LOG.warning("%s", exc)

    def _warm_up(self) -> None:
        """List the root, so that workers forked from now on need not each find out the same things."""
        try:
            for _ in self._tree.root.entries(0):
                pass
        except DumpfsError as exc:
            _LOG.warning("%s", exc.message)

    def _fuse_options(self) -> set[str]:
        name = self._name.encode("ascii", "backslashreplace").decode("ascii")[:_MAX_FSNAME]
        name = "".join(f"\\{c}" if c in "\\," else c if c.isprintable() else "?" for c in name)
        found = {f"fsname={name}", "subtype=dumpfs", "default_permissions", "ro", "nodev", "nosuid", "noexec"}
        if self._options.allow_other:
            found.add("allow_other")
        if self._debug:
            found.add("debug")
        return found

    def _on_greeting(self) -> None:
        self._greeted = True
        self._loop.tasks.stop()

    def serve(self, on_ready: Callable[[], None]) -> int:
        """Answer requests until the mount ends; the exit code. `on_ready` is called once the mount answers.

        Raises:
            MountError: the mount does not answer, or its workers kept dying.
        """
        gc.freeze()  # what exists now is never garbage, and looking for it would copy the workers' shared pages
        reader = self._adapter if AVAILABLE and not self._debug else None  # libfuse's debug wants all requests
        workers = Workers(self._options.workers, self._loop, self._counters, reader)
        try:
            # The first worker answers while we load all views, 30 ms, for the others.
            workers.start(1)
            self._probe(workers)
            _LOG.info("%s is mounted on %s", self._name, self._mount_point)
            on_ready()  # now the command ends, and its user may look into the log
            self._warm_up()
            gc.freeze()
            workers.start()
            reason = workers.supervise()
            _LOG.info("%s: the mount ends: %s", self._mount_point, reason)
        finally:
            self._unmount()
            workers.stop()
        if workers.failed:
            raise MountError(f"{self._mount_point}: the mount had to end: {reason}", hint="its log tells how they died")
        return 0

    def _unmount(self) -> None:
        """Take the mount away, also an aborted one, which libfuse leaves; in use or not."""
        pyfuse3.close(unmount=True)
        mount = find_mount(self._mount_point)
        if mount is not None and mount.device == self._device:
            try:
                unmount(self._mount_point, lazy=True)
            except MountError as exc:
                _LOG.error("%s", exc.message)

    def _probe(self, workers: Workers) -> None:
        """See that the mount answers. A child asks, since asking can hang, and we must see workers die."""
        answer: list[int] = []
        pid = spawn(lambda: self._ask(workers), on_parent_death=signal.SIGKILL)

        def ended(child: int, status: int) -> bool:
            if child == pid:
                answer.append(os.waitstatus_to_exitcode(status))
            return child == pid

        reason = workers.supervise(ended, _ANSWER_SECONDS)
        if not answer:
            os.kill(pid, signal.SIGKILL)
            problem = reason or "does not answer"
            raise MountError(f"{self._mount_point}: the new mount ended: {problem}")
        if answer[0]:
            problem = os.strerror(answer[0]) if answer[0] > 0 else f"who asked it was killed by signal {-answer[0]}"
            raise MountError(f"{self._mount_point}: the new mount does not answer: {problem}")

    def _ask(self, workers: Workers) -> int:
        """What the prober does: 0, or an error number."""
        workers.close_devices()
        os.close(self._loop.fd)  # workers without devices of their own read our request from it
        try:
            os.stat(self._mount_point)
        except OSError as exc:
            return exc.errno or 1
        return 0


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catch what a C library prints on descriptor 2; the value is a function that gives the text."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.memfd_create("stderr", os.MFD_CLOEXEC), "w+b") as file:
        os.dup2(file.fileno(), 2)

        def printed() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            yield printed
        finally:
            os.dup2(saved, 2)
            os.close(saved)
