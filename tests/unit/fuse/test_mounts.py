"""The table of mounts, checks before a mount, and what a failure is called."""

from __future__ import annotations

import os
import subprocess

import pytest

from dumpfs.errors import MountError
from dumpfs.fuse import mounts


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Replaces the table of mounts."""
    real = open

    def replace(text: str) -> None:
        (tmp_path / "mountinfo").write_text(text)

        def fake(path, *args, **kwargs):
            return real(tmp_path / "mountinfo" if path == "/proc/self/mountinfo" else path, *args, **kwargs)

        monkeypatch.setattr("builtins.open", fake)

    return replace


LINES = r"""22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw
40 22 0:45 / /mnt/with\040space ro,nosuid,nodev,noexec - fuse.dumpfs /var/crash/a\134b rw,user_id=0
41 22 0:46 / /mnt/twice rw - ext4 /dev/sda1 rw
42 22 0:47 / /mnt/twice ro opt:1 opt:2 - fuse.dumpfs second rw
broken line
"""


def test_table_is_parsed_with_its_escapes(table):
    table(LINES)
    found = mounts.mounts()
    assert [mount.path for mount in found] == ["/proc", "/mnt/with space", "/mnt/twice", "/mnt/twice"]
    assert found[1] == mounts.Mount("0:45", "/mnt/with space", "fuse.dumpfs", "/var/crash/a\\b")


def test_topmost_mount_counts(table):
    table(LINES)
    mount = mounts.find_mount("/mnt/twice")
    assert mount is not None
    assert mount.source == "second"
    assert mounts.find_mount("/mnt") is None


def test_last_part_of_a_path_is_not_looked_at(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "dead").symlink_to("/nonexistent")
    assert mounts.resolve(f"{tmp_path}/link/dead") == f"{tmp_path}/real/dead"


def test_mount_point_is_resolved(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert mounts.check_mount_point(f"{tmp_path}/link") == f"{tmp_path}/real"


def test_mount_point_may_hold_files(tmp_path):
    (tmp_path / "file").write_text("")
    assert mounts.check_mount_point(str(tmp_path)) == str(tmp_path)


def test_missing_mount_point_has_a_hint(tmp_path):
    with pytest.raises(MountError) as failure:
        mounts.check_mount_point(f"{tmp_path}/x")
    assert failure.value.hint == f"mkdir {tmp_path}/x"


@pytest.mark.parametrize(
    ("printed", "message", "hint"),
    [
        (
            "fusermount3: user has no write access to mountpoint /x\n",
            "user has no write access to mountpoint /x",
            "belong",
        ),
        (
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
            "option",
            "root can",
        ),
        ("fuse: device not found, try 'modprobe fuse' first\n", "device not found", "modprobe fuse"),
        ("fuse: failed to open /dev/fuse: Permission denied\n", "failed to open /dev/fuse", "closed to this user"),
        ("fuse: failed to exec fusermount3: No such file or directory\n", "failed to exec", "apt install fuse3"),
        ("fusermount3: mount failed: Operation not permitted\n", "mount failed", "SYS_ADMIN"),
        ("fusermount3: too many FUSE filesystems; mount_max=N can be set\n", "too many", "mount_max"),
        ("fusermount3: failed to chdir to mountpoint: Permission denied\n", "failed to chdir", "may enter"),
        ("something else\n", "something else", None),
        ("", "mounting failed", None),
    ],
)
def test_failure_is_one_line_with_what_helps(printed, message, hint):
    error = mounts.mount_failure("/x", printed)
    assert error.message.startswith(f"/x: {message}")
    assert "\n" not in error.message
    assert (error.hint is None) == (hint is None)
    assert hint is None or hint in (error.hint or "")


def test_mount_in_use_names_the_mount_inside_it(monkeypatch):
    table = [mounts.Mount("0:7", path, mounts.FSTYPE, "dump") for path in ("/x", "/x/hmem", "/xy")]
    monkeypatch.setattr(mounts, "mounts", lambda: table)
    monkeypatch.setattr(mounts, "users_of", lambda path: iter([(12, "less")]))
    error = mounts._unmount_failure("/x", "umount: /x: target is busy.\n")
    assert error.message == "/x: is in use"
    expected = "used by less (pid 12); /x/hmem is mounted inside it; dumpfs umount -l /x takes it out of sight at once"
    assert error.hint == expected


def test_users_of_a_folder_are_found(tmp_path):
    (tmp_path / "file").write_text("x")
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as inside, open(tmp_path / "file"):
        users = dict(mounts.users_of(str(tmp_path)))
        inside.kill()
    assert inside.pid in users
    assert os.getpid() in users


def test_path_that_only_begins_alike_is_not_inside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "ab") as inside:
        users = dict(mounts.users_of(str(tmp_path / "a")))
        inside.kill()
    assert inside.pid not in users


def test_allow_other_depends_on_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "_FUSE_CONF", str(tmp_path / "fuse.conf"))
    assert not mounts._others_allowed()
    (tmp_path / "fuse.conf").write_text("#user_allow_other\nmount_max = 5\n")
    assert not mounts._others_allowed()
    (tmp_path / "fuse.conf").write_text("# x\n user_allow_other\n")
    assert mounts._others_allowed()


def test_read_ahead_of_an_unknown_device_is_left():
    assert not mounts.raise_read_ahead("999:999", 1024)


def test_missing_helper_is_named():
    error = mounts._unmount_failure("/x", "fusermount3: is not installed")
    assert (error.message, error.hint) == ("/x: fusermount3: is not installed", "apt install fuse3")
