"""The file a dump becomes: DST.partial while it is written, DST when it is whole.

A device, a pipe or standard output is written directly. An existing DST is never opened for writing: with `force` it is
replaced by the finished rename, and until then it is what it was. See `claim` for what may have DST.partial's name.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable

from dumpfs.errors import DumpfsError, IncompleteDumpError, SourceError, UsageError, WriteError
from dumpfs.writer.claim import create_own, is_named, need_named, need_trusted, open_own, rename_new, replace_own
from dumpfs.writer.resume import is_flagged
from dumpfs.writer.uncached import UncachedFile

PARTIAL_SUFFIX = ".partial"
STDOUT = "-"
_NULL_DEVICE = (1, 3)
"""Major and minor number of /dev/null."""
_POLL_SECONDS = 0.05
"""Between two looks whether a pipe has a reader."""


class Target:
    """Where one output file goes.

    Args:
        path: DST, or '-' for standard output.
        force: an existing DST may be replaced.
        resume: continue DST.partial.
        stop: asked while a pipe without a reader is waited for; the reason to stop, or ''.

    Raises:
        UsageError: DST exists, there is nothing to resume, or it is not ours to write.
        WriteError: it cannot be opened, or another writer has it.
        IncompleteDumpError: stopped.
    """

    def __init__(
        self, path: str, *, force: bool = False, resume: bool = False, stop: Callable[[], str] = str
    ) -> None:
        self.path = path
        self.direct = False
        """Whether DST itself is written: a device, a pipe, standard output."""
        self.seekable = True
        self._force = force
        self._renamed = False
        self._uncached: UncachedFile | None = None
        if path == STDOUT:
            self.direct, self.fd, self.name = True, sys.stdout.fileno(), "standard output"
            self._look(resume)
            return
        self.name = path
        kind = _kind(path)
        if kind is not None and not stat.S_ISREG(kind):
            self.direct = True
            need_trusted(path)
            self.fd = _open_direct(path, kind, stop)
            self._look(resume)
            return
        self.partial = path + PARTIAL_SUFFIX
        self.fd = self._resumed(kind) if resume else self._begun(kind)

    def _begun(self, kind: int | None) -> int:
        if self._force:
            return replace_own(self.partial)
        if kind is not None:
            raise self._exists()
        try:
            fd = create_own(self.partial)
        except FileExistsError:
            raise self._left() from None
        if os.path.lexists(self.path):  # another writer has finished since we looked
            os.unlink(self.partial)
            os.close(fd)
            raise self._exists()
        return fd

    def _exists(self) -> UsageError:
        return UsageError(f"{self.path} exists", hint="-f replaces it once the new dump is complete")

    def _left(self) -> DumpfsError:
        """Why a .partial that is there is not overwritten: left of an earlier run, it is worth something."""
        try:
            if not stat.S_ISREG(os.lstat(self.partial).st_mode):
                return UsageError(f"{self.partial} exists and is not a file")
            os.close(open_own(self.partial))  # or the error that another writer has it
        except FileNotFoundError:
            return WriteError(f"{self.partial}: another writer has just finished", hint="one writer at a time")
        return UsageError(
            f"{self.partial} is left of an earlier run", hint="--resume continues it; -f begins anew; or remove it"
        )

    def _resumed(self, kind: int | None) -> int:
        if os.path.lexists(self.partial):
            if kind is not None and not self._force:
                raise self._exists()
            return self._open_own(self.partial)
        if kind is None or not is_flagged(self.path):
            if kind is not None and not self._force:
                raise self._exists()
            raise UsageError(f"there is no {self.partial} to resume", hint="leave --resume out to begin anew")
        fd = self._open_own(self.path)  # an incomplete dump had taken DST's name
        try:
            rename_new(self.path, self.partial)
        except OSError as exc:
            os.close(fd)
            raise WriteError(f"{self.partial}: {exc.strerror}") from exc
        self._renamed = True
        return fd

    def _open_own(self, path: str) -> int:
        try:
            return open_own(path)
        except FileNotFoundError:
            raise WriteError(f"{path}: another process has just taken it away", hint="one writer at a time") from None

    def _look(self, resume: bool) -> None:
        if resume:
            raise UsageError("--resume needs a file", hint="devices, pipes and standard output begin anew")
        what = os.fstat(self.fd)
        self._on_disk = stat.S_ISREG(what.st_mode) or stat.S_ISBLK(what.st_mode)
        # /dev/null takes anything at any position: people time the writer with it.
        self.seekable = self._on_disk or (stat.S_ISCHR(what.st_mode) and what.st_rdev == os.makedev(*_NULL_DEVICE))

    def finish(self) -> None:
        """Have it on the disk and give it its name.

        Raises:
            WriteError: that failed; the .partial stays.
        """
        try:
            if self.direct:
                if self._on_disk and self.path != STDOUT:
                    os.fsync(self.fd)
                return
            os.fsync(self.fd)
            need_named(self.fd, self.partial)
            if self._force:
                os.rename(self.partial, self.path)
            else:
                rename_new(self.partial, self.path)
            self._sync_folder()
        except FileExistsError as exc:
            raise WriteError(
                f"{self.path}: appeared while the dump was written",
                hint=f"the dump is whole and is called {self.partial}",
            ) from exc
        except OSError as exc:
            raise WriteError(f"{self.path}: cannot be finished: {exc.strerror}") from exc

    def abandon(self) -> str:
        """Leave an incomplete dump behind; returns the name it has.

        It takes DST's name when there is no DST, so that a crash kernel's script finds what there is.
        """
        if self.direct or not is_named(self.fd, self.partial):
            return self.name
        try:
            os.fsync(self.fd)
            rename_new(self.partial, self.path)  # never over a DST that has appeared meanwhile
            self._sync_folder()
        except OSError:
            return self.path if is_named(self.fd, self.path) else self.partial
        return self.path

    def _sync_folder(self) -> None:
        try:
            folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return  # a folder that may be written but not read
        try:
            os.fsync(folder)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove what was begun, when nothing worth keeping is in it."""
        if not self.direct and is_named(self.fd, self.partial):
            try:
                os.unlink(self.partial)
            except OSError:
                return

    def restore(self) -> None:
        """Give an incomplete dump that was not continued the name back that it had."""
        if self._renamed and is_named(self.fd, self.partial):
            try:
                rename_new(self.partial, self.path)
            except OSError:
                return  # something else is called so by now

    def open_uncached(self) -> UncachedFile | None:
        """The way past the page cache for a new dump's page data, where there is one."""
        if self.direct:
            return None
        self._uncached = self._uncached or UncachedFile.of(self.fd)
        return self._uncached

    def close(self) -> None:
        """Close it."""
        if self._uncached is not None:
            self._uncached.close()
            self._uncached = None
        if self.fd >= 0 and self.path != STDOUT:
            os.close(self.fd)
        self.fd = -1


def _open_direct(path: str, kind: int, stop: Callable[[], str]) -> int:
    """Open what is no file. A block device that is in use, by a file system or by another writer, is refused."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    if stat.S_ISBLK(kind):
        flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
    elif stat.S_ISFIFO(kind):
        flags |= os.O_NONBLOCK  # else nothing could end us before somebody reads
    while True:
        try:
            fd = os.open(path, flags)
        except OSError as exc:
            if exc.errno != errno.ENXIO or not stat.S_ISFIFO(kind):
                problem = "is in use" if exc.errno == errno.EBUSY else exc.strerror
                raise WriteError(f"{path}: cannot be written: {problem}") from exc
        else:
            os.set_blocking(fd, True)
            return fd
        if reason := stop():
            raise IncompleteDumpError(f"{path}: nobody reads this pipe: {reason}")
        time.sleep(_POLL_SECONDS)


def _kind(path: str) -> int | None:
    """st_mode of what is at `path`, or None; a link that leads nowhere is taken for a file, which it would hide."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return stat.S_IFREG if os.path.islink(path) else None
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
