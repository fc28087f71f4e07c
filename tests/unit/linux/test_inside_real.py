"""Symbols, types, modules, tasks and stacks of real dumps, against what their makers wrote down."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dumpfs.errors import ExcludedPageError, ViewError
from dumpfs.formats import open_image
from dumpfs.linux import processors, procfs
from dumpfs.linux.debugfile import DebugFile
from dumpfs.linux.dwarf import DwarfTypes
from dumpfs.linux.frozen import freeze, thaw
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.kallsyms import render_kallsyms
from dumpfs.linux.kallsyms_scan import find_kallsyms
from dumpfs.linux.kernel import find_kernel
from dumpfs.linux.modules import module_symbols, render_modules
from dumpfs.linux.types import Types
from tests.work import bounded_work


@functools.cache
def open_inspector(path: Path) -> Inspector:
    return Inspector(find_kernel(open_image([str(path)]), deep=True))


@pytest.fixture
def sample(data):
    """The committed dump: level 31, no KASLR."""
    return open_inspector(data("mkd-raw-d31.kdump"))


@pytest.fixture
def tiny(corpus):
    """A whole /proc/vmcore with KASLR."""
    return open_inspector(corpus("tiny/kdump-kaslr.vmcore"))


@pytest.fixture
def deb61(corpus):
    """A distribution's kernel: level 31, KASLR, 5-level page tables."""
    return open_inspector(corpus("deb61/raw-d31.kdump"))


def check_system_map(inspector: Inspector, path: Path) -> None:
    shift = inspector.kernel.kaslr_offset
    linked: dict[str, set[tuple[int, str]]] = {}
    for line in path.read_text().splitlines():
        address, kind, name = line.split()
        linked.setdefault(name, set()).add((int(address, 16), kind))
    names = set()
    for address, kind, name in inspector.kallsyms:
        names.add(name)
        # Per-CPU symbols are absolute in the kernel's table and of their section's type in System.map.
        assert (address - shift, kind) in linked[name] or (kind == "A" and any(address == a for a, _ in linked[name]))
    assert len(linked.keys() - names) < 20, "the kernel leaves only a few linker's marks out"


def test_symbols_are_those_of_system_map(sample, corpus):
    check_system_map(sample, corpus("tiny/truth/System.map"))


def test_symbols_moved_by_kaslr_are_those_of_system_map(tiny, corpus):
    check_system_map(tiny, corpus("tiny/truth/System.map"))
    lines = set(render_kallsyms(tiny.kallsyms, 8).splitlines())
    assert lines >= set(corpus("tiny/truth/kdump-kaslr/kallsyms.txt").read_text().splitlines())


def test_symbols_are_also_found_by_their_looks(sample):
    found = find_kallsyms(sample.space, sample.image_ranges, None)
    assert list(found) == list(sample.kallsyms)


@pytest.mark.parametrize("name", ["foreign/arm64/arm64.kdump-zlib", "foreign/s390x/s390x.kdump-zlib"])
def test_symbols_of_other_architectures(corpus, name):
    inspector = open_inspector(corpus(name))
    symbols = inspector.kallsyms
    assert symbols.address("_stext") == inspector.kernel.vmcoreinfo.symbol("_stext")
    assert list(find_kallsyms(inspector.space, inspector.image_ranges, None)) == list(symbols)


def test_symbols_and_tasks_without_vmcoreinfo(corpus):
    inspector = open_inspector(corpus("tiny/qemu-kaslr-novmci.kdump-zlib"))
    assert "init" in {task.comm for task in inspector.tasks}


def test_parsing_calls_little_for_each_symbol_and_type(deb61):
    inspector = Inspector(deb61.kernel)
    with bounded_work(300_000):  # measured: at most 89,000
        assert len(inspector.kallsyms) == 87347
    with bounded_work(300_000):  # measured: at most 98,000
        assert len(inspector.types.info) == 95247


