"""Stock gdb with /gdbinit: on a folder with the files it looks at, so that no mount is needed."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import Segment

from dumpfs.vfs.context import Dump

pytestmark = pytest.mark.tool

CRASH, KASLR_CRASH = "tiny/mkd-raw-d31.kdump", "tiny/kdump-kaslr.vmcore"
FILES = [
    "gdbinit",
    "vmcore-tasks",
    "vmcoreinfo",
    "vmlinux",
    "gdb/extra.symbols",
    "gdb/modules.json",
    "dmesg",
    "bitmaps/stored",
]
PANIC = [
    "__crash_kexec",
    "panic",
    "sysrq_handle_crash",
    "__handle_sysrq",
    "write_sysrq_trigger",
    "proc_reg_write",
    "vfs_write",
    "ksys_write",
    "do_syscall_64",
]


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory) -> Callable[[str], Path]:
    """Writes what gdb needs of a dump into a folder."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            target = made[name] = tmp_path_factory.mktemp("gdb")
            with Dump.open([str(corpus(name))]) as dump:
                for path in FILES:
                    file = target / path
                    file.parent.mkdir(exist_ok=True)
                    node = dump.tree.lookup_path(path)
                    with file.open("wb") as out:
                        for offset in range(0, node.size(), 1 << 20):
                            out.write(node.read(offset, 1 << 20))
        return made[name]

    return write


