"""The matrix of peers: what each makes of the mounted /vmcore of three dumps, beside what is known to be right."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from barlib import (
    CACHE,
    CORPUS,
    PAGE,
    VENV_BIN,
    Measured,
    Missing,
    bar,
    corpus,
    mounted,
    run,
    sha1,
    tool,
    truth,
    workdir,
)
from bars_gdb import DRGN_SCRIPT, check_stacks
from bars_kernel import CRASHED, DEBIAN, crash, segments, vmlinux_of

from tests.build.isf import build_isf

ARM64 = "foreign/arm64/arm64.kdump-zlib"
PAGES = {CRASHED: "tiny/pages-kdump-kaslr.json", DEBIAN: "deb61/pages.json", ARM64: "foreign/arm64/pages.json"}
LOGS = {CRASHED: "tiny/kdump-kaslr.log.expected", DEBIAN: "deb61/log.expected", ARM64: "foreign/arm64/log.expected"}
FIVE_LEVELS = """
from volatility3.framework.layers import intel
intel.Intel32e._maxvirtaddr = 57
intel.Intel32e._structure = [("page map layer 5", 9, False), *intel.Intel32e._structure]
"""
"""Volatility knows four levels of page tables."""
KDUMPFILE = """
import sys, hashlib, kdumpfile
dump = kdumpfile.kdumpfile(sys.argv[1])
for line in sys.stdin:
    try:
        print(line.strip(), hashlib.sha1(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, int(line), 4096)).hexdigest())
    except Exception as exc:
        print(line.strip(), type(exc).__name__)
