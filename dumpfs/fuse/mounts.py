"""The table of mounts, mount points, and taking mounts away. Loads no pyfuse3."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from dumpfs.errors import MountError

FSTYPE = "fuse.dumpfs"
FUSE_DEVICE = "/dev/fuse"
_WITHOUT = "without a mount: dumpfs info, ls, cat, dmesg, check, write"
_FUSERMOUNT = "fusermount3"
_FUSE_CONF = "/etc/fuse.conf"
_GONE_SECONDS = 5.0
"""How long an unmounted file system may stay in the table of mounts."""
_NAMED_USERS = 5
"""Processes that a message about a busy mount names."""


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    device: str
    """'major:minor'."""
    path: str
    fstype: str
    source: str


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounts() -> list[Mount]:
    """Every mount that this process sees, in the order they were made."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.rstrip("\n").partition(" - ")
            fields, rest = left.split(" "), right.split(" ")
            if len(fields) > 4 and len(rest) > 1:
                found.append(Mount(fields[2], _unescape(fields[4]), rest[0], _unescape(rest[1])))
    return found


def resolve(path: str) -> str:
    """`path` without links in its folders; the last part is not looked at, for a dead mount cannot be."""
    path = os.path.abspath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def find_mount(path: str) -> Mount | None:
    """The topmost mount on a resolved path, or None."""
    return next((mount for mount in reversed(mounts()) if mount.path == path), None)


def check_mount_point(path: str) -> str:
    """The resolved path of a folder that may be mounted over.

    Raises:
        MountError: it may not; the hint says what to do.
    """
    try:
        status = os.stat(path)
    except OSError as exc:
        raise MountError(f"{path}: {exc.strerror}", hint=_mount_point_hint(path, exc.errno)) from exc
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{path}: is not a folder", hint="the mount point, a folder, is the last argument")
    path = os.path.realpath(path)
    mount = find_mount(path)
    if mount is not None and mount.fstype == FSTYPE:
        try:
            os.statvfs(path)  # what stat says, the kernel may remember from better days
        except OSError as exc:
            raise MountError(f"{path}: {exc.strerror}", hint=_mount_point_hint(path, exc.errno)) from exc
        raise MountError(f"{path}: {mount.source} is mounted there already", hint=f"dumpfs umount {path}")
    return path


def _mount_point_hint(path: str, number: int | None) -> str | None:
    if number in (errno.ENOTCONN, errno.ECONNABORTED):
        return f"a mount whose process is gone is still there: dumpfs umount {path}"
    if number == errno.ENOENT:
        return f"mkdir {path}"
    if number == errno.EACCES:
        return "another user's mount, or a folder this user may not enter (root is kept out of users' mounts, too)"
    return None


def check_fuse(*, allow_other: bool) -> None:
    """See that this user can mount a FUSE file system, as far as it can be seen beforehand.

    Raises:
        MountError: it cannot be; the hint says what to do.
    """
    if not os.path.exists(FUSE_DEVICE):
        raise MountError(
            f"{FUSE_DEVICE}: does not exist",
            hint=f"modprobe fuse; in a container, add --device /dev/fuse --cap-add SYS_ADMIN; {_WITHOUT}",
        )
    if os.geteuid() == 0:
        _check_device_as_root()
        return
    import shutil  # 10 ms that root need not spend

    if shutil.which(_FUSERMOUNT) is None:
        raise MountError(f"{_FUSERMOUNT}: is not installed", hint="apt install fuse3, or mount as root")
    if allow_other and not _others_allowed():
        raise MountError(
            "-o allow_other: only root may, on this machine",
            hint=f"root can write user_allow_other into {_FUSE_CONF}; or leave allow_other out",
        )


def _check_device_as_root() -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        hint = f"modprobe fuse; in a container, add --device /dev/fuse --cap-add SYS_ADMIN; {_WITHOUT}"
        raise MountError(f"{FUSE_DEVICE}: {exc.strerror}", hint=hint) from exc


def _others_allowed() -> bool:
    """Whether the machine lets ordinary users say allow_other; True when that cannot be read."""
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as conf:
            return any(line.strip() == "user_allow_other" for line in conf)
    except FileNotFoundError:
        return False
    except OSError:
        return True


# What libfuse and fusermount3 print when a mount fails, and what helps.
_FAILURES = (
    ("user has no write access to mountpoint", "the mount point must belong to you: use a folder of your own"),
    ("bad mount point", "the mount point must be a folder that you may enter"),
    ("failed to chdir to mountpoint", "the mount point must be a folder that you may enter"),
    ("user_allow_other", f"root can write user_allow_other into {_FUSE_CONF}; or leave allow_other out"),
    ("too many FUSE filesystems", f"unmount some, or raise mount_max in {_FUSE_CONF}"),
    ("device not found", "modprobe fuse"),
    (f"failed to open {FUSE_DEVICE}", f"{FUSE_DEVICE} is closed to this user: chmod 666 {FUSE_DEVICE}, as root"),
    (f"failed to exec {_FUSERMOUNT}", "apt install fuse3, or mount as root"),
    (
        "Operation not permitted",
        f"an ordinary user needs {_FUSERMOUNT} set-uid root; root in a container needs --cap-add SYS_ADMIN",
    ),
    ("Transport endpoint is not connected", "a mount whose process is gone is still there: dumpfs umount it"),
)