def gdb(*words: object, cwd: Path | None = None) -> str:
    """What it says on both of its outputs."""
    tool = shutil.which("gdb")
    if tool is None:
        pytest.skip("needs gdb")
    done = subprocess.run(
        [tool, "-nx", "-batch", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        cwd=cwd,
    )
    return done.stdout


def commands(*lines: str) -> list[str]:
    return [word for line in lines for word in ("-ex", line)]


def functions(text: str) -> list[str]:
    """Of a backtrace, inlined ones left out."""
    found: list[str] = []
    for number, address, name in re.findall(r"^#(\d+) +(0x[0-9a-f]+ in )?(<[^>]+>|\S+) \(", text, re.MULTILINE):
        if address or number == "0":
            found.append(name)
        else:
            found[-1] = name
    return found


def threads(text: str) -> dict[str, list[str]]:
    parts = re.split(r'^Thread \d+ \(LWP \d+ "(.*)"\):$', text, flags=re.MULTILINE)
    return {name: functions(part) for name, part in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", [CRASH, KASLR_CRASH])
def test_panic_stack_is_whole_by_the_dumps_own_symbols(name, folder):
    found = functions(gdb("-x", folder(name) / "gdbinit", *commands("bt")))
    assert found == [*PANIC, "entry_SYSCALL_64_after_hwframe"]


@pytest.mark.parametrize("name", [CRASH, KASLR_CRASH])
def test_panic_stack_is_whole_by_a_vmlinux(name, folder, corpus):
    found = functions(gdb("-x", folder(name) / "gdbinit", *commands("bt"), corpus("tiny/vmlinux")))
    assert found == [*PANIC, "entry_SYSCALL_64"]


def values(said: str) -> list[int]:
    """Of `p/x`, in the order of the commands."""
    return [int(value, 16) for value in re.findall(r"^\$\d+ = (0x[0-9a-f]+|0)$", said, re.MULTILINE)]


def linked(vmlinux: Path) -> dict[str, int]:
    """Symbols of a vmlinux as it was linked."""
    with vmlinux.open("rb") as file:
        return {s.name: s["st_value"] for s in ELFFile(file).get_section_by_name(".symtab").iter_symbols()}


@pytest.mark.parametrize("given", ["program", "symbol file", "added", "moved", "moved elsewhere", "own symbols"])
def test_symbols_are_where_the_kernel_ran(given, folder, corpus):
    # KASLR moves code and data, but neither per-CPU variables, which are offsets, nor constants.
    here, vmlinux = folder(KASLR_CRASH), corpus("tiny/vmlinux")
    stays, moves = ["current_task", "__per_cpu_end"], ["_stext", "init_task", "__init_begin", "__bss_start", "_end"]
    if given != "own symbols":
        stays += ["phys_startup_64", "L4_PAGE_OFFSET"]
        moves.append("init_per_cpu__gdt_page")
    symbols = linked(vmlinux)
    offset = int(re.search(r"KERNELOFFSET=(\w+)", (here / "vmcoreinfo").read_text())[1], 16)
    assert offset
    before = {
        "program": [vmlinux],
        "symbol file": commands(f"symbol-file {vmlinux}"),
        "added": commands(f"add-symbol-file {vmlinux} 0xffffffff81000000"),
        "moved": commands(f"symbol-file -o {offset} {vmlinux}"),
        "moved elsewhere": commands(f"symbol-file -o 4096 {vmlinux}"),
        "own symbols": [],
    }[given]
    asked = [f"p/x (unsigned long)&{name}" for name in stays + moves]
    again = [] if given == "own symbols" else ["-x", here / "gdbinit"]
    said = gdb(*before, "-x", here / "gdbinit", *again, *commands(*asked, "python print(len(gdb.objfiles()))"))
    assert values(said) == [symbols[name] for name in stays] + [symbols[name] + offset for name in moves]
    assert said.splitlines()[-1] == ("1" if given == "own symbols" else "3")  # the vmlinux, constants, what it lacks


@pytest.mark.parametrize("name", [CRASH, KASLR_CRASH])
def test_each_processors_current_task_is_found_as_the_kernels_scripts_find_it(name, folder, corpus):
    # $lx_current(N): a per-CPU variable's address and the processor's offset.
    task = "(*(struct task_struct **)((unsigned long)&current_task + __per_cpu_offset[{cpu}]))"
    with Dump.open([str(corpus(name))]) as dump:
        found = [dump.tree.lookup_path(f"cpus/{cpu}/task") for cpu in range(2)]
        expected = [node.read(0, node.size()).decode().split() for node in found]
    asked = [f'printf "%d (%s)\\n", {at}->pid, {at}->comm' for at in (task.format(cpu=cpu) for cpu in range(2))]
    said = gdb("-x", folder(name) / "gdbinit", *commands(*asked), corpus("tiny/vmlinux"))
    assert [line.split() for line in said.strip().splitlines()[-2:]] == expected


def test_files_that_gdb_has_beside_the_vmlinux_stay(folder, corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copyfile(folder(KASLR_CRASH) / "gdb/extra.symbols", other)
    before = commands(f"add-symbol-file {other}")
    told = commands("python print(*(o.filename for o in gdb.objfiles()), sep='\\n')")
    said = gdb(corpus("tiny/vmlinux"), *before, "-x", folder(KASLR_CRASH) / "gdbinit", *told)
    assert {str(other), str(corpus("tiny/vmlinux"))} < set(said.splitlines())


def test_a_vmlinux_without_section_headers_is_told_of(folder, corpus, tmp_path):
    bare = tmp_path / "vmlinux"
    data = bytearray(corpus("tiny/vmlinux").read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[58:64] = bytes(6)
    bare.write_bytes(data)
    said = gdb("-x", folder(KASLR_CRASH) / "gdbinit", *commands("bt"), bare)
    assert "Traceback" not in said
    assert "no symbols by which to tell where the kernel ran" in said


def test_every_stack_ends_at_an_entry_of_the_kernel(folder):
    stacks = threads(gdb("-x", folder(CRASH) / "gdbinit", *commands("thread apply all bt")))
    assert {"init", "kthreadd", "swapper/0"} <= stacks.keys()
    ends = {stack[-1] for stack in stacks.values()}
    assert ends <= {"ret_from_fork", "entry_SYSCALL_64_after_hwframe", "secondary_startup_64_no_verify"}


def test_nothing_is_unknown(folder, corpus):
    for file in ([], [corpus("tiny/vmlinux")]):
        said = gdb("-x", folder(CRASH) / "gdbinit", *commands("thread apply all bt"), *file)
        assert "??" not in said
        assert "Backtrace stopped" not in said
        assert "warning" not in said


def test_threads_have_the_names_of_tasks(folder):
    said = gdb("-x", folder(CRASH) / "gdbinit", *commands("info threads"))
    assert re.search(r'LWP 2 "kthreadd" ', said)
    assert re.search(r'^\* \d+ +LWP 1 "init" ', said, re.MULTILINE)


def test_names_of_the_dump_are_fit_for_a_terminal(folder, tmp_path):
    # In the facts, a string of JSON in a string of Python.
    text = (folder(CRASH) / "gdbinit").read_text()
    assert '"kthreadd"' in text
    hostile = tmp_path / "gdbinit"
    hostile.write_text(text.replace('"kthreadd"', r'"\\u001b[31m\\n0xdead\\u001b]0;x\\u0007"'))
    (tmp_path / "gdb").mkdir()
    rows = [["lo\x1b[2Jop", 0xFFFFFFFFC0000000, 4096, "", [[".text\npython print(6*7)", 0x1000], [".data\n", 0x2000]]]]
    (tmp_path / "gdb/modules.json").write_text(json.dumps(rows))
    (tmp_path / "dmesg").write_text("[    0.1] a\tb \x1b[31mred\x07\n")
    for name in ("vmcoreinfo", "vmlinux", "vmcore-tasks"):
        (tmp_path / name).symlink_to(folder(CRASH) / name)
    asked = ["info threads", "dumpfs tasks", "thread 3", "bt 1", "dumpfs modules", "dumpfs log"]
    said = gdb("-x", hostile, *commands(*asked))
    assert "\x1b" not in said
    assert "\x07" not in said
    assert said.count(r"\x1b[31m\n0xdead\x1b]0;x\x07") >= 2
    assert r"[    0.1] a	b \x1b[31mred\x07" in said


def test_sections_of_modules_whose_names_are_none_are_not_given_to_gdb(folder, tmp_path):
    (tmp_path / "lib").mkdir()
    shutil.copyfile(folder(CRASH) / "gdb/extra.symbols", tmp_path / "lib/loop.ko")
    rows = [["loop", 0xFFFFFFFFC0000000, 4096, "", [[".data\n", 0x2000], [".data -readnow", 1], [".bss", 0x3000]]]]
    (tmp_path / "gdb").mkdir()
    (tmp_path / "gdb/modules.json").write_text(json.dumps(rows))
    for name in ("gdbinit", "vmcoreinfo", "vmlinux", "vmcore-tasks"):
        (tmp_path / name).symlink_to(folder(CRASH) / name)
    told = "python quietly = lambda *words: gdb.write(repr(words) + chr(10))"
    link = commands(f'set $dumpfs = "{tmp_path}"')
    said = gdb(*link, "-x", tmp_path / "gdbinit", *commands(told, f"dumpfs modules {tmp_path}/lib"))
    assert "'-s .bss 0x3000')" in said
    assert ".data" not in said


def test_gdbinit_is_found_by_a_relative_name_and_by_source(folder):
    assert "#0" in gdb("-x", "gdbinit", *commands("bt 1"), cwd=folder(CRASH))
    assert "#0" in gdb(*commands("source gdbinit", "source gdbinit", "bt 1"), cwd=folder(CRASH))


def test_a_copy_of_gdbinit_is_told_where_the_dump_is(folder, tmp_path):
    copy = tmp_path / "gdbinit"
    shutil.copyfile(folder(CRASH) / "gdbinit", copy)
    said = gdb("-x", copy)
    assert 'set $dumpfs = "/mnt"' in said
    assert "Traceback" not in said
    assert "#0" in gdb(*commands(f'set $dumpfs = "{folder(CRASH)}"'), "-x", copy, *commands("bt 1"))


def test_a_folder_with_a_space_in_its_name_will_do(folder, corpus, tmp_path):
    link = tmp_path / "a dump"
    link.symlink_to(folder(CRASH))
    told = commands(f'set $dumpfs = "{link}"')
    assert "#0" in gdb(*told, "-x", link / "gdbinit", *commands("bt 1"))
    assert "#0" in gdb(*told, "-x", link / "gdbinit", *commands("bt 1"), corpus("tiny/vmlinux"))


def test_another_kernels_vmlinux_is_refused(folder, corpus, tmp_path):
    other = tmp_path / "vmlinux"
    data = corpus("tiny/vmlinux").read_bytes()
    build_id = bytes.fromhex(re.search(r"BUILD-ID=([0-9a-f]+)", (folder(CRASH) / "vmcoreinfo").read_text())[1])
    assert build_id in data
    other.write_bytes(data.replace(build_id, bytes(20)))
    said = gdb("-x", folder(CRASH) / "gdbinit", *commands("bt"), other)
    assert f"{other} is not this kernel's: its build-id is {'0' * 40}" in said
    assert "No stack." in said
    assert "Traceback" not in said


def test_tasks_are_listed_by_name(folder):
    said = gdb("-x", folder(CRASH) / "gdbinit", *commands("dumpfs tasks kswap*", "dumpfs tasks nosuch"))
    lines = said.strip().splitlines()
    assert lines[0].split() == ["THREAD", "PID", "CPU", "STATE", "NAME"]
    assert lines[1].split()[-2:] == ["S", "kswapd0"]
    assert lines[-1] == "no such task"


def test_the_log_is_printed(folder):
    said = gdb("-x", folder(CRASH) / "gdbinit", *commands("dumpfs log Kernel panic"))
    assert re.fullmatch(r"\[ +[\d.]+\] Kernel panic - not syncing: sysrq triggered crash\n", said)


def test_pages_are_told_apart(folder):
    said = gdb(
        "-x",
        folder(CRASH) / "gdbinit",
        *commands("dumpfs page &init_task", "dumpfs page lo_ioctl", "dumpfs page 0", "dumpfs page"),
    )
    lines = said.strip().splitlines()
    assert re.fullmatch(r"0xffffffff8\w+: physical 0x\w+, page 0x\w+: stored", lines[0])
    assert re.fullmatch(r"0xffffffffc\w+: physical 0x\w+, page 0x\w+: stored", lines[1])
    assert lines[2] == "0x0: nothing is mapped there, or its page tables are not in the dump"
    assert lines[3] == "dumpfs page: an address is needed"


def test_modules_are_listed_and_looked_for(folder, tmp_path):
    said = gdb("-x", folder(CRASH) / "gdbinit", *commands("dumpfs modules", f"dumpfs modules {tmp_path}"))
    assert said.splitlines() == ["0xffffffffc0000000    32768  loop", "0xffffffffc0000000    32768  loop  no file"]


def test_functions_of_modules_have_names_beside_a_vmlinux(folder, corpus):
    said = gdb("-x", folder(CRASH) / "gdbinit", corpus("tiny/vmlinux"), *commands("info symbol lo_ioctl"))
    assert said.startswith("lo_ioctl in section [loop] of ")


def test_another_core_can_be_chosen(folder, tmp_path):
    core = tmp_path / "vmcore-mine"
    core.symlink_to(folder(CRASH) / "vmcore-tasks")
    said = gdb(*commands(f'set $dumpfs_core = "{core}"'), "-x", folder(CRASH) / "gdbinit", *commands("dumpfs core"))
    assert said == f"core: {core}\n"


def test_own_symbol_file_alone_will_do(folder):
    here = folder(CRASH)
    said = gdb(here / "vmlinux", here / "vmcore-tasks", *commands("thread find 1", "bt", "thread apply all bt"))
    assert "??" not in said
    assert "entry_SYSCALL_64_after_hwframe" in said


def first_registers(file: BinaryIO) -> tuple[list[Segment], int, list[int]]:
    """Of a core: its segments, and where the registers of the first thread are and what they hold."""
    segments = list(ELFFile(file).iter_segments())
    notes = segments[0]["p_offset"]
    file.seek(notes)
    at = notes + file.read(segments[0]["p_filesz"]).index(b"CORE\0") + 8 + 112
    file.seek(at)
    return segments, at, list(struct.unpack("<27Q", file.read(8 * 27)))


def called_null(source: Path, target: Path) -> None:
    """The panicking processor's registers as after a call of NULL."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        segments, at, registers = first_registers(file)
        stack = registers[19] - 8
        segment = next(s for s in segments[1:] if s["p_vaddr"] <= stack < s["p_vaddr"] + s["p_filesz"])
        file.seek(segment["p_offset"] + stack - segment["p_vaddr"])
        file.write(struct.pack("<Q", registers[16]))
        registers[16], registers[19] = 0, stack
        file.seek(at)
        file.write(struct.pack("<27Q", *registers))


def test_null_is_no_per_cpu_variable(corpus, folder, tmp_path):
    called_null(folder(KASLR_CRASH) / "vmcore-tasks", tmp_path / "core")
    start = commands(f'set $dumpfs_core = "{tmp_path / "core"}"')
    asked = commands("bt", "p (struct task_struct *)0", "p (char *)0", "p init_task.comm", "p &init_task")
    said = gdb(*start, "-x", folder(KASLR_CRASH) / "gdbinit", *asked, corpus("tiny/vmlinux"))
    assert said.startswith("#0  0x0000000000000000 in ?? ()\n")
    assert functions(said)[1:] == [*PANIC, "entry_SYSCALL_64"]
    assert "percpu" not in said
    assert said.splitlines()[-4:-2] == ["$1 = 0x0", "$2 = 0x0"]
    assert said.splitlines()[-2].startswith('$3 = "swapper')
    assert said.endswith(" <init_task>\n")


def interrupted_core(dump: Dump, source: Path, target: Path, *, user: bool) -> None:
    """A core whose first thread is in a page fault's entry: what it did before lies in a struct pt_regs below it."""
    inspector = dump.inspection.inspector
    entry, called = (inspector.symbol(name) for name in ("asm_exc_page_fault", "exc_page_fault"))
    code = inspector.space.read(entry, 48)
    distance = called - entry - 5
    (call,) = (
        at for at in range(43) if code[at : at + 5] == b"\xe8" + (distance - at).to_bytes(4, "little", signed=True)
    )
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        segments, registers_at, registers = first_registers(file)
        rip, rsp = registers[16], registers[19]
        saved = [*registers[:16], rip, 0x10, 0x2, rsp, 0x18]
        if user:
            saved[16:] = [0x401234, 0x33, 0x2, 0x7FFF0000, 0x2B]
        here = rsp - 1024
        segment = next(s for s in segments[1:] if s["p_vaddr"] <= here < s["p_vaddr"] + s["p_filesz"])
        file.seek(segment["p_offset"] + here - segment["p_vaddr"])
        file.write(struct.pack("<21Q", *saved))
        registers[16], registers[19] = entry + call + 5, here
        file.seek(registers_at)
        file.write(struct.pack("<27Q", *registers))


@pytest.fixture(params=[False, True], ids=["own symbols", "vmlinux"])
def symbols(request, corpus) -> list[Path]:
    return [corpus("tiny/vmlinux")] if request.param else []


def test_a_stack_goes_on_where_an_exception_interrupted_the_kernel(corpus, folder, tmp_path, symbols):
    core = tmp_path / "core"
    with Dump.open([str(corpus(KASLR_CRASH))]) as dump:
        interrupted_core(dump, folder(KASLR_CRASH) / "vmcore-tasks", core, user=False)
    start = commands(f'set $dumpfs_core = "{core}"')
    said = gdb(*start, "-x", folder(KASLR_CRASH) / "gdbinit", *commands("bt"), *symbols)
    names = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", said, re.MULTILINE)
    assert names[0] == "asm_exc_page_fault"
    assert [name for name in names if name in PANIC] == PANIC


def test_a_stack_ends_at_an_exception_of_a_user_program(corpus, folder, tmp_path, symbols):
    core = tmp_path / "core"
    with Dump.open([str(corpus(KASLR_CRASH))]) as dump:
        interrupted_core(dump, folder(KASLR_CRASH) / "vmcore-tasks", core, user=True)
    start = commands(f'set $dumpfs_core = "{core}"')
    said = gdb(*start, "-x", folder(KASLR_CRASH) / "gdbinit", *commands("bt"), *symbols)
    assert functions(said) == ["asm_exc_page_fault"]
    assert "Backtrace stopped" not in said
