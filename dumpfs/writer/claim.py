"""Files that nobody else has: made anew, locked, and given away only under the name that they still have.

A dump is the memory of a machine. The folder that it goes to may belong to somebody else, or be shared by all: what
lies under the name that we are about to use may be a symbolic link, another user's file, or another writer's dump.

The lock is flock(2)'s, which forked workers share: it is held while any of them may still write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from dumpfs.errors import UsageError, WriteError

_TRIES = 5
"""Names that vanish or appear between two looks are looked at again so often."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks says."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
"""What a file system without hard links says."""
_LOCKS = "/proc/locks"
_PATIENCE_SECONDS = 1.0


def create_own(path: str) -> int:
    """Make a file and lock it; a descriptor for reading and writing.

    Raises:
        FileExistsError: something has that name already.
        WriteError: it cannot be made, or another writer has taken it at once.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise
    except OSError as exc:
        raise WriteError(f"{path}: cannot be written: {exc.strerror}") from exc
    try:
        _lock(fd, path, patience=_PATIENCE_SECONDS)
        if not is_named(fd, path):
            raise WriteError(f"{path}: another process took its place at once", hint="one writer at a time")
    except BaseException:
        os.close(fd)
        raise
    return fd


def replace_own(path: str) -> int:
    """Like `create_own`, but what has the name is removed first: a file nobody writes, or a symbolic link.

    Raises:
        UsageError: it is a folder, a device or a pipe.
        WriteError: another writer has it, or it cannot be removed.
    """
    for _ in range(_TRIES):
        _remove_left(path)
        try:
            return create_own(path)
        except FileExistsError:
            continue  # somebody was quicker; whether they write it is the next thing to find out
    raise WriteError(f"{path}: appears again and again", hint="one writer at a time")


def _remove_left(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise WriteError(f"{path}: {exc.strerror}") from exc
    if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):
        raise UsageError(f"{path} exists and is not a file")
    fd = -1
    try:
        if stat.S_ISREG(kind):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            _lock(fd, path)
            if not is_named(fd, path):
                return  # gone meanwhile, or another's: to be looked at again
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise WriteError(f"{path}: cannot be replaced: {exc.strerror}") from exc
    finally:
        if fd >= 0:
            os.close(fd)


def open_own(path: str) -> int:
    """Open a file that we made earlier, to go on with it, and lock it.

    Raises:
        FileNotFoundError: it is gone.
        UsageError: it is not a file of ours alone.
        WriteError: another writer has it, or it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise UsageError(f"{path} is a symbolic link", hint="begin anew with -f, which removes it") from exc
        raise WriteError(f"{path}: cannot be written: {exc.strerror}") from exc
    try:
        what = os.fstat(fd)
        problem = ""
        if not stat.S_ISREG(what.st_mode):
            problem = "is not a file"
        elif what.st_uid != os.geteuid():
            problem = f"belongs to user {what.st_uid}"
        elif what.st_nlink != 1:
            problem = f"has {what.st_nlink} names"
        if problem:
            raise UsageError(f"{path} {problem}: it is not gone on with", hint="begin anew with -f, or remove it")
        _lock(fd, path)
        if not is_named(fd, path):
            raise WriteError(f"{path}: another process took its place", hint="one writer at a time")
        os.fchmod(fd, 0o600)
    except OSError as exc:
        os.close(fd)
        raise WriteError(f"{path}: cannot be written: {exc.strerror}") from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_named(fd: int, path: str) -> bool:
    """Whether `path` is the name of the file that is open as `fd`, and no link to it."""
    try:
        ours, theirs = os.fstat(fd), os.lstat(path)
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def need_named(fd: int, path: str) -> None:
    """Raise a `WriteError` unless `is_named`."""
    if not is_named(fd, path):
        raise WriteError(
            f"{path}: was removed or replaced by another process while it was written",
            hint="write it again, into a folder that nobody else can write to",
        )


def rename_new(source: str, target: str) -> None:
    """Give a file another name that nothing has.

    Raises:
        FileExistsError: something has it.
        OSError: as link(2).
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from exc
        os.rename(source, target)
    else:
        os.unlink(source)


def need_trusted(path: str) -> None:
    """Refuse a symbolic link or a pipe that somebody else has put where a dump is to go.

    Raises:
        UsageError: it belongs neither to us nor to root.
    """
    what = os.lstat(path)
    if (stat.S_ISLNK(what.st_mode) or stat.S_ISFIFO(what.st_mode)) and what.st_uid not in (0, os.geteuid()):
        kind = "symbolic link" if stat.S_ISLNK(what.st_mode) else "pipe"
        raise UsageError(f"{path} is a {kind} of user {what.st_uid}", hint="name what it leads to, or another file")


def _lock(fd: int, path: str, patience: float = 0.0) -> None:
    """Lock a file. One just made is asked for again for a while: others look whether it is locked by locking it."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= until:
                raise WriteError(
                    f"{path}: is being written by {_holder(fd)}", hint="wait until it has ended, or name another file"
                ) from exc
            time.sleep(_PATIENCE_SECONDS / 100)
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            return
        else:
            return


def _holder(fd: int) -> str:
    """Who holds the lock of a file, for a message."""
    what = os.fstat(fd)
    place = f"{os.major(what.st_dev):02x}:{os.minor(what.st_dev):02x}:{what.st_ino}"
    try:
        with open(_LOCKS, encoding="ascii", errors="replace") as locks:
            rows = [line.split() for line in locks]
        pid = next(row[-4] for row in rows if len(row) >= 8 and row[1] == "FLOCK" and row[-3] == place)
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = os.fsdecode(file.read(64).strip())
    except (OSError, StopIteration):
        return "another process"
    return f"process {pid} ({name})"  # an error escapes what it quotes