def test_tasks_are_those_that_drgn_found(deb61, corpus):
    truth = json.loads(corpus("deb61/truth/drgn.jsonl").read_text().splitlines()[0])
    found = [[t.pid, t.tgid, t.ppid, t.comm, hex(t.vaddr)] for t in deb61.tasks if t.pid]
    assert found == [row[:5] for row in truth["tasks"]]
    assert [t.comm for t in deb61.tasks if not t.pid] == ["swapper/0", "swapper/1"]
    assert {t.cpu: t.comm for t in deb61.tasks if t.running}[truth["crashing_cpu"]] == "init"


def test_tasks_are_those_that_ps_saw(tiny, corpus):
    lines = corpus("tiny/truth/kdump-kaslr/ps.txt").read_text().splitlines()[1:]
    seen = {int(line.split()[0]) for line in lines if "ps" not in line.split()[2:]}
    assert seen <= {task.pid for task in tiny.tasks} | {max(seen)}


def test_modules_are_those_that_drgn_found(deb61, corpus):
    truth = json.loads(corpus("deb61/truth/drgn.jsonl").read_text().splitlines()[0])
    assert [[m.name, hex(m.base), m.ranges[0][1]] for m in deb61.modules] == truth["modules"]
    assert not deb61.problems


def test_modules_are_those_of_proc(tiny, corpus):
    assert render_modules(tiny.modules, 8) == corpus("tiny/truth/kdump-kaslr/modules.txt").read_text()
    symbols = module_symbols(tiny.space, tiny.types, tiny.modules[0])
    assert all(tiny.modules[0].covers(address) for address, _, _ in symbols)


def test_configuration_is_that_of_the_build(tiny, corpus):
    assert tiny.read_config() == corpus("tiny/truth/config").read_bytes()


def test_kernel_without_configuration_says_so(deb61):
    with pytest.raises(ViewError, match="CONFIG_IKCONFIG"):
        deb61.read_config()


LAST = re.compile(r"ret_from_fork|entry_\w+|secondary_startup_64\w*|asm_\w+")


def test_every_stack_ends_where_the_kernel_is_entered(sample):
    for task in sample.tasks:
        stack = sample.stack(task)
        assert stack.unwinder == "ORC"
        assert not stack.end
        symbol = sample.code.lookup(stack.frames[-1].lookup_pc)
        assert LAST.fullmatch(symbol.name), task


def test_stack_of_the_panic_is_whole(sample, corpus):
    names = [
        re.sub(r"^.*\] (\S+)\+.*$", r"\1", line)
        for line in procfs.render_stack(sample, sample.need_task(1)).decode().splitlines()[:-1]
    ]
    assert names == [
        "__crash_kexec", "panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "proc_reg_write",
        "vfs_write", "ksys_write", "do_syscall_64", "entry_SYSCALL_64_after_hwframe",
    ]  # fmt: skip


def test_stack_leaves_a_function_that_has_no_tables(deb61):
    stack = deb61.stack(deb61.need_task(1))
    assert [deb61.code.lookup(f.lookup_pc).name for f in stack.frames][:3] == [
        "__crash_kexec", "panic", "sysrq_handle_crash",
    ]  # fmt: skip
    assert not stack.end


@pytest.mark.tool
def test_stacks_are_those_of_drgn_frame_by_frame(tiny, corpus):
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(corpus("tiny/kdump-kaslr.vmcore")))
    program.load_debug_info([str(corpus("tiny/vmlinux"))])
    same = 0
    for task in tiny.tasks:
        trace = program.stack_trace(drgn.Object(program, "struct task_struct *", value=task.vaddr))
        theirs = [frame.pc for frame in trace if not frame.is_inline and frame.pc >> 63]
        same += theirs == [frame.pc for frame in tiny.stack(task).frames]
    assert same >= 0.95 * len(tiny.tasks)


