"""mount.dumpfs, as mount(8) calls it, and through mount(8) itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fuse.conftest import BIN, DUMPFS, is_mounted, run

HELPER = str(BIN / "mount.dumpfs")
FSTAB = "rw,nofail,noauto,user,_netdev,x-systemd.automount,relatime,comment=x,nodev,defaults"


@pytest.fixture
def dump(data) -> Path:
    return data("mkd-raw-d31.kdump")


def test_options_of_fstab_are_ignored(mount, dump):
    path = mount.point()
    done = run(HELPER, dump, path, "-n", "-o", f"{FSTAB},log={mount.log_file(path)},holes=error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "holes=error" in (path / "status").read_text()
    assert os.statvfs(path).f_flag & os.ST_RDONLY


def test_options_may_come_first_and_with_a_type(mount, dump):
    path = mount.point()
    done = run(HELPER, "-t", "dumpfs", "-v", "-o", f"rw,log={mount.log_file(path)}", dump, path)
    assert done.returncode == 0
    assert done.stdout == f"mount.dumpfs: {dump} on {path} with log={mount.log_file(path)}\n"


def test_fake_mount_only_checks(mount, dump, tmp_path):
    path = mount.point()
    assert run(HELPER, "-f", dump, path).returncode == 0
    assert not is_mounted(path)
    (tmp_path / "text").write_text("x")
    assert run(HELPER, "-f", tmp_path / "text", path).returncode == 32


def test_unknown_option_is_a_usage_error_unless_sloppy(mount, dump):
    path = mount.point()
    done = run(HELPER, dump, path, "-o", "nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("mount.dumpfs: -o nonsense: unknown option\nhint: ")
    done = run(HELPER, "-s", dump, path, "-o", f"nonsense,log={mount.log_file(path)}")
    assert done.returncode == 0
    assert is_mounted(path)


@pytest.mark.parametrize("arguments", [[], ["one"], ["a", "b", "-t", "ext4"], ["a", "b", "-z"]])
def test_wrong_usage_is_1(arguments):
    assert run(HELPER, *arguments).returncode == 1


def test_failure_to_mount_is_32(mount, dump, tmp_path):
    done = run(HELPER, dump, tmp_path / "nothing")
    assert done.returncode == 32
    assert done.stderr == (
        f"mount.dumpfs: {tmp_path}/nothing: No such file or directory\nhint: mkdir {tmp_path}/nothing\n"
    )
    assert run(HELPER, tmp_path / "nothing", mount.point()).returncode == 32


def test_mount_command_finds_the_helper(mount, dump):
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to put the helper into /sbin for a moment")
    path = mount.point()
    # A folder laid over /sbin's real one in a namespace of its own: nothing of the machine changes.
    script = f"""
    mkdir {path}.sbin && cp -a /sbin/. {path}.sbin/ 2>/dev/null; ln -sf {HELPER} {path}.sbin/mount.dumpfs
    mount --bind {path}.sbin $(readlink -f /sbin) || exit 99
    mount -t dumpfs -o noauto,log={mount.log_file(path)} {dump} {path} || exit
    head -c 10 {path}/vmcoreinfo && {DUMPFS} umount {path}
    """
    done = run("unshare", "--mount", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "OSRELEASE=", "")
