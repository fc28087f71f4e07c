"""Bars of the kernel's memory as a whole: what peers make of /vmcore and its kin, and what finding things out costs."""

from __future__ import annotations

import contextlib
import filecmp
import json
import mmap
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from barlib import (
    VENV_BIN,
    Measured,
    Missing,
    Mounted,
    bar,
    big,
    corpus,
    made,
    mounted,
    now,
    run,
    tool,
    workdir,
)

CRASHED = "tiny/kdump-kaslr.vmcore"
NO_VMCOREINFO = "tiny/qemu-kaslr-novmci.kdump-zlib"
DEBIAN = "deb61/raw-d31.kdump"
DEBIAN_VMLINUX = Path("/usr/lib/debug/boot/vmlinux-6.1.0-56-cloud-amd64")
"""Of the package linux-image-6.1.0-56-cloud-amd64-dbg."""
SECRET = b"USERSECRET-0123456789"
CACHE_MARKERS = (b"dumpfs-corpus page cache", b"CACHEFILE-", b"PAGECACHE-WRITTEN")
BANNER = "Linux version 6.1.192-dumpfs-tiny"


def vmlinux_of(name: str) -> Path:
    """The vmlinux of a dump, or `Missing`."""
    if name.startswith("tiny/"):
        return corpus("tiny/vmlinux")
    if not DEBIAN_VMLINUX.exists():
        raise Missing(f"{DEBIAN_VMLINUX} is not installed")
    return DEBIAN_VMLINUX


def big_vmcore() -> Path | None:
    """The benchmark guest's vmcore, where there is one."""
    try:
        return big("vmcore")
    except Missing:
        return None


# -- peers on /vmcore


def segments(path: Path) -> list[tuple[str, int, int, int, bytes]]:
    """Type, addresses, memory size and content hash of an ELF's segments, empty ones left out."""
    import hashlib

    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        found = [s for s in ELFFile(stream).iter_segments() if s["p_memsz"] or s["p_filesz"]]
        return [(s["p_type"], s["p_vaddr"], s["p_paddr"], s["p_memsz"], hashlib.sha1(s.data()).digest()) for s in found]


@bar("vmcore-makedumpfile", "makedumpfile writes from /vmcore, byte for byte, the kdump it writes from the original")
def vmcore_makedumpfile() -> Measured:
    return compare_made(["-l", "-d", "31"], ["-c", "-d", "0"], ["--dump-dmesg"])


@bar(
    "vmcore-makedumpfile-elf",
    "makedumpfile -E -d 31 writes from /vmcore, byte for byte, what it does from the original",
)
def vmcore_makedumpfile_elf() -> Measured:
    return compare_made(["-E", "-d", "31"])


def compare_made(*forms: list[str]) -> Measured:
    """What makedumpfile makes of our core, compared with what it makes of the original."""
    makedumpfile = tool("makedumpfile")
    sources = [(corpus(CRASHED), "tiny")]
    if (guest := big_vmcore()) is not None:
        sources.append((guest, "guest"))
    told = []
    ok = True
    for source, name in sources:
        with mounted(source) as mount:
            for flags in forms:
                label = "".join(flags)
                theirs = made(f"peer-{name}{label}", lambda out, f=flags, s=source: [makedumpfile, *f, s, out])
                ours = workdir() / "ours"
                ours.unlink(missing_ok=True)
                done = run(makedumpfile, *flags, mount.path / "vmcore", ours)
                if done.returncode:
                    same = f"failed: {done.stderr.decode(errors='replace')[-100:]}"
                elif filecmp.cmp(ours, theirs, shallow=False):
                    same = "identical"
                elif "-E" in flags and segments(ours)[:-1] == segments(theirs) and segments(ours)[-1][3] == 1:
                    same = "same memory, but its last byte once more and an empty program header for each virtual range"
                else:
                    same = "DIFFERENT"
                ok &= same == "identical"
                told.append(f"{name} {' '.join(flags)}: {same}")
                ours.unlink(missing_ok=True)
    return Measured("; ".join(told), ok)


def crash(vmlinux: Path, dump: Path, *commands: str) -> list[str]:
    """What crash prints, without the lines that name the file."""
    script = workdir() / "crash-commands"
    script.write_text("\n".join((*commands, "quit\n")))
    done = run(tool("crash"), "-s", "-i", script, vmlinux, dump, cwd=workdir())
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return [line for line in lines if "DUMPFILE:" not in line and str(dump) not in line]


