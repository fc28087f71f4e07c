"""Bars of gdb on a mounted dump: whole stacks of every task, with debug information and without."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from barlib import CORPUS, Measured, Missing, Mounted, bar, corpus, mounted, now, run, tool

DEB61, TINY = "deb61/raw-d31.kdump", "tiny/kdump-kaslr.vmcore"
DEB61_VMLINUX = Path("/usr/lib/debug/boot/vmlinux-6.1.0-56-cloud-amd64")
ENDS = re.compile(
    r"ret_from_fork(_asm)?|entry_(SYSCALL|SYSENTER|INT80)\w*|asm_\w+|secondary_startup_64\w*|start_kernel|x86_64_start\w+"
)
USER_MODE = "<user mode>"
VARIANTS = re.compile(r"\.(?:cold|isra|constprop|part|llvm)\b[.\w]*")
ALIASES = {
    "entry_SYSCALL_64_after_hwframe": "entry_SYSCALL_64",
    "secondary_startup_64_no_verify": "secondary_startup_64",
}
"""Labels inside a function, which a symbol table takes for functions and DWARF does not."""
DRGN_SCRIPT = """
import json, sys
import drgn
from drgn.helpers.linux.pid import for_each_task
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
for task in for_each_task(prog):
    try:
        # It goes on into the user program, of which it knows nothing but an address.
        frames = [f.name for f in prog.stack_trace(task) if not f.is_inline and not f.name.startswith("0x")]
        error = ""
    except Exception as exc:
        frames, error = [], str(exc)
    print(json.dumps([task.pid.value_(), task.comm.string_().decode(), frames, error]))
"""


def vmlinux(name: str) -> Path:
    """The kernel of a dump, with debug information."""
    if name == TINY:
        return corpus("tiny/vmlinux")
    if not DEB61_VMLINUX.exists():
        raise Missing("the package linux-image-6.1.0-56-cloud-amd64-dbg is not installed")
    return DEB61_VMLINUX


def gdb(mount: Path, *commands: str, file: Path | None = None, before: tuple[str, ...] = ()) -> tuple[str, float]:
    """What gdb with the mount's gdbinit prints, and how long it took."""
    words: list[str | Path] = [tool("gdb"), "-nx", "-batch"]
    for command in before:
        words += ["-ex", command]
    words += ["-x", mount / "gdbinit"]
    for command in commands:
        words += ["-ex", command]
    if file is not None:
        words.append(file)
    start = now()
    result = run(*words)
    if result.returncode:
        raise RuntimeError(f"gdb failed: {result.stderr.decode(errors='replace')[-300:]}")
    return result.stdout.decode(errors="replace"), now() - start


def parse_frames(text: str) -> list[str]:
    """Functions of a backtrace, inlined ones left out.

    gdb prints an address for the innermost function of a place only; the one that is not inlined comes last.
    """
    functions: list[str] = []
    for line in text.splitlines():
        found = re.match(r"#(\d+)\s+(0x[0-9a-f]+ in )?(<[^>]+>|\S+) ?\(", line)
        if found is None:
            continue
        if found[2] or found[1] == "0":
            functions.append(found[3])
        else:
            functions[-1] = found[3]
    return functions


def parse_threads(text: str) -> dict[str, tuple[str, list[str], str]]:
    """Thread number (LWP) to task name, functions, and the text itself, of `thread apply all bt`."""
    threads = {}
    for part in re.split(r"^(?=Thread \d+ \()", text, flags=re.MULTILINE)[1:]:
        head = re.match(r'Thread \d+ \((?:LWP|process) (\d+)(?: "(.*)")?\):', part)
        if head is not None:
            threads[head[1]] = (head[2] or "", parse_frames(part), part)
    return threads


def plain(function: str) -> str:
    """A function's name as its source has it."""
    name = VARIANTS.sub("", function)
    return ALIASES.get(name, name)


@cache
def drgn_stacks(name: str) -> dict[str, tuple[str, list[str]]]:
    """Pid to name and functions of every task, by drgn on the mounted /vmcore."""
    with mounted(corpus(name)) as mount:
        result = run(sys.executable, "-c", DRGN_SCRIPT, mount.path / "vmcore", vmlinux(name))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    if not rows:
        raise Missing(f"drgn: {result.stderr.decode(errors='replace')[-200:]}")
    return {str(pid): (comm, frames) for pid, comm, frames, _ in rows}


def true_tasks(name: str) -> dict[str, str]:
    """Pid to name of every task, by drgn on the machine that made the corpus where that was kept."""
    if name == DEB61:
        first = json.loads((CORPUS / "deb61/truth/drgn.jsonl").read_text().splitlines()[0])
        return {str(row[0]): row[3] for row in first["tasks"]}
    return {pid: comm for pid, (comm, _) in drgn_stacks(name).items()}