def mount_failure(path: str, printed: str) -> MountError:
    """The error that a failed mount deserves.

    Args:
        path: the mount point.
        printed: what libfuse and its helper had to say.
    """
    lines = [re.sub(r"^(fuse|fusermount3?): ", "", line.strip()) for line in printed.splitlines() if line.strip()]
    hint = next((hint for text, hint in _FAILURES if text in printed), None)
    return MountError(f"{path}: {lines[0] if lines else 'mounting failed'}", hint=hint)


def raise_read_ahead(device: str, kib: int) -> bool:
    """Let the kernel read `kib` KiB ahead in the mount with this device number, if this user may say so.

    Returns:
        True when it was said.
    """
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "r+", encoding="ascii") as file:
            if int(file.read()) < kib:
                file.seek(0)
                file.write(str(kib))
    except (OSError, ValueError):
        return False  # not root, or no /sys: reading is a little slower
    return True


def unmount(path: str, *, lazy: bool = False) -> None:
    """Take away the dumpfs mount at `path`, dead or alive, and return when it is gone.

    Args:
        path: the mount point.
        lazy: take it out of sight now; it ends when its last user does.

    Raises:
        MountError: nothing of ours is mounted there, or it is in use.
    """
    path = resolve(path)
    mount = find_mount(path) or find_mount(os.path.realpath(path))
    if mount is None:
        raise MountError(f"{path}: nothing is mounted there", hint="the mounts: findmnt -t fuse.dumpfs")
    if mount.fstype != FSTYPE:
        raise MountError(f"{path}: is not a dump but a mount of type {mount.fstype}", hint=f"umount {path}")
    path = mount.path
    before = mounts().count(mount)
    printed = _run_unmount(path, lazy)
    until = time.monotonic() + _GONE_SECONDS
    while mounts().count(mount) >= before:
        if printed is not None:
            raise _unmount_failure(path, printed)
        if time.monotonic() > until:
            raise MountError(f"{path}: is still mounted", hint="findmnt shows what is there")
        time.sleep(0.01)


def _run_unmount(path: str, lazy: bool) -> str | None:
    """Unmount; None when the helper says it worked, else what it printed."""
    commands = [[_FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", path]]
    if os.geteuid() == 0:
        commands.append(["umount", *(["-l"] if lazy else []), "--", path])
    printed = None
    for command in commands:
        try:
            code, text = _run(command)
        except FileNotFoundError:
            printed = printed or f"{command[0]}: is not installed"
            continue
        if code == 0:
            return None
        printed = text or f"{command[0]} failed"
        break
    return printed


def _run(command: list[str]) -> tuple[int, str]:
    """Run a command: its exit code and what it printed. Without subprocess, which is dearer to load than all of this.

    Raises:
        FileNotFoundError: there is no such program.
    """
    with open(os.memfd_create("output", os.MFD_CLOEXEC), "w+b") as file:
        output = [(os.POSIX_SPAWN_DUP2, file.fileno(), descriptor) for descriptor in (1, 2)]
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=output)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read().decode("utf-8", "replace")


def _unmount_failure(path: str, printed: str) -> MountError:
    text = printed.strip().splitlines()[0]
    if "not installed" not in text:
        text = re.sub(rf"^(fusermount3?|umount): (failed to unmount )?({re.escape(path)}: )?", "", text).rstrip(".")
    hint = None
    if "busy" in text:
        text = "is in use"
        users = list(users_of(path))
        names = ", ".join(f"{name} (pid {pid})" for pid, name in users[:_NAMED_USERS])
        more = ", and more" if len(users) > _NAMED_USERS else ""
        hint = f"used by {names}{more}; " if names else ""
        inner = next((mount.path for mount in reversed(mounts()) if mount.path.startswith(path + "/")), None)
        if inner is not None:
            hint += f"{inner} is mounted inside it; "
        hint += f"dumpfs umount -l {path} takes it out of sight at once"
    elif "not installed" in text:
        hint = "apt install fuse3"
    elif "not permitted" in text or "not found" in text or "entry for" in text:
        hint = "only who mounted it, and root, may unmount it"
    return MountError(f"{path}: {text}", hint=hint)


def users_of(path: str) -> Iterator[tuple[int, str]]:
    """Processes, by id and name, that are inside a mount or hold files of it, as far as this user may see.

    Looks at links only and never into the mount, which may be dead.
    """
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and any(_inside(target, path) for target in _links(f"/proc/{entry}")):
            try:
                with open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file:
                    yield int(entry), file.read().strip()
            except OSError:
                continue  # it has ended meanwhile


def _inside(target: str, path: str) -> bool:
    return target == path or target.startswith(path.rstrip("/") + "/")


def _links(process: str) -> Iterator[str]:
    names = ["cwd", "root", "exe"]
    for folder in ("fd", "map_files"):
        try:
            names += [f"{folder}/{name}" for name in os.listdir(f"{process}/{folder}")]
        except OSError:
            continue  # not ours to look at, or ended
    for name in names:
        try:
            yield os.readlink(f"{process}/{name}")
        except OSError:
            continue
