"""Sections about programs that read a dump: gdb, drgn, crash, strings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from barlib import big, drop_caches, mounted, run, tool
from bars_parallel import backtraces, guest_vmlinux, local_core, need_drgn
from readlib import only_warm, seconds

from page.forms import local_hmem
from page.measure import Plan, Row, Turns, section

_DRGN = """
import sys, drgn
from drgn.helpers.linux.fs import for_each_mount
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import for_each_task
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
count = 0
"""
_STACKS = """
for task in for_each_task(prog):
    try:
        count += len(prog.stack_trace(task))
    except (ValueError, drgn.FaultError):
        count += 1  # a task that was running
print(count)
"""
_INODES = """
for block in list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"):
    for inode in list_for_each_entry("struct inode", block.s_inodes.address_of_(), "i_sb_list"):
        count += inode.i_ino.value_() != 0
        count += inode.i_mapping.nrpages.value_()
print(count)
"""
_QUICK_STRINGS = 256 << 20


@section(
    "gdb",
    "gdb's `thread apply all bt`",
    """
    Stock gdb with the mount's gdbinit prints the stack of every task: through /vmcore-tasks of the mounted zlib
    dump, and on a copy of that file on the local disk. *First time*: a fresh mount, caches dropped, then gdb
    and the vmlinux read again, which both sides need alike. *Own symbols*: without a vmlinux; the mount makes
    the symbols from the dump while gdb waits, and the copy's gdb, which comes after, finds them made. crash and
    drgn print the same stacks below.
    """,
)
def gdb_stacks(plan: Plan) -> Iterator[Row]:
    dump = big("zlib-d0.kdump")
    local = local_core(dump)
    names = ("dumpfs first", "dumpfs second", "local file first", "local file second")
    for title, with_vmlinux in (("with the vmlinux", True), ("own symbols", False)):

        def both(with_vmlinux: bool = with_vmlinux) -> dict[str, float]:
            file = guest_vmlinux() if with_vmlinux else None
            return dict(zip(names, backtraces(dump, local, file), strict=True))

        turns = Turns(plan.rounds(5, 2), {"dumpfs": both})
        for time in ("first", "second"):
            row = turns.row(f"{title}, {time} time", "s", dumpfs=f"dumpfs {time}", local_file=f"local file {time}")
            yield row


def _strings(path: Path, limit: int) -> float:
    drop_caches()
    strings = tool("strings")
    size = min(limit, path.stat().st_size)
    command = f"{strings} -a -n 8" + (f" {path}" if size == path.stat().st_size else "")
    pipe = f"head -c {size} {path} | {command}" if size != path.stat().st_size else command
    return seconds(lambda: _checked("sh", "-c", f"{pipe} > /dev/null"))


def _checked(*command: str | Path, want: bytes = b"", **more: bytes) -> bytes:
    result = run(*command, **more)
    if result.returncode or want not in result.stdout:
        raise RuntimeError(
            f"{Path(command[0]).name}: {(result.stderr or result.stdout).decode(errors='replace')[-150:]}"
        )
    return result.stdout


def _through(dump: Path, read: Callable[[Path], float], view: str) -> float:
    with mounted(dump) as mount:
        return read(mount.path / view)


def _on(read: Callable[[Path], float], path: Path) -> Callable[[], float]:
    return lambda: read(path)


@section(
    "programs",
    "Programs that read memory",
    """
    `strings /hmem` reads all of it, buffered; beside a copy of the file on the local disk. drgn and crash chase
    pointers: stacks of all tasks, every inode of every file system, `foreach bt`; through /vmcore of the
    mounted zlib dump, on the zlib dump itself (*tool alone*: drgn reads it with libkdumpfile, crash with its own
    code), and on the uncompressed ELF (*local file*). Whole commands, mounting not included; caches dropped,
    then the vmlinux read again.
    """,
)
def programs(plan: Plan) -> Iterator[Row]:
    dump, local = big("zlib-d0.kdump"), big("vmcore")
    limit = _QUICK_STRINGS if plan.quick else 1 << 50
    sides: dict[str, Callable[[], float]] = {
        "dumpfs": lambda: _through(dump, lambda path: _strings(path, limit), "hmem"),
        "local file": lambda: _strings(local_hmem(), limit),
    }
    strings = Turns(plan.rounds(3, 2), sides).row("strings /hmem", "s", dumpfs="dumpfs", local_file="local file")
    yield strings

    def by_drgn(work: str) -> Callable[[Path], float]:
        def read(path: Path) -> float:
            need_drgn()
            vmlinux = guest_vmlinux()
            only_warm(vmlinux)
            return seconds(lambda: _checked(sys.executable, "-c", _DRGN + work, path, vmlinux, want=b"\n"))

        return read

    def by_crash(path: Path) -> float:
        vmlinux, crash = guest_vmlinux(), tool("crash")
        only_warm(vmlinux)
        return seconds(lambda: _checked(crash, "-s", vmlinux, path, input=b"foreach bt\nquit\n", want=b"#0"))

    works = {
        "drgn, stacks of all tasks": by_drgn(_STACKS),
        "drgn, every inode": by_drgn(_INODES),
        "crash, foreach bt": by_crash,
    }
    for title, read in works.items():
        turns = Turns(
            plan.rounds(3, 1),
            {
                "dumpfs": lambda r=read: _through(dump, r, "vmcore"),
                "tool alone": _on(read, dump),
                "local file": _on(read, local),
            },
        )
        yield turns.row(title, "s", dumpfs="dumpfs", tool_alone="tool alone", local_file="local file")
