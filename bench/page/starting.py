"""Sections about what comes before the first byte: mounting, the log, listings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from barlib import Missing, big, drop_caches, mounted, run, tool, workdir
from bars_parallel import crash_log, drgn_log, first_dmesg, guest_vmlinux, mount_cpu, need_drgn, only_mount
from bars_reading import million, sparse_tib
from readlib import libkdumpfile, random_list, seconds, stored_runs, warm

from page.forms import flat
from page.measure import Plan, Row, Turns, section

_DRGN_OPEN = """
import sys, drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.read(int(sys.argv[2]), 4096, True)
"""


def makedumpfile_log(dump: Path) -> None:
    """The log, by makedumpfile."""
    out = workdir() / "makedumpfile.log"
    said = run(tool("makedumpfile"), "-f", "--dump-dmesg", dump, out)
    if said.returncode or b"Linux version" not in out.read_bytes():
        raise RuntimeError(f"makedumpfile: {said.stdout.decode(errors='replace')[-100:]}")


def cold_and_again(command: Callable[[], None], name: str) -> dict[str, float]:
    """Wall times of a command after dropping caches, and of the same once more."""
    drop_caches()
    return {f"{name} cold": seconds(command), f"{name} again": seconds(command)}


@section(
    "log",
    "Mount to first dmesg",
    """
    From nothing to the whole kernel log of the 1 GiB zlib dump: `dumpfs mount`, `cat dmesg`, `dumpfs umount`;
    `crash -s VMLINUX DUMP` with `log`; `drgn -c DUMP -s VMLINUX` with `get_dmesg`; `makedumpfile --dump-dmesg`.
    Whole commands. crash and drgn have the kernel's debug information on the local disk, dumpfs and
    makedumpfile do without.
    """,
)
def first_log(plan: Plan) -> Iterator[Row]:
    dump = big("zlib-d0.kdump")

    def by_crash() -> dict[str, float]:
        vmlinux = guest_vmlinux()
        tool("crash")
        return cold_and_again(lambda: crash_log(dump, vmlinux), "crash")

    def by_drgn() -> dict[str, float]:
        need_drgn()
        vmlinux = guest_vmlinux()
        return cold_and_again(lambda: drgn_log(dump, vmlinux), "drgn")

    sides = {
        "dumpfs": lambda: cold_and_again(lambda: first_dmesg(dump), "dumpfs"),
        "drgn": by_drgn,
        "crash": by_crash,
        "makedumpfile": lambda: cold_and_again(lambda: makedumpfile_log(dump), "makedumpfile"),
    }
    turns = Turns(plan.rounds(5, 2), sides)
    for state, title in (("cold", "log, caches dropped"), ("again", "log, everything cached")):
        yield turns.row(title, "s", **{side: f"{side} {state}" for side in sides})


def _openers(dump: Path, one_page: Path, address: int) -> dict[str, Callable[[], float]]:
    """How each side opens a dump, and wall seconds of that."""

    def by_crash() -> float:
        vmlinux, crash = guest_vmlinux(), tool("crash")
        warm(vmlinux)

        def start() -> None:
            said = run(crash, "-s", vmlinux, dump, input=b"sys\nquit\n")
            if b"RELEASE:" not in said.stdout:
                raise RuntimeError(f"crash: {said.stdout.decode(errors='replace').strip()[-100:]}")

        return seconds(start)

    def by_drgn() -> float:
        need_drgn()

        def start() -> None:
            said = run(sys.executable, "-c", _DRGN_OPEN, dump, str(address))
            if said.returncode:
                raise RuntimeError(said.stderr.decode(errors="replace").strip().splitlines()[-1])

        return seconds(start)

    return {
        "dumpfs": lambda: only_mount(dump),
        "libkdumpfile": lambda: seconds(lambda: libkdumpfile(dump, one_page)),
        "drgn": by_drgn,
        "crash": by_crash,
    }


@section(
    "open",
    "Opening a dump",
    """
    `dumpfs mount` until it returns, all files cached. libkdumpfile and drgn (without debug information): a
    process that opens the dump and reads a page; crash: until it answers `sys`. The flattened dump has the same
    pages as the lzo one. The 1 TiB dump is generated: 2^28 page frames, fragmented bitmaps, four million stored
    pages. *CPU* is that of the command and of all processes behind the mount when it returned.
    """,
)
def opening(plan: Plan) -> Iterator[Row]:
    guest = big("lzo-d0.kdump")
    dumps = {"lzo": (guest, guest), "lzo, flattened": (flat(), guest), "1 TiB, sparse": (sparse_tib(),) * 2}
    for title, (dump, known) in dumps.items():
        warm(dump)
        address = stored_runs(known)[-1][0] * 4096
        sides = _openers(dump, random_list(known, 1), address)
        if dump == sparse_tib():
            sides["crash"] = _no_kernel
        yield Turns(plan.rounds(5, 1), sides).row(title, "s", **{side: side for side in sides})
        cpu = Turns(plan.rounds(5, 3), {"dumpfs": lambda d=dump: mount_cpu(d)})
        yield cpu.row(f"{title}, CPU", "CPU s", dumpfs="dumpfs")


def _no_kernel() -> float:
    raise Missing("the generated dump has no kernel in it")


@section(
    "lists",
    "Listings",
    """
    `ls -U` of /pages of a generated dump of a million stored pages, and `ls` and `cat info.json` of the mounted 1
    TiB dump.
    """,
)
def lists(plan: Plan) -> Iterator[Row]:
    def names() -> dict[str, float]:
        with mounted(million(), options="pages=list") as mount:
            stored = json.loads((mount.path / "info.json").read_text())["pages"]["stored"]
            before = mount.cpu()
            wall = seconds(lambda: _list(mount.path / "pages", stored))
            return {"dumpfs": wall, "dumpfs CPU": mount.cpu() - before}

    turns = Turns(plan.rounds(3, 1), {"dumpfs": names})
    yield turns.row("ls -U /pages, a million names", "s", dumpfs="dumpfs")
    yield turns.row("ls -U /pages, CPU of the mount", "CPU s", dumpfs="dumpfs CPU")

    def sparse() -> float:
        with mounted(sparse_tib()) as mount:

            def look() -> None:
                run("ls", mount.path)
                json.loads((mount.path / "info.json").read_text())

            return seconds(look)

    yield Turns(plan.rounds(5, 3), {"dumpfs": sparse}).row("ls and cat info.json, 1 TiB", "s", dumpfs="dumpfs")


def _list(folder: Path, stored: int) -> None:
    if len(run("ls", "-U", folder).stdout.split()) != stored or stored < 1_000_000:
        raise RuntimeError("names are missing")