def test_memory_areas_are_those_of_the_program(tiny):
    lines = procfs.render_maps(tiny, tiny.need_task(1)).decode().splitlines()
    assert lines[0] == "00400000-00401000 r--p 00000000 00:02 6                                  /bin/busybox"
    assert [line.split()[-1] for line in lines[-4:]] == ["[heap]", "[stack]", "[vvar]", "[vdso]"]


def test_command_line_of_a_process_is_read_where_its_pages_are(tiny, sample):
    assert procfs.read_task_cmdline(tiny, tiny.need_task(1)) == b"/bin/sh\0/init\0"
    with pytest.raises(ExcludedPageError):
        procfs.read_task_cmdline(sample, sample.need_task(1))


def test_kernel_thread_has_no_user_half(sample):
    task = sample.need_task(2)
    assert procfs.render_maps(sample, task) == procfs.read_task_cmdline(sample, task) == b""


def test_status_has_the_lines_of_proc(sample):
    lines = procfs.render_status(sample, sample.need_task(2), 1).decode().splitlines()
    assert lines[:6] == ["Name:\tkthreadd", "Umask:\t0022", "State:\tS (sleeping)", "Tgid:\t2", "Ngid:\t0", "Pid:\t2"]
    assert "CapEff:\t000001ffffffffff" in lines
    assert "Threads:\t1" in lines


def test_what_was_found_out_can_be_handed_on(sample):
    other = Inspector(sample.kernel)
    thaw(other, freeze(sample, procfs.warm_up))
    assert other.tasks == sample.tasks
    assert other.modules == sample.modules
    assert [other.stack(t) for t in other.tasks] == [sample.stack(t) for t in sample.tasks]


def test_dwarf_tells_what_btf_tells(sample, corpus):
    procfs.warm_up(sample)
    debug = DebugFile(str(corpus("tiny/vmlinux")))
    types = Types(debug._guarded(lambda _, elf: DwarfTypes(debug.path, elf)))
    for (struct, path), member in sample.types.known.items():
        if struct != "thread_union":
            assert types.find(struct, path) == member, (struct, path)


def test_vmlinux_serves_where_the_dump_has_no_tables(sample, corpus):
    inspector = Inspector(sample.kernel, DebugFile(str(corpus("tiny/vmlinux"))))
    inspector.know("kallsyms", inspector.debug_symbols)
    inspector.know("types", inspector.debug_types())
    assert [t.comm for t in inspector.tasks] == [t.comm for t in sample.tasks]
    assert [len(inspector.stack(t).frames) for t in inspector.tasks] == [
        len(sample.stack(t).frames) for t in sample.tasks
    ]


@pytest.fixture
def arm64(corpus):
    """A kernel whose table names functions only."""
    return open_inspector(corpus("foreign/arm64/arm64.kdump-zlib"))


def test_tasks_of_a_kernel_without_names_for_data(arm64, corpus):
    lines = corpus("foreign/arm64/truth/ps.txt").read_text().splitlines()[1:]
    seen = {int(line.split()[0]) for line in lines if line.split()[0].isdigit() and not line.endswith("ps")}
    assert len(seen - {task.pid for task in arm64.tasks}) <= 2, "what ran when ps did may be gone"
    assert arm64.banner.decode() == corpus("foreign/arm64/truth/version.txt").read_text()


def test_arm64_stacks_end_where_the_kernel_is_entered(arm64):
    last = re.compile(r"ret_from_fork|el[01]t_64_\w+|__primary_switched|__secondary_switched")
    for task in arm64.tasks:
        stack = arm64.stack(task)
        assert (stack.unwinder, stack.end) == ("frame pointers", "")
        assert last.fullmatch(arm64.code.lookup(stack.frames[-1].lookup_pc).name), task


def test_what_cannot_be_found_out_is_told_the_same_each_time(sample):
    inspector = Inspector(sample.kernel)
    inspector.know("types", ViewError("no types"))
    depths = set()
    for _ in range(5):
        with pytest.raises(ViewError, match="no types") as caught:
            inspector.types  # noqa: B018  # asking is the point
        depths.add(len(caught.traceback))
    assert len(depths) == 1


