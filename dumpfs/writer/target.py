"""The file a dump becomes: DST.partial while it is written, DST when it is whole.

A device, a pipe or standard output is written directly. An existing DST is never opened for writing: with `force` it is
replaced by the finished rename, and until then it is what it was.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from dumpfs.errors import SourceError, UsageError, WriteError
from dumpfs.writer.resume import is_flagged
from dumpfs.writer.uncached import UncachedFile

PARTIAL_SUFFIX = ".partial"
STDOUT = "-"
_NULL_DEVICE = (1, 3)
"""Major and minor number of /dev/null."""


class Target:
    """Where one output file goes.

    Args:
        path: DST, or '-' for standard output.
        force: an existing DST may be replaced.
        resume: continue DST.partial.

    Raises:
        UsageError: DST exists, or there is nothing to resume.
        WriteError: it cannot be opened.
    """

    def __init__(self, path: str, *, force: bool = False, resume: bool = False) -> None:
        self.path = path
        self.direct = False
        """Whether DST itself is written: a device, a pipe, standard output."""
        self.seekable = True
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
            self.fd = self._open(path, os.O_WRONLY if not stat.S_ISBLK(kind) else os.O_RDWR)
            self._look(resume)
            return
        self.partial = path + PARTIAL_SUFFIX
        if resume and kind is not None and _kind(self.partial) is None and is_flagged(path):
            os.rename(path, self.partial)  # an incomplete dump had taken DST's name
            self._renamed = True
            kind = None
        if kind is not None and not force:
            raise UsageError(f"{path} exists", hint="-f replaces it once the new dump is complete")
        flags = os.O_RDWR if resume else os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._refuse_another(resume, force)
        self.fd = self._open(self.partial, flags)

    def _refuse_another(self, resume: bool, force: bool) -> None:
        """A .partial that is left of an earlier run is worth something: it is not overwritten silently."""
        kind = _kind(self.partial)
        if kind is None:
            if resume:
                raise UsageError(f"there is no {self.partial} to resume", hint="leave --resume out to begin anew")
            return
        if not stat.S_ISREG(kind):
            raise UsageError(f"{self.partial} exists and is not a file")
        if not resume and not force:
            raise UsageError(
                f"{self.partial} is left of an earlier run",
                hint="--resume continues it; -f begins anew; or remove it",
            )

    def _open(self, path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise WriteError(f"{path}: cannot be written: {exc.strerror}") from exc

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
            os.rename(self.partial, self.path)
            self._sync_folder()
        except OSError as exc:
            raise WriteError(f"{self.path}: cannot be finished: {exc.strerror}") from exc

    def abandon(self) -> str:
        """Leave an incomplete dump behind; returns the name it has.

        It takes DST's name when there is no DST, so that a crash kernel's script finds what there is.
        """
        if self.direct:
            return self.name
        try:
            os.fsync(self.fd)
            # link() refuses to replace a DST that has appeared meanwhile, which rename() would not.
            os.link(self.partial, self.path)
            os.unlink(self.partial)
            self._sync_folder()
            return self.path
        except FileExistsError:
            return self.partial
        except OSError as exc:
            if exc.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK) and _kind(self.path) is None:
                os.rename(self.partial, self.path)  # a file system without hard links
                return self.path
            return self.partial

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
        if not self.direct:
            try:
                os.unlink(self.partial)
            except OSError:
                return

    def restore(self) -> None:
        """Give an incomplete dump that was not continued the name back that it had."""
        if self._renamed and _kind(self.path) is None:
            os.rename(self.partial, self.path)

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


def _kind(path: str) -> int | None:
    """st_mode of what is at `path`, or None."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