@bar("vmcore-crash", "crash prints of /vmcore what it prints of the original: sys, log, bt -a, ps, mod")
def vmcore_crash() -> Measured:
    told = []
    ok = True
    for name in (CRASHED, "tiny/qemu-kaslr.kdump-zlib", NO_VMCOREINFO, DEBIAN):
        try:
            vmlinux = vmlinux_of(name)
        except Missing as exc:
            told.append(f"{name}: {exc}")
            continue
        commands = ("sys", "log", "bt -a", "ps", "mod")
        with mounted(corpus(name)) as mount:
            ours = crash(vmlinux, mount.path / "vmcore", *commands)
        theirs = crash(vmlinux, corpus(name), *commands)
        frames = sum(1 for line in ours if re.match(r" *#\d+ \[", line))
        same = ours == theirs and any(line.startswith("PID: ") for line in ours)
        ok &= same
        told.append(f"{name.rsplit('/')[-1]}: {len(ours)} lines, {frames} frames, same {same}")
    return Measured("; ".join(told), ok)


DRGN = """
import sys, drgn
from drgn.helpers.linux import for_each_task
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
for task in for_each_task(prog):
    try:
        print(task.pid.value_(), task.comm.string_(), prog.stack_trace(task))
    except Exception as exc:
        print(task.pid.value_(), task.comm.string_(), type(exc), exc)
print(prog.crashed_thread().stack_trace())
"""


@bar("vmcore-drgn", "drgn finds in /vmcore the tasks and stacks that it finds in the original")
def vmcore_drgn() -> Measured:
    told = []
    ok = True
    for name in (CRASHED, DEBIAN):
        try:
            vmlinux = vmlinux_of(name)
        except Missing as exc:
            told.append(f"{name}: {exc}")
            continue
        outputs = []
        with mounted(corpus(name)) as mount:
            for dump in (mount.path / "vmcore", corpus(name)):
                done = run(VENV_BIN / "python", "-c", DRGN, dump, vmlinux)
                if b"No module named 'drgn'" in done.stderr:
                    raise Missing("drgn is not installed")
                outputs.append(done.stdout)
        same = outputs[0] == outputs[1] and outputs[0].count(b"#0") > 2
        ok &= same
        told.append(f"{name.rsplit('/')[-1]}: {outputs[0].count(b'#0')} stacks, same {same}")
    return Measured("; ".join(told), ok)


KDUMPFILE = """
import sys, kdumpfile, hashlib
ctx = kdumpfile.kdumpfile(sys.argv[1])
ctx.attr["addrxlat.ostype"] = "linux"
print(ctx.attr["linux.uts.release"], ctx.attr["cpu.number"], ctx.attr["arch.name"])
for space, name in ((kdumpfile.KDUMP_KVADDR, "virtual"), (kdumpfile.KDUMP_MACHPHYSADDR, "physical")):
    for address in map(int, sys.argv[2:]):
        if (address > 1 << 63) == (name == "virtual"):
            try:
                print(address, hashlib.sha1(ctx.read(space, address, 4096)).hexdigest())
            except Exception as exc:
                print(address, type(exc).__name__)
"""


@bar("vmcore-libkdumpfile", "libkdumpfile reads /vmcore as the original: facts, physical and virtual addresses")
def vmcore_libkdumpfile() -> Measured:
    if run("/usr/bin/python3", "-c", "import kdumpfile").returncode:
        raise Missing("libkdumpfile's Python module is not installed")
    with mounted(corpus(CRASHED)) as mount:
        kernel = json.loads((mount.path / "info.json").read_text())["kernel"]
        text, base = kernel["text"], kernel["page_offset"]
        addresses = [text["vaddr"] + i * 0x31000 for i in range(100)]
        addresses += [base + (16 << 20) + i * 0x7000 for i in range(100)] + [i * 0x13000 for i in range(1, 1000)]
        found = []
        for dump in (mount.path / "vmcore", corpus(CRASHED)):
            done = run("/usr/bin/python3", "-c", KDUMPFILE, dump, *map(str, addresses))
            found.append(done.stdout)
    good = len(re.findall(rb"[0-9a-f]{40}", found[0]))
    return Measured(f"{good} pages read, same {found[0] == found[1]}", found[0] == found[1] and good > 500)


# -- every task in stock gdb

END = re.compile(r"(ret_from_fork|entry_SYSCALL|asm_\w+|secondary_startup_64|exc_\w+)")