def with_torn_note(kernel, size):
    """`kernel` of which the note of processor 0 has `size` bytes of its descriptor, and the whole descriptor."""
    notes = list(kernel.notes)
    torn = next(number for number, note in enumerate(notes) if note.name == b"CORE" and note.type == 1)
    whole = notes[torn].desc
    notes[torn] = notes[torn]._replace(desc=whole[:size])
    return Inspector(replace(kernel, notes=tuple(notes))), whole


SIZES = pytest.mark.parametrize("size", [0, 8, 33, 100, 112, 144, 327])


@SIZES
def test_torn_note_makes_the_registers_of_its_processor_unknown(data, monkeypatch, size):
    monkeypatch.setattr(processors, "_in_memory", lambda inspector: ())
    inspector, _ = with_torn_note(open_inspector(data("mkd-raw-d31.kdump")).kernel, size)
    assert inspector.cpu_registers(0) is None
    assert f"processor 0: registers unknown: the NT_PRSTATUS note has {size} bytes" in " ".join(inspector.problems)
    with pytest.raises(ViewError, match="no registers of processor 0"):
        inspector.stack(inspector.need_running(0))
    assert inspector.cpu_registers(1) is not None
    assert len(inspector.stack(inspector.need_running(1)).frames) > 5


@SIZES
def test_torn_note_is_made_up_for_by_the_kernels_own_in_memory(data, size):
    inspector, whole = with_torn_note(open_inspector(data("mkd-raw-d31.kdump")).kernel, size)
    assert inspector.prstatus(0) == whole
    problem = f"processor 0: the NT_PRSTATUS note has {size} bytes of at least 328: the registers are those it saved"
    assert any(text.startswith(problem) for text in inspector.problems)
    assert inspector.stack(inspector.need_running(0)).frames


def test_notes_that_a_dump_lost_are_in_memory(data):
    whole = open_inspector(data("mkd-raw-d31.kdump"))
    without = Inspector(replace(whole.kernel, notes=()))
    assert [without.prstatus(cpu) for cpu in (0, 1)] == [whole.prstatus(cpu) for cpu in (0, 1)]
    assert whole.prstatus(0) is not None
    assert whole.problems == []


def test_registers_of_a_capture_kernel_are_not_those_of_the_one_that_crashed(corpus):
    """The machine was dumped by QEMU while its capture kernel was running."""
    inspector = open_inspector(corpus("twokernels/two-kernels.kdump"))
    frames = inspector.stack(inspector.need_task(1)).frames
    names = [inspector.code.lookup(frame.lookup_pc).name for frame in frames]
    assert names[:3] == ["__crash_kexec", "panic", "sysrq_handle_crash"]
    assert inspector.need_running(1).pid == 1
    text = " ".join(inspector.problems)
    assert "registers of processor 0, 1 are those that the kernel saved when it crashed" in text
    assert "a capture kernel was running: its VMCOREINFO is at physical 0x12d3a000" in text


def test_registers_of_another_kernel_are_none_where_memory_has_none(data, monkeypatch):
    kernel = open_inspector(data("mkd-raw-d31.kdump")).kernel
    own = open_inspector(data("mkd-raw-d31.kdump")).processor_notes.notes
    monkeypatch.setattr(processors, "_in_memory", lambda inspector: iter([(1, own[1])]))
    offset = next(at for name, at, _ in kernel.arch.prstatus.registers if name == "rip")
    strange = own[0][:offset] + (0xFFFFFFFFA3EE2FF0).to_bytes(8, "little") + own[0][offset + 8 :]
    notes = tuple(note._replace(desc=strange) if note.desc == own[0] else note for note in kernel.notes)
    inspector = Inspector(replace(kernel, notes=notes))
    assert inspector.prstatus(0) is None
    assert inspector.prstatus(1) == own[1]
    assert "processor 0: registers unknown: those in the dump are another kernel's" in inspector.problems
