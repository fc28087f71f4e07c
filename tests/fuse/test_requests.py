"""What the kernel asks and what it gets, on a tree made up for the purpose."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounter, run, wait_until
from tests.fuse.fake_mount import BAD_PFN, MANY, PAGE, SIZE, TIMES_NS, ZERO_SIZE


def fails(number: int, function: object, *args: object) -> None:
    """Assert that a call fails with an error number."""
    with pytest.raises(OSError) as failure:
        function(*args)  # type: ignore[operator]
    assert failure.value.errno == number


@pytest.fixture
def tree(mount: Mounter) -> Path:
    return mount.fake()


def test_files_and_folders_belong_to_who_mounted_and_have_the_time_of_the_crash(tree):
    file, folder = (tree / "text").stat(), (tree / "folder").stat()
    assert stat.filemode(file.st_mode) == "-r--------"
    assert stat.filemode(folder.st_mode) == "dr-x------"
    assert (file.st_uid, file.st_gid) == (os.getuid(), os.getgid())
    assert {file.st_mtime_ns, file.st_ctime_ns, file.st_atime_ns, folder.st_mtime_ns} == {TIMES_NS}
    assert (file.st_size, file.st_nlink, folder.st_nlink, tree.stat().st_nlink) == (10, 1, 2, 4)


def test_owner_and_modes_follow_the_options(mount):
    tree = mount.fake("uid=65534", "gid=65533", "umask=027")
    file, folder = (tree / "text").stat(), (tree / "folder").stat()
    assert (stat.filemode(file.st_mode), stat.filemode(folder.st_mode)) == ("-r--r-----", "dr-xr-x---")
    assert (file.st_uid, file.st_gid) == (65534, 65533)


def test_mount_table_shows_the_dump_and_the_safe_options(tree):
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {tree} " in line)
    assert " - fuse.dumpfs " in line
    assert re.search(r"made,\\040up\\040\\134xe9\.dump|made,\\040up\\040\\xe9\.dump", line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert "default_permissions" in line


def test_listing_has_every_name_and_may_go_on_anywhere(tree):
    assert {"zero", "text", "bad", "clock", "folder", "many"} <= set(os.listdir(tree))
    assert os.listdir(tree / "folder") == ["inner"]
    assert (tree / "folder" / "inner").read_text() == "inner\n"


def test_unknown_name_is_enoent(tree):
    fails(errno.ENOENT, os.stat, tree / "nothing")


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_opening_for_writing_is_refused(tree, flags):
    fails(errno.EROFS, os.open, tree / "text", flags)


def test_every_change_is_refused(tree):
    for function, *args in (
        (os.mkdir, tree / "new"),
        (os.unlink, tree / "text"),
        (os.rmdir, tree / "folder"),
        (os.rename, tree / "text", tree / "other"),
        (os.symlink, "target", tree / "link"),
        (os.link, tree / "text", tree / "hard"),
        (os.chmod, tree / "text", 0o777),
        (os.truncate, tree / "text", 0),
        (os.setxattr, tree / "text", "user.x", b"y"),
        (os.removexattr, tree / "text", "user.dumpfs.state"),
    ):
        fails(errno.EROFS, function, *args)
    assert not os.access(tree / "text", os.W_OK)
    assert os.access(tree / "text", os.R_OK)


def test_extended_attributes_are_the_nodes(tree):
    assert sorted(os.listxattr(tree / "text")) == ["user.dumpfs.size", "user.dumpfs.state"]
    assert os.getxattr(tree / "text", "user.dumpfs.size") == b"10"
    fails(errno.ENODATA, os.getxattr, tree / "text", "user.other")
    fails(errno.ENODATA, os.getxattr, tree / "text", "security.selinux")
    assert os.listxattr(tree / "folder") == []


def test_statfs_is_full_and_read_only(tree):
    data = os.statvfs(tree)
    assert (data.f_bfree, data.f_bavail, data.f_namemax) == (0, 0, 255)
    assert data.f_flag & os.ST_RDONLY


def test_error_at_open_is_the_nodes(tree):
    fails(errno.ENODATA, os.open, tree / "refused", os.O_RDONLY)


def test_st_blocks_counts_what_is_stored(tree):
    assert (tree / "bad").stat().st_blocks == PAGE // 512


def test_reads_of_any_offset_and_size_match(tree):
    with open(tree / "good", "rb", buffering=0) as file:
        for offset, size in ((0, 1), (1, 4096), (4095, 2), (50 * PAGE - 3, 7), (SIZE - 1, 10), (SIZE, 10)):
            expected = b"".join(bytes((i // PAGE & 255,)) for i in range(offset, min(offset + size, SIZE)))
            assert os.pread(file.fileno(), size, offset) == expected


def test_bad_page_fails_alone_and_the_file_keeps_its_size(mount, tree, tmp_path):
    mount.expect(f"page {BAD_PFN:#x} is corrupt")
    out = tmp_path / "out"
    done = run("dd", f"if={tree / 'bad'}", f"of={out}", "bs=4096", "conv=noerror,sync")
    assert done.stderr.count("Input/output error") >= 1
    data = out.read_bytes()
    assert len(data) == SIZE == (tree / "bad").stat().st_size
    for pfn in range(SIZE // PAGE):
        expected = 0 if pfn == BAD_PFN else pfn & 255
        assert data[pfn * PAGE : (pfn + 1) * PAGE] == bytes((expected,)) * PAGE
    with open(tree / "bad", "rb", buffering=0) as file:
        fails(errno.EIO, os.pread, file.fileno(), 10, BAD_PFN * PAGE + 5)
        assert os.pread(file.fileno(), 1, SIZE - 1) == bytes((SIZE // PAGE - 1 & 255,))
    assert mount.log(tree).count(f"page {BAD_PFN:#x}") == 1, "named once, whoever met it"


def test_failing_disk_is_logged_once(mount, tree):
    mount.expect("made-up.dump: reading failed")
    for _ in range(3):
        fails(errno.EIO, (tree / "disk").read_bytes)
    log = mount.log(tree)
    assert 1 <= log.count("reading failed") <= len(mount.processes(tree))


def test_exception_in_a_handler_is_eio_with_a_traceback_and_the_mount_lives(mount):
    mount.expect("unexpected error in read|Traceback")
    tree = mount.fake("workers=1")
    fails(errno.EIO, (tree / "buggy").read_bytes)
    assert (tree / "text").read_text() == "some text\n"
    log = mount.log(tree)
    assert "ZeroDivisionError: a bug made up for the test" in log
    assert "fake_mount.py" in log


def test_volatile_file_is_fresh_at_every_look(tree):
    with open(tree / "clock", "rb", buffering=0) as file:
        looks = [int(os.pread(file.fileno(), 100, 0)) for _ in range(3)]
    assert looks == sorted(set(looks))
    assert int((tree / "clock").read_text()) > looks[-1]
    assert (tree / "clock").stat().st_size == 0


def test_file_can_be_mapped(tree):
    with open(tree / "good", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[5 * PAGE] == 5
        assert len(view) == SIZE


def test_file_opened_with_o_direct_reads_the_same(tree):
    fd = os.open(tree / "good", os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 2 * PAGE)
        assert os.preadv(fd, [buffer], 7 * PAGE) == 2 * PAGE
        assert buffer[:] == b"\7" * PAGE + b"\10" * PAGE
    finally:
        os.close(fd)


def test_large_o_direct_read_is_whole(tree):
    fd = os.open(tree / "zero", os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 8 << 20)
        assert os.preadv(fd, [buffer], ZERO_SIZE - (8 << 20)) == 8 << 20
        assert os.preadv(fd, [buffer], ZERO_SIZE - PAGE) == PAGE
        assert os.preadv(fd, [buffer], ZERO_SIZE) == 0
    finally:
        os.close(fd)


def test_large_o_direct_read_over_a_bad_page_fails_and_smaller_ones_around_it_do_not(mount):
    mount.expect(f"page {BAD_PFN:#x} is corrupt")
    fd = os.open(mount.fake("workers=2") / "bad", os.O_RDONLY | os.O_DIRECT)
    try:
        whole, page = mmap.mmap(-1, SIZE), mmap.mmap(-1, PAGE)
        fails(errno.EIO, os.preadv, fd, [whole], 0)  # asked for in megabytes; the bad page is in the 2nd
        for pfn in (BAD_PFN - 1, BAD_PFN + 1):
            assert os.preadv(fd, [page], pfn * PAGE) == PAGE
            assert page[:] == bytes((pfn & 255,)) * PAGE
        fails(errno.EIO, os.preadv, fd, [page], BAD_PFN * PAGE)
    finally:
        os.close(fd)


def cpu_seconds(pids: list[int]) -> float:
    """Processor time of some processes."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def test_a_million_files_are_listed(tree):
    assert int(run(f"ls -U {tree / 'many'} | wc -l", shell=True).stdout) == MANY


