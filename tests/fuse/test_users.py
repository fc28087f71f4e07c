"""Ordinary users: a mount of their own, and what keeps others out of it.

Runs as root in a mount namespace of its own, where /dev/fuse is open to everybody whatever the machine's is, and
becomes the user `nobody` for what is under test.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import DUMPFS, SECONDS, run

NOBODY = 65534
AS_USER = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
PRELUDE = f"""
cd "$1" && mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse || exit 99
user() {{ {AS_USER} "$@"; }}
"""

Script = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def script(data) -> Iterator[Script]:
    """Runs shell commands in a folder of nobody's with a dump and a mount point; what is mounted is gone after."""
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    for tool in ("unshare", "setpriv", "fusermount3"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if run("unshare", "--mount", "true").returncode:
        pytest.skip("there can be no namespace of mounts here")
    fusermount = shutil.which("fusermount3")
    if fusermount is None or not os.stat(fusermount).st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is not set-uid root")
    # setpriv enters folders that the user may not (such as root's own, where pyenv keeps things): nothing else may
    # start the command.
    if run(*AS_USER.split(), DUMPFS, "--version").returncode:
        pytest.skip("another user cannot run the command from here")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        shutil.copy(data("mkd-raw-d31.kdump"), folder / "dump")
        (folder / "mnt").mkdir()
        (folder / "log").write_text("")
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)

        def execute(commands: str) -> subprocess.CompletedProcess[str]:
            # A process namespace of its own: whatever is left running ends with the script.
            command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command += ["sh", "-c", PRELUDE + commands, "sh", name]
            return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

        yield execute


MOUNT = f"{AS_USER} {DUMPFS} mount -o log=log dump mnt"
UMOUNT = f"{AS_USER} {DUMPFS} umount mnt"


def test_user_mounts_reads_and_unmounts(script):
    done = script(f"{MOUNT} && user head -c 10 mnt/vmcoreinfo && {UMOUNT} && user ls -A mnt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "OSRELEASE=", "")


def test_files_belong_to_the_user(script):
    done = script(f"{MOUNT} && user stat -c '%U %a' mnt/hmem mnt/pages; {UMOUNT}")
    assert done.stdout == "nobody 400\nnobody 500\n"


def test_root_is_kept_out_and_told_so(script):
    done = script(f"{MOUNT} && {{ {DUMPFS} mount dump mnt; echo $?; }}; {UMOUNT}")
    assert done.stdout == "7\n"
    assert "Permission denied" in done.stderr
    assert "hint: another user's mount" in done.stderr


def test_dead_worker_is_replaced_in_a_users_mount_too(script):
    done = script(
        f"{MOUNT} && kill -9 $(user grep -m1 workers: mnt/status | cut -d' ' -f4) && sleep 0.2;"
        f"user grep -c workers_restarted:.1 mnt/status; {UMOUNT}"
    )
    assert done.stdout == "1\n"


def test_allow_other_needs_the_machines_leave(script):
    done = script(f"mount --bind /dev/null /etc/fuse.conf; {MOUNT.replace('log=log', 'log=log,allow_other')}")
    assert done.returncode == 7
    assert done.stderr.splitlines() == [
        "dumpfs: -o allow_other: only root may, on this machine",
        "hint: root can write user_allow_other into /etc/fuse.conf; or leave allow_other out",
    ]


def test_allow_other_lets_root_in(script):
    done = script(
        "echo user_allow_other > conf; mount --bind conf /etc/fuse.conf;"
        f"{MOUNT.replace('log=log', 'log=log,allow_other')} && head -c 10 mnt/vmcoreinfo; {UMOUNT}"
    )
    assert (done.stdout, done.stderr) == ("OSRELEASE=", "")


def test_foreign_mount_point_is_refused(script):
    done = script(f"mkdir other; {MOUNT.replace('mnt', 'other')}")
    assert done.returncode == 7
    assert "no write access to mountpoint" in done.stderr
    assert "hint: the mount point must belong to you" in done.stderr


def test_closed_device_has_a_hint(script):
    done = script(f"chmod 600 /dev/fuse; {MOUNT}")
    assert done.returncode == 7
    assert done.stderr.splitlines()[0].endswith("failed to open /dev/fuse: Permission denied")
    assert "hint: /dev/fuse is closed to this user: chmod 666 /dev/fuse" in done.stderr


def test_missing_helper_has_a_hint(script):
    done = script(f"PATH=/nowhere {shutil.which('setpriv')}{MOUNT.removeprefix('setpriv')}")
    assert done.returncode == 7
    assert done.stderr.splitlines() == [
        "dumpfs: fusermount3: is not installed",
        "hint: apt install fuse3, or mount as root",
    ]


def test_stale_mount_of_a_user_is_cleared_by_the_user(script):
    done = script(
        f"{MOUNT} && kill -9 $(pidof -x {DUMPFS}) && sleep 0.2; user ls mnt 2>/dev/null; echo $?; {UMOUNT}; echo $?"
    )
    assert done.stdout == "2\n0\n"