def gdb_stacks(vmlinux: Path, offset: int, core: Path) -> tuple[float, dict[int, list[str]]]:
    """Seconds that gdb took, and the lines of every thread's stack by its number."""
    commands = ["set pagination off", f"symbol-file -o {offset:#x} {vmlinux}", f"target core {core}"]
    commands += ["info threads", "thread apply all bt"]
    begin = now()
    done = run(tool("gdb"), "-batch", "-nx", *(word for c in commands for word in ("-ex", c)))
    took = now() - begin
    stacks: dict[int, list[str]] = {}
    for part in re.split(r"\nThread ", done.stdout.decode(errors="replace"))[1:]:
        stacks[int(part.split("LWP ")[1].split(")")[0])] = [
            line for line in part.splitlines() if re.match(r"#\d+ ", line)
        ]
    return took, stacks


@bar("tasks-in-gdb", "stock gdb unwinds every task of /vmcore-tasks; <= 2 x the time on a local copy")
def tasks_in_gdb() -> Measured:
    from dumpfs.vfs.context import Dump

    told = []
    ok = True
    for name in (DEBIAN, CRASHED):
        try:
            vmlinux = vmlinux_of(name)
        except Missing as exc:
            told.append(f"{name}: {exc}")
            continue
        with Dump.open([str(corpus(name))]) as dump:
            asleep = {task.pid: task for task in dump.inspection.inspector.tasks if task.pid and not task.running}
            count = len(dump.inspection.inspector.tasks)
            offset = dump.need_kernel().kaslr_offset or 0
        with mounted(corpus(name)) as mount:
            run("cat", vmlinux)  # either gdb finds it cached
            first, stacks = gdb_stacks(vmlinux, offset, mount.path / "vmcore-tasks")
            took = min(first, gdb_stacks(vmlinux, offset, mount.path / "vmcore-tasks")[0])
            copy = workdir() / "vmcore-tasks"
            copy.write_bytes((mount.path / "vmcore-tasks").read_bytes())
        local = min(gdb_stacks(vmlinux, offset, copy)[0] for _ in range(2))
        copy.unlink()
        whole = sum(any(END.search(line) for line in stacks.get(pid, ())) for pid in asleep)
        ok &= len(stacks) == count and whole == len(asleep) and first <= 2 * local
        value = (
            f"{len(stacks)} threads of {count} tasks, {whole} of {len(asleep)} sleeping ones unwound to their entry,"
        )
        told.append(f"{name}: {value} {first:.2f} s at first, then {took:.2f} s; local copy {local:.2f} s")
    return Measured("; ".join(told), ok)


# -- finding the kernel


@bar("no-vmcoreinfo", "without VMCOREINFO: phys_base, KASLR offset and /dmesg are found, and crash opens /vmcore")
def no_vmcoreinfo() -> Measured:
    with mounted(corpus(NO_VMCOREINFO)) as mount:
        kernel = json.loads((mount.path / "info.json").read_text())["kernel"]
        log = (mount.path / "dmesg").read_text(errors="replace")
        info = (mount.path / "vmcoreinfo").read_text()
        lines = crash(vmlinux_of(NO_VMCOREINFO), mount.path / "vmcore", "sys", "log", "bt -a")
    told = dict(re.findall(r"^(KERNELOFFSET|NUMBER\(phys_base\))=(.*)$", info, re.MULTILINE))
    offset, base = int(told["KERNELOFFSET"], 16), int(told["NUMBER(phys_base)"])
    right = (kernel["kaslr_offset"], kernel["phys_base"]) == (offset, base)
    opened = any(BANNER in line for line in lines) and sum(line.startswith("PID: ") for line in lines) == 2
    sources = {name: kernel["origins"].get(name) for name in ("phys_base", "kaslr_offset", "page_offset")}
    value = f"phys_base {kernel['phys_base']:#x}, KASLR {kernel['kaslr_offset']:#x} as memory says: {right}; "
    value += f"dmesg {len(log)} bytes; crash opens it: {opened}; sources {sources}"
    return Measured(value, right and opened and BANNER in log and all(sources.values()))


# -- the kernel's own memory only


def count(path: Path, marker: bytes) -> int:
    """How often a marker is in a file."""
    found = 0
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        at = view.find(marker)
        while at >= 0:
            found += 1
            at = view.find(marker, at + 1)
    return found


