"""Local files, and bytes in memory.

Files are read by preadv, never through mmap: a dump that shrinks while it is mapped (a copy still running, NFS, a
bad sector) raises SIGBUS, which Python cannot turn into an error.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from dumpfs.errors import SourceError

_IS_FOLDER_HINT = "name the dump file inside it"
_HINTS = {
    errno.EACCES: "read it as the user who may, or change its mode",
    errno.ENOTCONN: "it is in a mount whose process is gone: dumpfs umount clears that",
}
_ROOT_HINT = "root is kept out of other users' mounts: read it as the user who mounted, or mount with allow_other"

_LAST_OFFSET = 1 << 62
"""No file reaches there, and the kernel takes no offset of 2^63 or more; a damaged descriptor may hold any."""

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""0 where Python was built for a C library without preadv2, such as musl before 1.2.5."""
_LARGE_READ = 1 << 20
"""Bytes from which on a read is one of many that go through the file."""
_LOOK_EVERY = 2 << 20
"""Bytes between two looks at whether a piece of the file is in memory, for the kernel may have dropped parts of it."""


class FileSource:
    """A file opened for reading; its descriptor is kept, so that chdir and a mount over its folder do no harm.

    Args:
        path: the file.
        readers: processes that will go through the file together, in pieces by turns; where their reads are large and
            near to each other, what they come to next is fetched while they work. 0 for reads in no order.

    Raises:
        SourceError: it cannot be opened or is not a regular file or block device.
    """

    def __init__(self, path: str | os.PathLike[str], *, readers: int = 0) -> None:
        self._path = os.path.abspath(path)
        self._ahead = readers + 1 if readers and _NOWAIT else 0  # pieces; one more than the readers have before them
        self._last = -1  # where this process's last large read began
        self._name = os.fspath(path)
        try:
            # O_NONBLOCK: opening a pipe must not wait for its writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            problem = exc.strerror or str(exc)
            kept_out = exc.errno == errno.EACCES and not os.geteuid()
            raise SourceError(self._name, problem, hint=_ROOT_HINT if kept_out else _HINTS.get(exc.errno or 0)) from exc
        try:
            status = os.fstat(self._fd)
            if stat.S_ISBLK(status.st_mode):
                size = os.lseek(self._fd, 0, os.SEEK_END)
            elif stat.S_ISREG(status.st_mode):
                size = status.st_size or self._measure()
            elif stat.S_ISDIR(status.st_mode):
                raise SourceError(self._name, "is a directory", hint=_IS_FOLDER_HINT)
            elif stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                raise SourceError(
                    self._name, "is a pipe, and a dump is read by position", hint="save it to a file first"
                )
            else:
                raise SourceError(self._name, "is not a file", hint="name a dump file")
        except BaseException:
            os.close(self._fd)
            raise
        self._status = status
        self._size = size
        self._folder, self._entry = self._open_folder()

    def _open_folder(self) -> tuple[int, str]:
        """The folder that holds the file, and the file's name in it; -1 when it is not to be had.

        `change` looks for the file in there. By its path it might come to a mount that lies over the folder by now,
        and the process that serves that mount would wait for itself for ever.
        """
        folder, name = os.path.split(os.path.realpath(self._path))
        try:
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return -1, name  # what is opened as /dev/fd/N need not be in a folder
        return descriptor, name

    def _measure(self) -> int:
        """Size of a file whose stat says 0, as some of /proc do: where reading past it ends."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            return 0

    @property
    def name(self) -> str:
        """The path as it was given."""
        return self._name

    @property
    def path(self) -> str:
        """The absolute path."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self._size

    def fileno(self) -> int:
        """The descriptor, for `os.sendfile` and the like; positional use only."""
        return self._fd

    @property
    def status(self) -> os.stat_result:
        """The file's stat at opening."""
        return self._status

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read_at`."""
        if offset > _LAST_OFFSET:
            return b""
        if self._ahead and size >= _LARGE_READ:
            self._go_ahead(offset, size)
        try:
            data = os.pread(self._fd, size, offset)
            if len(data) == size or not data:
                return data
            pieces = [data]  # pread may stop at 2 GiB, or at a signal
            done = len(data)
            while done < size:
                data = os.pread(self._fd, size - done, offset + done)
                if not data:
                    break
                pieces.append(data)
                done += len(data)
            return b"".join(pieces)
        except OSError as exc:
            raise self._failure(offset, exc) from exc

    def _go_ahead(self, offset: int, size: int) -> None:
        """Fetch what comes after the pieces of all readers, unless the last read was far from this one.

        Where much is left out, that would most likely be left out too.
        """
        distance = self._ahead * size
        last, self._last = self._last, offset
        if last >= 0 and 0 < offset - last <= distance:
            self._fetch(offset + distance, size)

    def _fetch(self, offset: int, size: int) -> None:
        """Have the kernel read what is not in memory of a piece of the file, without waiting for it.

        Its own read-ahead follows one reader and is lost among several: 5.2 GB from a disk, written again with snappy
        by two workers, took 7.2 to 8.5 s, and takes 4.9. Advice on what is in memory costs a look at every page of it,
        so that is asked first (preadv2(2), RWF_NOWAIT).
        """
        try:
            for place in range(offset, min(offset + size, self._size), _LOOK_EVERY):
                os.preadv(self._fd, (bytearray(1),), place, _NOWAIT)
        except BlockingIOError:
            with suppress(OSError):  # advice
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)
        except (OSError, NotImplementedError):  # such as tmpfs, FUSE and /proc do not answer; nor did old kernels
            self._ahead = 0

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `ByteSource.read_into`."""
        if offset > _LAST_OFFSET:
            return 0
        if self._ahead and len(buffer) >= _LARGE_READ:
            self._go_ahead(offset, len(buffer))
        try:
            done = os.preadv(self._fd, (buffer,), offset)
            while 0 < done < len(buffer):
                more = os.preadv(self._fd, (buffer[done:],), offset + done)
                if not more:
                    break
                done += more
            return done
        except OSError as exc:
            raise self._failure(offset, exc) from exc

    is_flattened = False
    incomplete_reason = ""

    def next_data(self, offset: int) -> int:
        """See `ByteSource.next_data`."""
        if offset >= self._size:
            return self._size
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)  # moves a cursor that nobody uses
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                return offset
            # Only a hole is left, or the file was cut: what it lost since is no hole of zeros.
            end = os.fstat(self._fd).st_size
            return self._size if end >= self._size else max(offset, end)

    def next_hole(self, offset: int) -> int:
        """See `ByteSource.next_hole`."""
        if offset >= self._size:
            return self._size
        try:
            found = os.lseek(self._fd, offset, os.SEEK_HOLE)
        except OSError:
            return self._size
        return found if found < min(os.fstat(self._fd).st_size, self._size) else self._size  # the end counts as one

    def _failure(self, offset: int, exc: OSError) -> SourceError:
        return SourceError(
            self._name,
            f"reading at offset {offset:#x} failed: {exc.strerror or exc}",
            hint="check the disk or the network file system that holds it",
        )

    def change(self) -> str | None:
        """See `ByteSource.change`; also notices a file put in its place under the same name."""
        if not stat.S_ISREG(self._status.st_mode):
            return None
        try:
            now = os.fstat(self._fd)
            if now.st_size < self._status.st_size:
                return f"truncated from {self._status.st_size} to {now.st_size} bytes"
            if now.st_size > self._status.st_size:
                return f"grown from {self._status.st_size} to {now.st_size} bytes: mount it again to see the rest"
            if now.st_mtime_ns != self._status.st_mtime_ns:
                return "written to"
        except OSError as exc:
            return f"not readable any more: {exc.strerror}"
        if self._folder < 0:
            return None
        try:
            there = os.stat(self._entry, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return "removed (still readable through the open descriptor)"
        except OSError:
            return None  # the folder cannot be searched: nothing is known
        if (there.st_dev, there.st_ino) != (self._status.st_dev, self._status.st_ino):
            return "replaced by another file (the one opened at first is still served)"
        return None

    def close(self) -> None:
        """See `ByteSource.close`."""
        for descriptor in (self._fd, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._folder = -1


class MemorySource:
    """Bytes already in memory, as a source."""

    def __init__(self, data: bytes, name: str = "<memory>") -> None:
        self._data = data
        self._name = name

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self._data)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read_at`."""
        return self._data[offset : offset + size]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `ByteSource.read_into`."""
        data = self._data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    is_flattened = False
    incomplete_reason = ""

    def next_data(self, offset: int) -> int:
        """See `ByteSource.next_data`; memory has no holes."""
        return offset

    def next_hole(self, offset: int) -> int:
        """See `ByteSource.next_hole`."""
        return self.size

    def change(self) -> str | None:
        """Never changes."""
        return None

    def close(self) -> None:
        """Nothing is held."""
