"""What other tools make of our /vmcore, compared with what they make of the original."""

from __future__ import annotations

import filecmp
import io
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from dumpfs.vfs.context import Dump

pytestmark = pytest.mark.tool

QEMU = ["tiny/qemu-kaslr.kdump-zlib", "tiny/qemu-kaslr-novmci.kdump-zlib", "tiny/qemu-kaslr.elf"]
KASLR_CRASH = "tiny/kdump-kaslr.vmcore"


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"needs {tool}")
    return found


@pytest.fixture
def core(corpus, tmp_path):
    """Writes the /vmcore of a corpus dump to a file."""

    def write(name: str, view: str = "vmcore") -> Path:
        target = tmp_path / view
        with Dump.open([str(corpus(name))]) as dump, target.open("wb") as out:
            node = dump.tree.lookup_path(view)
            for offset in range(0, node.size(), 1 << 20):
                out.write(node.read(offset, 1 << 20))
        return target

    return write


def run(*command: object, timeout: int = 120, **more: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("flags", [["-l", "-d", "31"], ["-c", "-d", "0"]], ids=" ".join)
def test_makedumpfile_writes_what_it_writes_from_the_original(flags, corpus, core, tmp_path):
    tool = need("makedumpfile")
    run(tool, *flags, core(KASLR_CRASH), tmp_path / "ours")
    run(tool, *flags, corpus(KASLR_CRASH), tmp_path / "theirs")
    assert filecmp.cmp(tmp_path / "ours", tmp_path / "theirs", shallow=False)


def elf_content(path: Path) -> list[tuple[int, int, int, int, bytes]]:
    """Type, addresses, size and bytes of every segment but the empty ones."""
    with path.open("rb") as stream:
        segments = [s for s in ELFFile(stream).iter_segments() if s["p_memsz"] or s["p_filesz"]]
        return [(s["p_type"], s["p_vaddr"], s["p_paddr"], s["p_memsz"], s.data()) for s in segments]


def test_makedumpfile_keeps_the_same_memory_in_an_elf(corpus, core, tmp_path):
    # It writes an empty program header for each of our virtual ranges; there is no form of them that it leaves out.
    # The last byte of RAM, which our last program header has once more for its own sake, it copies once more.
    tool = need("makedumpfile")
    run(tool, "-E", "-d", "31", core(KASLR_CRASH), tmp_path / "ours")
    run(tool, "-E", "-d", "31", corpus(KASLR_CRASH), tmp_path / "theirs")
    *ours, last = elf_content(tmp_path / "ours")
    assert ours == elf_content(tmp_path / "theirs")
    _, vaddr, paddr, memsz, _ = ours[-1]
    assert (last[1] + 1, last[2] + 1, last[3], len(last[4])) == (vaddr + memsz, paddr + memsz, 1, 1)


@pytest.mark.parametrize(
    ("name", "log"),
    [
        (KASLR_CRASH, "tiny/kdump-kaslr.log.expected"),
        ("tiny/qemu-kaslr.kdump-zlib", "tiny/qemu-kaslr.log.expected"),
        ("tiny/qemu-kaslr.elf", "tiny/qemu-kaslr.log.expected"),
        ("deb61/raw-d31.kdump", "deb61/log.expected"),
    ],
)
def test_makedumpfile_reads_the_log(name, log, corpus, core, tmp_path):
    run(need("makedumpfile"), "--dump-dmesg", core(name), tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == corpus(log).read_bytes()


def test_vmcore_dmesg_prints_the_log(data, tmp_path):
    # It indents the further lines of a record another way.
    tool = need("vmcore-dmesg")
    target = tmp_path / "vmcore"
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        node = dump.tree.lookup_path("vmcore")
        target.write_bytes(node.read(0, node.size()))
    words = [line.split() for line in data("mkd.log.expected").read_text().splitlines() if line.strip()]
    assert [line.split() for line in run(tool, target).splitlines() if line.strip()] == words


def crash(vmlinux: Path, dump: Path, folder: Path) -> list[str]:
    """Output of crash without what names the file."""
    (folder / "commands").write_text("sys\nlog\nbt -a\nquit\n")
    out = run(need("crash"), "-s", "-i", folder / "commands", vmlinux, dump, cwd=folder)
    return [line for line in out.splitlines() if "DUMPFILE:" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", [KASLR_CRASH, *QEMU])
def test_crash_prints_what_it_prints_from_the_original(name, corpus, core, tmp_path):
    vmlinux = corpus("tiny/vmlinux")
    ours = crash(vmlinux, core(name), tmp_path)
    assert any("Linux version 6.1.192-dumpfs-tiny" in line for line in ours)
    assert any(line.startswith("PID: ") for line in ours)
    assert ours == crash(vmlinux, corpus(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [KASLR_CRASH, *QEMU])
def test_drgn_reads_structures(name, corpus, core):
    drgn = pytest.importorskip("drgn", reason="needs drgn")
    linux = pytest.importorskip("drgn.helpers.linux")
    program = drgn.Program()
    program.set_core_dump(core(name))
    program.load_debug_info([str(corpus("tiny/vmlinux"))])
    assert program["init_uts_ns"].name.release.string_() == b"6.1.192-dumpfs-tiny"
    assert len(list(linux.for_each_task(program))) > 20
    if name == KASLR_CRASH:
        assert "sysrq_handle_crash" in str(program.crashed_thread().stack_trace())


@pytest.mark.slow
def test_gdb_reads_memory_and_registers(corpus, core):
    elf = core("tiny/qemu-kaslr.kdump-zlib")
    with elf.open("rb") as stream:
        text = next(s for s in ELFFile(io.BytesIO(stream.read(1 << 16))).iter_segments() if s["p_type"] == "PT_LOAD")
    offset = text["p_vaddr"] - 0xFFFFFFFF81000000
    commands = [f"symbol-file -o {offset:#x} {corpus('tiny/vmlinux')}", f"target core {elf}"]
    commands += ["x/s linux_banner", "info threads", "p $rip"]
    out = run(need("gdb"), "-batch", "-nx", *(word for c in commands for word in ("-ex", c)))
    assert '<linux_banner>:\t"Linux version 6.1.192-dumpfs-tiny' in out
    assert "LWP 1 " in out
    assert "LWP 2 " in out


def gdb(corpus, elf: Path, *commands: str) -> str:
    with elf.open("rb") as stream:
        text = next(s for s in ELFFile(io.BytesIO(stream.read(1 << 16))).iter_segments() if s["p_type"] == "PT_LOAD")
    offset = text["p_vaddr"] - 0xFFFFFFFF81000000
    commands = (f"symbol-file -o {offset:#x} {corpus('tiny/vmlinux')}", f"target core {elf}", *commands)
    return run(need("gdb"), "-batch", "-nx", *(word for c in commands for word in ("-ex", c)))


@pytest.mark.slow
def test_gdb_prints_the_whole_stack_of_the_panic(corpus, core):
    out = gdb(corpus, core(KASLR_CRASH), "thread apply all bt")
    stack = next(part for part in out.split("Thread ") if "sysrq_handle_crash" in part)
    names = ["__crash_kexec", "panic", "sysrq_handle_crash", "write_sysrq_trigger", "vfs_write", "entry_SYSCALL_64"]
    places = [stack.index(f"{name} (") for name in names]
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize("name", [KASLR_CRASH, *QEMU])
def test_gdb_unwinds_every_task(name, corpus, core):
    elf = core(name, "vmcore-tasks")
    with Dump.open([str(corpus(name))]) as dump:
        tasks = dump.inspection.inspector.tasks
    out = gdb(corpus, elf, "thread apply all bt")
    stacks = {int(part.split("LWP ")[1].split(")")[0]): part for part in out.split("\nThread ")[1:]}
    assert len(stacks) == len(tasks)
    assert {t.pid for t in tasks if t.pid} <= set(stacks)
    for task in tasks:
        if task.pid and not task.running:
            assert "in ret_from_fork" in stacks[task.pid] or "in entry_SYSCALL_64" in stacks[task.pid], task.comm


@pytest.mark.slow
def test_crash_opens_the_kernels_own_memory(corpus, core, tmp_path):
    vmlinux = corpus("tiny/vmlinux")
    ours = crash(vmlinux, core(KASLR_CRASH, "vmcore-kern"), tmp_path)
    assert ours == crash(vmlinux, corpus(KASLR_CRASH), tmp_path)


def test_the_kernels_own_memory_holds_no_secrets_and_no_files(corpus, core):
    kern = core(KASLR_CRASH, "vmcore-kern").read_bytes()
    whole = corpus(KASLR_CRASH).read_bytes()
    for marker in (b"USERSECRET-0123456789", b"dumpfs-corpus page cache"):
        assert marker in whole
        assert marker not in kern