"""

Cell = Callable[[str, Path], tuple[str, bool]]
"""What a peer makes of a dump: its name in the corpus and the folder where it is mounted."""


def row(name: str, promise: str) -> Callable[[Cell], Cell]:
    """Enter a peer: a row with a cell for each dump; a dump that it cannot be asked about here is named."""

    def enter(cell: Cell) -> Cell:
        def measure() -> Measured:
            told, right = [], []
            for dump in (CRASHED, DEBIAN, ARM64):
                label = dump.split("/")[0].replace("foreign", "arm64")
                try:
                    with mounted(corpus(dump)) as mount:
                        value, ok = cell(dump, mount.path)
                except Missing as exc:
                    told.append(f"{label}: - ({exc})")
                    continue
                right.append(ok)
                told.append(f"{label}: {'right' if ok else 'WRONG'} ({value})")
            return Measured("; ".join(told), bool(right) and all(right))

        bar(f"peers-{name}", promise)(measure)
        return cell

    return enter


def _only_x86(dump: str, why: str) -> None:
    if dump == ARM64:
        raise Missing(why)


@row("gdb", "gdb with /gdbinit and the vmlinux, or the dump's own symbols, prints every stack whole, as drgn does")
def gdb_row(dump: str, mount: Path) -> tuple[str, bool]:
    if dump != ARM64:
        values, ok = check_stacks(dump, vmlinux_of(dump))
        return ", ".join(values), ok
    if not (peer := shutil.which("gdb-multiarch")):
        raise Missing("gdb-multiarch is not installed")
    said = run(peer, "-nx", "-batch", "-x", mount / "gdbinit", "-ex", "bt").stdout.decode(errors="replace")
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", said, re.MULTILINE)
    return " ".join(frames), len(frames) > 3 and "??" not in said


@row("gdb-per-cpu", "gdb: each processor's current_task, as the kernel's own scripts find it, is that of /cpus/N/task")
def per_cpu_row(dump: str, mount: Path) -> tuple[str, bool]:
    _only_x86(dump, "no vmlinux of its kernel")
    count = len([entry for entry in (mount / "cpus").iterdir() if entry.name.isdigit()])
    task = "(*(struct task_struct **)((unsigned long)&current_task + __per_cpu_offset[{cpu}]))"
    asked = [f'printf "%d (%s)\\n", {at}->pid, {at}->comm' for at in (task.format(cpu=cpu) for cpu in range(count))]
    words = [word for line in asked for word in ("-ex", line)]
    done = run(tool("gdb"), "-nx", "-batch", "-x", mount / "gdbinit", *words, vmlinux_of(dump))
    found = done.stdout.decode(errors="replace").strip().splitlines()[-count:]
    return ", ".join(found), found == [(mount / f"cpus/{cpu}/task").read_text().strip() for cpu in range(count)]


@cache
def kernel_scripts() -> Path:
    """The kernel's own scripts for gdb, of Debian's package linux-source-6.1."""
    source = Path("/usr/src/linux-source-6.1.tar.xz")
    if not source.exists():
        raise Missing("the package linux-source-6.1 is not installed")
    folder = workdir() / "linux-source-6.1"
    if not folder.exists():
        run("tar", "-xf", source, "-C", workdir(), "linux-source-6.1/scripts/gdb")
    return folder / "scripts/gdb"


@row("gdb-lx", "gdb: $lx_current(N).comm of the kernel's own scripts is what /cpus/N/task says")
def lx_row(dump: str, mount: Path) -> tuple[str, bool]:
    _only_x86(dump, "no vmlinux of its kernel")
    count = len([entry for entry in (mount / "cpus").iterdir() if entry.name.isdigit()])
    words = ["-ex", f"python import sys; sys.path.insert(0, '{kernel_scripts()}'); import linux.cpus"]
    for cpu in range(count):
        words += ["-ex", f'printf "%d (%s)\\n", $lx_current({cpu}).pid, $lx_current({cpu}).comm']
    done = run(tool("gdb"), "-nx", "-batch", "-x", mount / "gdbinit", *words, vmlinux_of(dump))
    found = done.stdout.decode(errors="replace").strip().splitlines()[-count:]
    return ", ".join(found), found == [(mount / f"cpus/{cpu}/task").read_text().strip() for cpu in range(count)]


@row("crash", "crash prints what it prints of the original: sys, log, bt -a, ps")
def crash_row(dump: str, mount: Path) -> tuple[str, bool]:
    _only_x86(dump, "this crash is built for x86_64")
    commands = ("sys", "log", "bt -a", "ps", "rd -p 100000 4")
    ours = crash(vmlinux_of(dump), mount / "vmcore", *commands)
    frames = sum(1 for line in ours if re.match(r" *#\d+ \[", line))
    return f"{len(ours)} lines, {frames} frames", frames > 5 and ours == crash(
        vmlinux_of(dump), corpus(dump), *commands
    )


@row(
    "drgn", "drgn finds the tasks and stacks that it finds in the original; without a vmlinux it reads every known page"
)
def drgn_row(dump: str, mount: Path) -> tuple[str, bool]:
    if run(VENV_BIN / "python", "-c", "import drgn").returncode:
        raise Missing("drgn is not installed")
    if dump == ARM64:
        import drgn

        program = drgn.Program()
        program.set_core_dump(mount / "vmcore")
        pages = truth(PAGES[dump])
        same = sum(sha1(program.read(paddr, PAGE, physical=True)) == known for paddr, known in pages.items())
        return f"{same} of {len(pages)} pages", same == len(pages)
    found = [
        run(VENV_BIN / "python", "-c", DRGN_SCRIPT, path, vmlinux_of(dump)).stdout
        for path in (mount / "vmcore", corpus(dump))
    ]
    rows = [json.loads(line) for line in found[0].splitlines()]
    whole = sum(bool(frames) for _, _, frames, _ in rows)
    return f"{len(rows)} tasks, {whole} with a stack", found[0] == found[1] and whole > 20


@row("libkdumpfile", "libkdumpfile reads every known page of memory right")
def libkdumpfile_row(dump: str, mount: Path) -> tuple[str, bool]:
    if run("/usr/bin/python3", "-c", "import kdumpfile").returncode:
        raise Missing("libkdumpfile's Python module is not installed")
    pages = truth(PAGES[dump])
    asked = "".join(f"{paddr}\n" for paddr in pages).encode()
    lines = run("/usr/bin/python3", "-c", KDUMPFILE, mount / "vmcore", input=asked).stdout.decode().splitlines()
    got = {int(line.split()[0]): line.split()[1] for line in lines}
    empty = sha1(bytes(PAGE))
    # A page that the dump level left out reads as zeros.
    left_out = [p for p, known in pages.items() if known != empty and got.get(p) == empty]
    wrong = [p for p, known in pages.items() if got.get(p) not in (known, empty)]
    stored = (mount / "bitmaps/stored").read_bytes()
    size = json.loads((mount / "info.json").read_text())["page_size"]
    lost = [p for p in left_out if stored[p // size >> 3] >> (p // size & 7) & 1]
    return f"{len(pages) - len(left_out)} of {len(pages)} pages, {len(left_out)} left out", not wrong and not lost


@row(
    "makedumpfile",
    "makedumpfile writes what it writes from the original: -l -d 31, -c -d 0, --dump-dmesg; -E: the same memory",
)
def makedumpfile_row(dump: str, mount: Path) -> tuple[str, bool]:
    _only_x86(dump, "this makedumpfile is built for x86_64")
    told, right = [], True
    with tempfile.TemporaryDirectory(prefix="dumpfs-bar-") as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        for flags in (["-l", "-d", "31"], ["-c", "-d", "0"], ["-E", "-d", "31"], ["--dump-dmesg"]):
            if dump == DEBIAN and flags[0] in ("-c", "-E"):
                continue  # what level 31 left out is zeros in our core, and no page in the original
            for source, out in ((mount / "vmcore", ours), (corpus(dump), theirs)):
                out.unlink(missing_ok=True)
                run(tool("makedumpfile"), *flags, source, out)
            if not ours.exists() or not theirs.exists():
                same = False
            elif flags[0] == "-E":
                same = segments(ours)[:-1] == segments(theirs) and segments(ours)[-1][3] == 1
            elif flags[0] == "--dump-dmesg":
                same = ours.read_bytes() == (CORPUS / LOGS[dump]).read_bytes()
            else:
                same = filecmp.cmp(ours, theirs, shallow=False)
            right &= same
            told.append(f"{' '.join(flags)} {'same' if same else 'DIFFERENT'}")
    return ", ".join(told), right


@cache
def volatility() -> Path:
    """The command vol of volatility3, of this environment or one of its own."""
    if (command := VENV_BIN / "vol").exists():
        return command
    folder = CACHE / "volatility3"
    command = folder / "bin" / "vol"
    if not command.exists():
        run(sys.executable, "-m", "venv", folder)
        done = run(folder / "bin" / "pip", "install", "-q", "volatility3")
        if done.returncode or not command.exists():
            raise Missing(f"volatility3 cannot be installed: {done.stderr.decode(errors='replace')[-200:]}")
    return command


def ask_volatility(file: Path, plugin: str, *words: str | Path) -> list[str]:
    """The rows that a plugin prints."""
    with tempfile.TemporaryDirectory(prefix="dumpfs-bar-") as cached:
        done = run(volatility(), "-q", "--offline", "--cache-path", cached, *words, "-f", file, plugin)
    return [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("0x")]


def symbol_table(mount: Path, folder: Path) -> list[str | Path]:
    """Words that give volatility3 the types and symbols of the dump itself, and 5 levels of page tables if need be."""
    vmcoreinfo = (mount / "vmcoreinfo").read_text(errors="replace")
    offset = re.search(r"KERNELOFFSET=(\w+)", vmcoreinfo)
    banner = (mount / "version").read_bytes().removesuffix(b"\n") + b"\n"
    symbols = (mount / "kallsyms").read_text()
    table = build_isf((mount / "btf").read_bytes(), symbols, banner, int(offset[1], 16) if offset else 0)
    (folder / "linux").mkdir()
    (folder / "linux/kernel.json").write_text(json.dumps(table))
    words: list[str | Path] = ["-s", folder]
    if "NUMBER(pgtable_l5_enabled)=1" in vmcoreinfo:
        (folder / "plugins").mkdir()
        (folder / "plugins/five_levels.py").write_text(FIVE_LEVELS)
        words += ["-p", folder / "plugins"]
    return words


@row("volatility3", "volatility3's linux.pslist lists every process of /tasks, with a symbol table; of arm64, banners")
def volatility_row(dump: str, mount: Path) -> tuple[str, bool]:
    if dump == ARM64:  # it has no page tables of arm64
        found = ask_volatility(mount / "vmcore", "banners.Banners")
        return f"{len(found)} banners", bool(found) and found == ask_volatility(mount / "hmem", "banners.Banners")
    expected = {int(entry.name) for entry in (mount / "tasks").iterdir()}
    told, right = [], True
    with tempfile.TemporaryDirectory(prefix="dumpfs-bar-") as folder:
        words = symbol_table(mount, Path(folder))
        for view in ("vmcore", "vmcore-kern"):
            pids = {int(line.split("\t")[1]) for line in ask_volatility(mount / view, "linux.pslist", *words)}
            told.append(f"{view}: {len(pids & expected)} of {len(expected)}")
            right &= pids == expected
    return ", ".join(told), right


@row("vmcore-dmesg", "vmcore-dmesg prints the log, but for the indent of a record's further lines")
def vmcore_dmesg_row(dump: str, mount: Path) -> tuple[str, bool]:
    def words(text: bytes) -> list[list[bytes]]:
        text = text.replace(rb"\xffffff", rb"\x")  # makedumpfile's byte of UTF-8, in the known log
        return [line.split() for line in text.splitlines() if line.strip()]

    ours = words(run(tool("vmcore-dmesg"), mount / "vmcore").stdout)
    return f"{len(ours)} lines", ours == words((CORPUS / LOGS[dump]).read_bytes()) and len(ours) > 100


# -- many ranges of memory

_RANGES = (20_000, 70_000)


def with_ranges(source: Path, count: int, out: Path) -> None:
    """The dump, with `count` ranges of a page each from 8 GiB on, which all show the first page of its memory."""
    data = bytearray(source.read_bytes())
    (at,) = struct.unpack_from("<Q", data, 32)
    (number,) = struct.unpack_from("<H", data, 56)
    rows = [struct.unpack_from("<2I6Q", data, at + 56 * i) for i in range(number)]
    last = rows[-1]
    for i in range(count):
        paddr = (8 << 30) + 2 * PAGE * i
        rows.append((1, 7, last[2], last[3] - last[4] + paddr, paddr, PAGE, PAGE, 0))
    data += bytes(-len(data) % PAGE)
    section = len(data) + 56 * len(rows)
    struct.pack_into("<QQ", data, 32, len(data), section)
    struct.pack_into("<HHH", data, 56, min(len(rows), 0xFFFF), 64, 1)
    with out.open("wb") as file:
        file.write(data)
        file.writelines(struct.pack("<2I6Q", *fields) for fields in rows)
        file.write(struct.pack("<2I4Q2I2Q", 0, 0, 0, 0, 0, 1, 0, len(rows), 0, 0))


@bar("peers-many-ranges", "with 20,000 and 70,000 ranges of RAM: every peer finds in tiny what it finds without them")
def many_ranges() -> Measured:
    told, right = [], True
    vmlinux = vmlinux_of(CRASHED)
    with tempfile.TemporaryDirectory(prefix="dumpfs-bar-") as name:
        folder = Path(name)
        (folder / "symbols").mkdir()
        for count in _RANGES:
            dump = folder / "dump"
            with_ranges(corpus(CRASHED), count, dump)
            with mounted(dump) as mount, mounted(corpus(CRASHED)) as plain:
                expected = {int(entry.name) for entry in (mount.path / "tasks").iterdir()}
                cells = {"tasks": len(expected) > 30}
                shutil.rmtree(folder / "symbols")
                (folder / "symbols").mkdir()
                words = symbol_table(mount.path, folder / "symbols")
                core, whole = mount.path / "vmcore", plain.path / "vmcore"
                pids = {int(line.split("\t")[1]) for line in ask_volatility(core, "linux.pslist", *words)}
                cells["volatility3"] = pids == expected
                stacks = [run(VENV_BIN / "python", "-c", DRGN_SCRIPT, path, vmlinux).stdout for path in (core, whole)]
                cells["drgn"] = stacks[0] == stacks[1] != b""
                asked = ("bt -a", "log", "ps")
                cells["crash"] = crash(vmlinux, core, *asked) == crash(vmlinux, whole, *asked)
                (folder / "log").unlink(missing_ok=True)
                run(tool("makedumpfile"), "--dump-dmesg", core, folder / "log")
                cells["makedumpfile"] = (folder / "log").read_bytes() == (CORPUS / LOGS[CRASHED]).read_bytes()
                log = [run(tool("vmcore-dmesg"), path).stdout for path in (core, whole)]
                cells["vmcore-dmesg"] = log[0] == log[1] != b""
                pages = "".join(f"{paddr}\n" for paddr in truth(PAGES[CRASHED])).encode()
                read = [run("/usr/bin/python3", "-c", KDUMPFILE, path, input=pages).stdout for path in (core, whole)]
                cells["libkdumpfile"] = read[0] == read[1] != b""
                said = [
                    run(tool("gdb"), "-nx", "-batch", "-x", path / "gdbinit", "-ex", "bt", vmlinux).stdout
                    for path in (mount.path, plain.path)
                ]
                cells["gdb"] = said[0] == said[1] != b""
            right &= all(cells.values())
            told.append(f"{count}: " + ", ".join(f"{peer} {'right' if ok else 'WRONG'}" for peer, ok in cells.items()))
    return Measured("; ".join(told), right)