def check_stacks(name: str, file: Path | None) -> tuple[list[str], bool]:
    """Hold every stack that gdb prints against drgn's."""
    wanted, truth = drgn_stacks(name), true_tasks(name)
    with mounted(corpus(name)) as mount:
        text, _ = gdb(mount.path, "bt", "thread apply all bt", file=file)
    panic = parse_frames(text.split("\nThread ", 1)[0])
    threads = parse_threads(text)
    named = sum(threads.get(pid, ("", [], ""))[0] == comm for pid, comm in truth.items())
    users = [pid for pid, (_, functions, _) in threads.items() if functions[:1] == [USER_MODE]]
    ended = sum(bool(f) and ENDS.fullmatch(f[-1]) is not None for p, (_, f, _) in threads.items() if p not in users)
    unknown = text.count("??") + text.count("Backtrace stopped")
    compared = [pid for pid in wanted if pid not in users]
    same = sum(
        [plain(f) for f in threads[pid][1]] == [plain(f) for f in wanted[pid][1]] for pid in compared if pid in threads
    )
    whole = panic[:2] == ["__crash_kexec", "panic"] and plain(panic[-1]) == "entry_SYSCALL_64"
    share = same / max(len(compared), 1)
    values = [
        f"panic CPU {len(panic)} frames {panic[0]} … {panic[-1]}",
        f"{named} of {len(truth)} tasks named",
        f"{ended} of {len(threads) - len(users)} end at an entry ({len(users)} in user mode)",
        f"{unknown} '??'",
        f"{same} of {len(compared)} stacks as drgn's ({share:.0%})",
    ]
    ok = whole and named == len(truth) and ended == len(threads) - len(users) and not unknown and share >= 0.95
    return values, ok


def stacks_bar(name: str, file: Path | None) -> Measured:
    values, ok = check_stacks(name, file)
    return Measured("; ".join(values), ok)


PROMISE = "whole panic stack; every task named; every stack ends at an entry, no ??; >= 95 % of stacks as drgn's"


@bar("gdb-stacks-deb61", f"gdb -x gdbinit VMLINUX on deb61: {PROMISE}")
def gdb_stacks_deb61() -> Measured:
    return stacks_bar(DEB61, vmlinux(DEB61))


@bar("gdb-stacks-tiny", f"the same on tiny: {PROMISE}")
def gdb_stacks_tiny() -> Measured:
    return stacks_bar(TINY, vmlinux(TINY))


@bar("gdb-own-symbols-deb61", f"gdb -x gdbinit with the dump's own vmlinux on deb61: {PROMISE}")
def gdb_own_symbols_deb61() -> Measured:
    return stacks_bar(DEB61, None)


@bar("gdb-own-symbols-tiny", f"the same on tiny: {PROMISE}")
def gdb_own_symbols_tiny() -> Measured:
    return stacks_bar(TINY, None)


def best_of(mount: Mounted, file: Path | None, before: tuple[str, ...], count: int = 3) -> float:
    return min(gdb(mount.path, "thread apply all bt", file=file, before=before)[1] for _ in range(count))


@bar("gdb-speed", "thread apply all bt: wall <= 2 x the same gdb on a local copy of vmcore-tasks")
def gdb_speed() -> Measured:
    texts, ok = [], True
    for name in (DEB61, TINY):
        for file in (vmlinux(name), None):
            with mounted(corpus(name)) as mount, tempfile.TemporaryDirectory(prefix="dumpfs-bar-") as folder:
                first = gdb(mount.path, "thread apply all bt", file=file)[1]
                local = Path(folder) / "core"
                shutil.copyfile(mount.path / "vmcore-tasks", local)
                copied = best_of(mount, file, (f'set $dumpfs_core = "{local}"',))
                again = best_of(mount, file, ())
            what = f"{name.split('/')[0]} {'VMLINUX' if file is not None else 'own symbols'}"
            texts.append(f"{what}: copy {copied:.2f} s, mount {again:.2f} s, first time {first:.2f} s")
            ok &= again <= 2 * copied
    return Measured("; ".join(texts), ok)


@bar("gdb-refuses", "a vmlinux of another kernel is refused by build-id; nothing is loaded")
def gdb_refuses() -> Measured:
    with mounted(corpus(DEB61)) as mount:
        words = [tool("gdb"), "-nx", "-batch", "-x", mount.path / "gdbinit", "-ex", "bt", corpus("tiny/vmlinux")]
        result = run(*words)
    said = (result.stdout + result.stderr).decode(errors="replace")
    refused = "is not this kernel's" in said and "#0" not in said and "Traceback" not in said
    return Measured("refused" if refused else said[-200:], refused)