@bar(
    "vmcore-kern", "/vmcore-kern of a full dump: no more secrets than makedumpfile -d 31, no page cache; crash opens it"
)
def vmcore_kern() -> Measured:
    makedumpfile = tool("makedumpfile")
    source = corpus(CRASHED)
    kdump = made("peer-kern.kdump", lambda out: [makedumpfile, "-c", "-d", "31", source, out])
    with mounted(kdump) as mount:
        theirs = count(mount.path / "hmem", SECRET)
    with mounted(source) as mount:
        kern = mount.path / "vmcore-kern"
        secrets = count(kern, SECRET)
        cached = sum(count(kern, marker) for marker in CACHE_MARKERS)
        all_secrets = count(mount.path / "vmcore", SECRET)
        all_cached = sum(count(mount.path / "vmcore", marker) for marker in CACHE_MARKERS)
        ours = crash(vmlinux_of(CRASHED), kern, "sys", "log", "bt -a")
    same = ours == crash(vmlinux_of(CRASHED), source, "sys", "log", "bt -a")
    value = f"secrets {secrets} (makedumpfile {theirs}, /vmcore {all_secrets}), page cache {cached} of {all_cached};"
    return Measured(
        f"{value} crash prints the same of it: {same}",
        secrets <= theirs and cached == 0 and all_secrets > 0 and all_cached > 0 and same,
    )


@contextlib.contextmanager
def opening(path: Path) -> Iterator[threading.Thread]:
    """Read the start of a file in another thread meanwhile."""

    def read() -> None:
        with path.open("rb") as stream:
            stream.read(1 << 20)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@bar("kern-blocks-nobody", "while /vmcore-kern of the largest dump is first opened, cat dmesg answers within 0.3 s")
def kern_blocks_nobody() -> Measured:
    source = big_vmcore() or corpus(CRASHED)
    worst = 0.0
    asked = 0
    with mounted(source) as mount:
        start = now()
        with opening(mount.path / "vmcore-kern") as thread:
            while thread.is_alive() or not asked:
                begin = now()
                subprocess.run(["cat", mount.path / "dmesg"], stdout=subprocess.DEVNULL, check=True)
                worst = max(worst, now() - begin)
                asked += 1
        took = now() - start
    return Measured(f"{worst:.3f} s at worst of {asked} times; the file was there after {took:.2f} s", worst <= 0.3)


# -- what finding things out costs


def list_root(mount: Mounted) -> float:
    """CPU seconds of the mount for a first listing."""
    before = mount.cpu()
    subprocess.run(["ls", mount.path], stdout=subprocess.DEVNULL, check=True)
    time.sleep(0.05)  # what was put off until after the answer counts as well
    return mount.cpu() - before


@bar(
    "first-ls",
    "the first ls of a mount, which finds out what there is to list: 0.6 s CPU at most; the next 50 ms by wall",
)
def first_ls() -> Measured:
    told = []
    ok = True
    for name, source in (
        ("deb61", corpus(DEBIAN)),
        ("tiny", corpus(CRASHED)),
        ("no VMCOREINFO", corpus(NO_VMCOREINFO)),
    ):
        with mounted(source) as mount:
            cpu = list_root(mount)
            begin = now()
            os.listdir(mount.path)
            again = now() - begin
        ok &= cpu <= 0.6 and again <= 0.05
        told.append(f"{name} {cpu:.2f} s, then {again * 1000:.0f} ms")
    return Measured(", ".join(told), ok)


@bar("lazy-parts", "page tables, kallsyms, BTF, tasks and unwind tables: each under 0.5 s CPU when first needed")
def lazy_parts() -> Measured:
    from dumpfs.linux.areas import find_areas
    from dumpfs.vfs.context import Dump

    told = []
    worst = 0.0
    sources = [("deb61", corpus(DEBIAN))]
    if (guest := big_vmcore()) is not None:
        sources.append(("guest", guest))
    for name, source in sources:
        with Dump.open([str(source)]) as dump:
            inspector = dump.inspection.inspector
            kernel = inspector.kernel
            steps = {
                "page tables": lambda k=kernel: find_areas(k, 16000),
                "kallsyms": lambda i=inspector: i.kallsyms,
                "BTF": lambda i=inspector: i.types.offset("task_struct", "comm"),
                "tasks": lambda i=inspector: i.tasks,
                "unwind tables": lambda i=inspector: i.stack(next(t for t in i.tasks if not t.running)),
            }
            for label, step in steps.items():
                begin = time.process_time()
                step()
                took = time.process_time() - begin
                worst = max(worst, took)
                told.append(f"{name} {label} {took:.2f} s")
    return Measured(", ".join(told), worst < 0.5)
