"""Mounting, leaving the terminal, ending: what the commands promise."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.conftest import DUMPFS, SECONDS, is_mounted, run, wait_until

DUMP = "mkd-raw-d31.kdump"


@pytest.fixture
def dump(data) -> Path:
    return data(DUMP)


def gone(pids: list[int]) -> bool:
    """Whether processes have ended (zombies have)."""
    return not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids)


def test_mount_returns_when_the_mount_answers_and_leaves_nothing_in_the_way(mount, dump):
    tree = mount(dump)
    assert is_mounted(tree)
    assert "hmem" in os.listdir(tree)


def test_output_of_the_command_ends_although_the_mount_goes_on(mount, dump):
    path = mount.point()
    done = run(f"x=$({DUMPFS} mount -o log={mount.log_file(path)} {dump} {path} 2>&1); echo \"got '$x'\"", shell=True)
    assert done.stdout == "got ''\n"
    assert is_mounted(path)


def test_daemon_lets_go_of_terminal_session_and_folder(mount, dump):
    tree = mount(dump)
    for pid in mount.processes(tree):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        assert os.getsid(pid) != os.getsid(0)


def test_closed_standard_descriptors_do_no_harm(mount, dump):
    path = mount.point()
    subprocess.run(f"{DUMPFS} mount -o log={mount.log_file(path)} {dump} {path} <&- >&- 2>&-", shell=True, check=True)
    assert (path / "vmcoreinfo").read_bytes().startswith(b"OSRELEASE=")


def test_relative_paths_survive(mount, dump, tmp_path):
    link = tmp_path / "here.kdump"
    link.symlink_to(dump)
    path = mount.point()
    done = run(DUMPFS, "mount", "-o", "log=mnt0.log", link.name, path.name, cwd=tmp_path)
    assert done.returncode == 0
    assert "is mounted on" in mount.log(path)
    assert b"OSRELEASE=" in (path / "vmcoreinfo").read_bytes()
    assert run(DUMPFS, "umount", path.name, cwd=tmp_path).returncode == 0


def test_mount_over_the_dumps_own_folder(mount, dump):
    path = mount.point()
    shutil.copy(dump, path / "core")
    assert run(DUMPFS, "mount", "-o", f"log={mount.log_file(path)}", path / "core", path).returncode == 0
    assert not (path / "core").exists()
    assert len((path / "hmem").read_bytes()) == (path / "hmem").stat().st_size
    assert (path / "status").read_bytes()
    assert run(DUMPFS, "umount", path).returncode == 0
    assert (path / "core").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_mount_over_the_dumps_own_folder_never_waits_for_itself(mount, dump, workers):
    path = mount.point()
    shutil.copy(dump, path / "core")
    options = f"log={mount.log_file(path)},workers={workers}"
    assert run(DUMPFS, "mount", "-o", options, path / "core", path).returncode == 0
    # In a process that can be killed: what hangs here would hang for ever.
    assert run("ls", "-l", path).returncode == 0
    assert json.loads(run("cat", path / "info.json").stdout)["files"][0]["size"] == dump.stat().st_size
    assert "changes of the input:\n  none\n" in run("cat", path / "status").stdout


def test_dump_with_an_unprintable_name(mount, dump, tmp_path):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/a,\\ \n\xff\xc3\xbc"))
    shutil.copy(dump, odd)
    tree = mount(odd)
    for name in ("status", "README"):
        assert str(tmp_path) + "/a,\\ \\n\\xff\u00fc\n" in (tree / name).read_text(encoding="utf-8")
    assert "vmcore" in run("ls", "-l", tree).stdout


def message(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a failure: one message, at most one hint."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines
    assert lines[0].startswith(("dumpfs: ", "mount.dumpfs: "))
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2
    return lines


def test_bad_dump_is_told_on_the_terminal(mount, tmp_path):
    text = tmp_path / "text"
    text.write_text("not a dump\n")
    path = mount.point()
    done = run(DUMPFS, "mount", text, path)
    assert done.returncode == 3
    assert "text" in message(done)[0]
    assert not is_mounted(path)


def test_missing_dump_is_told_on_the_terminal(mount, tmp_path):
    done = run(DUMPFS, "mount", tmp_path / "nothing", mount.point())
    assert done.returncode == 1
    assert message(done)[0] == f"dumpfs: {tmp_path}/nothing: No such file or directory"


def test_missing_mount_point_has_a_hint(dump, tmp_path):
    done = run(DUMPFS, "mount", dump, tmp_path / "nothing")
    assert done.returncode == 7
    assert message(done) == [
        f"dumpfs: {tmp_path}/nothing: No such file or directory",
        f"hint: mkdir {tmp_path}/nothing",
    ]


def test_file_as_mount_point_is_refused(dump, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(DUMPFS, "mount", dump, tmp_path / "file")
    assert done.returncode == 7
    assert "is not a folder" in message(done)[0]


def test_second_mount_on_the_same_folder_is_refused(mount, dump):
    tree = mount(dump)
    done = run(DUMPFS, "mount", dump, tree)
    assert done.returncode == 7
    assert "is mounted there already" in message(done)[0]
    assert message(done)[1] == f"hint: dumpfs umount {tree}"


def test_unwritable_log_is_told_on_the_terminal(mount, dump, tmp_path):
    done = run(DUMPFS, "mount", "-o", f"log={tmp_path}/no/such/folder/log", dump, mount.point())
    assert done.returncode == 1
    assert "No such file or directory" in message(done)[0]


def test_missing_device_has_a_hint(mount, dump, monkeypatch):
    script = (
        "import sys, dumpfs.fuse.mounts as m; m.FUSE_DEVICE = '/dev/nothing';"
        "from dumpfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run(sys.executable, "-c", script, "mount", dump, mount.point())
    assert done.returncode == 7
    assert message(done)[0] == "dumpfs: /dev/nothing: does not exist"
    assert "modprobe fuse" in message(done)[1]


def test_failure_to_mount_in_the_background_reaches_the_terminal(mount, dump):
    if os.geteuid():
        pytest.skip("needs root, to give up the right to mount")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    path = mount.point()
    done = run("setpriv", "--bounding-set=-sys_admin", DUMPFS, "mount", "-o", f"log={path}.log", dump, path)
    assert done.returncode == 7
    assert "Operation not permitted" in message(done)[0]
    assert "SYS_ADMIN" in message(done)[1]


def test_mount_holds_no_descriptor_of_who_mounted(mount, dump, tmp_path):
    path = mount.point()
    lock = tmp_path / "lock"
    ours, theirs = os.pipe()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [DUMPFS, "mount", "-o", f"log={mount.log_file(path)}", str(dump), str(path)]
        assert subprocess.run(command, pass_fds=(file.fileno(), theirs), timeout=SECONDS, check=False).returncode == 0
    os.close(theirs)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b""
    assert (path / "status").read_bytes()


def test_error_while_serving_begins_reaches_the_terminal(mount, dump):
    path = mount.point()
    script = (
        "import sys, dumpfs.fuse.workers as w\n"
        "def broken(*_): raise ZeroDivisionError('made up')\n"
        "w.Workers._work = broken\n"
        "from dumpfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    mount.expect("unexpected error in process|Traceback|worker .* ended with exit code 1")
    done = run(sys.executable, "-c", script, "mount", "-o", f"log={mount.log_file(path)}", dump, path)
    assert done.returncode == 7
    assert "workers keep dying" in message(done)[0]
    wait_until(lambda: not is_mounted(path), "unmounted")


def test_mount_is_taken_away_when_the_waiting_command_is_interrupted(mount, dump, tmp_path):
    path = mount.point()
    script = (
        "import sys, os, time, dumpfs.fuse.session as s\n"
        "probe = s.Session._probe\n"
        "def slow(*args):\n"
        f"    while not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\n"
        "    probe(*args)\n"
        "s.Session._probe = slow\n"
        "from dumpfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "mount", "-o", f"log={mount.log_file(path)}", str(dump), str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mounted(path), "mounted")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.communicate()[1] == ""
    (tmp_path / "go").touch()
    wait_until(lambda: not is_mounted(path), "unmounted")
    wait_until(lambda: "nobody waits for the mount" in mount.log(path), "logged")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_daemon_unmounts(mount, dump, signum):
    tree = mount(dump)
    pids = mount.processes(tree)
    os.kill(pids[0], signum)
    wait_until(lambda: not is_mounted(tree) and gone(pids), "everything has ended")
    assert f"the mount ends: signal {signum.name}" in mount.log(tree)


def test_sigterm_to_a_worker_unmounts(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    os.kill(pids[-1], signal.SIGTERM)
    wait_until(lambda: not is_mounted(tree) and gone(pids), "everything has ended")


def test_sigterm_unmounts_although_somebody_is_inside(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    with subprocess.Popen(["sleep", "60"], cwd=tree) as inside:
        os.kill(pids[0], signal.SIGTERM)
        wait_until(lambda: not is_mounted(tree) and gone(pids), "everything has ended")
        inside.kill()


def test_killed_daemon_leaves_a_mount_that_umount_clears(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pids), "everything has ended")
    assert is_mounted(tree)
    with pytest.raises(OSError) as failure:
        os.listdir(tree)
    assert failure.value.errno == errno.ENOTCONN
    done = run(DUMPFS, "mount", dump, tree)
    assert done.returncode == 7
    assert message(done) == [
        f"dumpfs: {tree}: Transport endpoint is not connected",
        f"hint: a mount whose process is gone is still there: dumpfs umount {tree}",
    ]
    assert run(DUMPFS, "umount", tree).returncode == 0
    assert not is_mounted(tree)


def test_workers_end_with_a_killed_supervisor(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: gone(pids), "everything has ended")
    assert run(DUMPFS, "umount", tree).returncode == 0


def test_aborted_connection_ends_the_mount(mount, dump):
    tree = mount(dump)
    control = Path(f"/sys/fs/fuse/connections/{os.minor(tree.stat().st_dev)}/abort")
    if not os.access(control, os.W_OK):
        pytest.skip("the control file system of FUSE is not mounted, or not writable")
    pids = mount.processes(tree)
    control.write_text("1")
    wait_until(lambda: gone(pids) and not is_mounted(tree), "everything has ended")


def test_umount_waits_until_it_is_gone(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    done = run(DUMPFS, "umount", tree)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_mounted(tree)
    wait_until(lambda: gone(pids), "everything has ended")
    assert "the mount ends: unmounted" in mount.log(tree)


def test_umount_of_a_busy_mount_says_who_is_there(mount, dump):
    tree = mount(dump)
    with open(tree / "hmem", "rb"), subprocess.Popen(["sleep", "60"], cwd=tree) as inside:
        done = run(DUMPFS, "umount", tree)
        assert done.returncode == 7
        assert message(done)[0] == f"dumpfs: {tree}: is in use"
        assert f"sleep (pid {inside.pid})" in message(done)[1]
        assert f"(pid {os.getpid()})" in message(done)[1]
        assert run(DUMPFS, "umount", "-l", tree).returncode == 0
        assert not is_mounted(tree)
        inside.kill()


def test_umount_of_what_is_no_dump_is_refused(tmp_path):
    done = run(DUMPFS, "umount", tmp_path)
    assert done.returncode == 7
    assert message(done)[0] == f"dumpfs: {tmp_path}: nothing is mounted there"
    done = run(DUMPFS, "umount", "/proc")
    assert done.returncode == 7
    assert "type proc" in message(done)[0]


def test_plain_umount_ends_the_daemon_too(mount, dump):
    tree = mount(dump)
    pids = mount.processes(tree)
    assert run("fusermount3", "-u", tree).returncode == 0
    wait_until(lambda: gone(pids), "everything has ended")


def test_foreground_mount_stays_and_ends_by_interrupt(foreground):
    process, tree = foreground()
    assert (tree / "text").read_text() == "some text\n"
    assert process.poll() is None
    assert process.stderr is not None
    assert "is mounted on" in process.stderr.readline()  # before, an interrupt means that mounting failed
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 0
    assert not is_mounted(tree)


def test_foreground_mount_ends_when_it_is_unmounted(foreground):
    process, tree = foreground("workers=3")
    assert run(DUMPFS, "umount", tree).returncode == 0
    assert process.wait(30) == 0


def test_foreground_command_mounts_too(mount, dump):
    path = mount.point()
    process = subprocess.Popen([DUMPFS, "mount", "-f", str(dump), str(path)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mounted(path) and "hmem" in os.listdir(path), "mounted")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert re.search(r"INFO: .* is mounted on", process.communicate()[1])


def test_debug_shows_requests(mount, dump):
    path = mount.point()
    process = subprocess.Popen([DUMPFS, "mount", "-d", str(dump), str(path)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mounted(path) and "hmem" in os.listdir(path), "mounted")
    process.send_signal(signal.SIGTERM)
    assert "opcode: " in process.communicate(timeout=30)[1]