def test_a_listed_file_tells_its_true_size_when_asked(tree):
    with os.scandir(tree / "many") as entries:
        entry = next(entry for entry in entries if entry.name == "12")
        assert entry.stat().st_size == 2
    assert (tree / "many" / "12").read_text() == "12"
    assert run("cat", tree / "many" / "123456").stdout == "123456"


def test_read_ahead_is_raised_where_it_may_be(tree):
    device = tree.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    may = os.access(path, os.W_OK) and not os.statvfs(path).f_flag & os.ST_RDONLY
    assert int(path.read_text()) == (1024 if may else 128)


def test_workers_share_the_work_of_one_direct_reader(mount):
    tree = mount.fake("workers=2")
    workers = mount.processes(tree)[1:]
    run("dd", f"if={tree / 'zero'}", "of=/dev/null", "bs=8M", "count=200", "iflag=direct")
    assert len(workers) == 2
    assert all(cpu_seconds([pid]) > 0 for pid in workers)


def test_many_readers_at_once_read_right(tree):
    script = (
        "import os,sys,random\n"
        "random.seed(int(sys.argv[2]))\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "for _ in range(300):\n"
        f"    pfn = random.randrange({SIZE // PAGE})\n"
        "    assert os.pread(fd, 100, pfn * 4096) == bytes((pfn & 255,)) * 100\n"
    )
    readers = [subprocess.Popen([sys.executable, "-c", script, str(tree / "good"), str(i)]) for i in range(6)]
    assert [reader.wait(60) for reader in readers] == [0] * 6


def wake_ups(pids: list[int]) -> int:
    """How often processes have gone to sleep: an idle one that wakes up to look around does so again and again."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", text, re.M)[1]) for text in texts)


def test_idle_mount_sleeps(mount, tree):
    run("dd", f"if={tree / 'zero'}", "of=/dev/null", "bs=4096", "count=200", "iflag=direct")
    pids = mount.processes(tree)
    wait_until(lambda: all(" S " in Path(f"/proc/{pid}/stat").read_text() for pid in pids), "all are done")
    before = wake_ups(pids)
    time.sleep(0.5)
    assert wake_ups(pids) - before <= 5 * len(pids)
