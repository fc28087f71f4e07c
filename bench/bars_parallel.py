"""Bars of reading in parallel and of starting up, beside the peers on the same dump in the same run.

Wall time. Each pair of runs, ours and the peer's, is made one after the other, so that what else the machine does meets
both; of the pairs' ratios the median counts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from barlib import DUMPFS, VENV_BIN, Measured, Missing, bar, big, corpus, drop_caches, made, mounted, run, tool
from bars_gdb import DEB61_VMLINUX, gdb
from bars_reading import OTHERS, SPLIT, TINY
from readlib import (
    children_cpu,
    dd,
    libkdumpfile,
    long_runs,
    median,
    only_warm,
    random_list,
    readers,
    seconds,
    sequential_list,
    spans,
    spread,
    warm,
)

PAIRS = 5
DIRECT_BARS = {"zlib": 2.5, "lzo": 2.5, "zstd": 4.0, "snappy": 2.0}
BUFFERED_BAR = 1.5
LOG_PARTS = (b"Linux version ", b"Kernel panic - not syncing", b"</TASK>")
"""What the guest's log begins with, dies of, and ends with."""
DRGN_LOG = (
    "import sys; from drgn.helpers.linux.printk import get_dmesg; sys.stdout.buffer.write(get_dmesg(prog) + b'\\n')"
)


def guest_release() -> str:
    """The kernel release that the benchmark guest's vmcoreinfo names."""
    text = run(DUMPFS, "cat", big("lzo-d0.kdump"), "vmcoreinfo").stdout.decode()
    return next((line.partition("=")[2] for line in text.splitlines() if line.startswith("OSRELEASE=")), "")


def guest_vmlinux() -> Path:
    """The benchmark guest's kernel, with debug information."""
    path = DEB61_VMLINUX.with_name(f"vmlinux-{guest_release()}")
    if not path.exists():
        raise Missing(f"{path} is not there: install the kernel package's -dbg")
    return path


# -- sequential --------------------------------------------------------------------------------------------------------


def sequential(codec: str) -> Measured:
    """dd of all long runs of /hmem, O_DIRECT and buffered, beside libkdumpfile reading the same pages."""
    dump = big(f"{codec}-d0.kdump")
    runs = long_runs(dump)
    pieces, addresses = spans(runs), sequential_list(dump, runs)
    ratios: dict[bool, list[float]] = {True: [], False: []}
    rates: dict[object, list[float]] = {True: [], False: [], "peer": []}
    for _ in range(PAIRS):
        drop_caches()
        peer = libkdumpfile(dump, addresses)
        rates["peer"].append(peer.rate)
        for direct in (True, False):
            with mounted(dump) as mount:
                drop_caches()
                ours = dd(mount.path / "hmem", pieces, direct)
            if ours.nbytes != peer.nbytes or ours.nbytes < 1 << 30:
                raise RuntimeError(f"{ours.nbytes} bytes read, by libkdumpfile {peer.nbytes}")
            rates[direct].append(ours.rate)
            ratios[direct].append(ours.rate / peer.rate)
    direct_ratio, buffered_ratio = median(ratios[True]), median(ratios[False])
    text = (
        f"direct {direct_ratio:.2f} x ({spread(ratios[True])}; {median(rates[True]):.0f} MB/s), "
        f"buffered {buffered_ratio:.2f} x ({spread(ratios[False])}; {median(rates[False]):.0f} MB/s), "
        f"libkdumpfile {median(rates['peer']):.0f} MB/s"
    )
    return Measured(text, direct_ratio >= DIRECT_BARS[codec] and buffered_ratio >= BUFFERED_BAR)


for _codec, _least in DIRECT_BARS.items():
    bar(
        f"parallel-sequential-{_codec}",
        f"dd bs=8M of 1 GiB, cold: O_DIRECT >= {_least} x libkdumpfile in process, buffered >= {BUFFERED_BAR} x",
    )(lambda codec=_codec: sequential(codec))


# -- random ------------------------------------------------------------------------------------------------------------

RANDOM_READS = 100_000
READERS = 4


@bar(
    "parallel-random",
    f"random 4 KiB O_DIRECT of zlib, {READERS} readers: >= 1.3 x libkdumpfile's loop per wall second, p99 < 1 ms",
)
def parallel_random() -> Measured:
    dump = big("zlib-d0.kdump")
    addresses = random_list(dump, RANDOM_READS)
    ratios, rates, peers, p99 = [], [], [], []
    only_warm(dump)  # on both sides the dump's file is in the page cache: it is not the disk that is measured
    for _ in range(PAIRS):
        peer = libkdumpfile(dump, addresses)
        with mounted(dump) as mount:
            ours = readers(mount.path / "hmem", addresses, count=READERS)
        if ours.nbytes != peer.nbytes:
            raise RuntimeError(f"{ours.nbytes} bytes read, by libkdumpfile {peer.nbytes}")
        ratios.append(ours.reads / peer.reads)
        rates.append(ours.reads)
        peers.append(peer.reads)
        p99.append(ours.p99_us)
    value, late = median(ratios), median(p99)
    text = (
        f"{value:.2f} x ({spread(ratios)}; {median(rates):,.0f}/s, libkdumpfile {median(peers):,.0f}/s), "
        f"p99 {late / 1000:.2f} ms"
    )
    return Measured(text, value >= 1.3 and late < 1000)


# -- start-up ----------------------------------------------------------------------------------------------------------


def check_log(text: bytes, who: str) -> None:
    """All of the log, or an error."""
    if not all(part in text for part in LOG_PARTS):
        raise RuntimeError(f"{who}: the log is not whole: {text[-200:].decode(errors='replace')}")


def first_dmesg(dump: Path) -> None:
    """mount, cat dmesg, umount."""
    with mounted(dump) as mount:
        said = run("cat", mount.path / "dmesg")
    check_log(said.stdout, "dumpfs")


def crash_log(dump: Path, vmlinux: Path) -> None:
    """The log, by crash."""
    said = run(tool("crash"), "-s", vmlinux, dump, input=b"log\nquit\n")
    check_log(said.stdout, "crash")


def need_drgn() -> None:
    """`Missing` where drgn is."""
    if not (VENV_BIN / "drgn").exists():
        raise Missing("drgn is not installed")


def drgn_log(dump: Path, vmlinux: Path) -> None:
    """The log, by drgn."""
    said = run(VENV_BIN / "drgn", "-q", "-c", dump, "-s", vmlinux, "-e", DRGN_LOG)
    check_log(said.stdout, "drgn")


@bar(
    "mount-dmesg",
    "caches dropped: mount + cat dmesg + umount of 1 GiB (zlib) < 0.8 s by wall, >= 3 x faster than crash, than drgn",
)
def mount_dmesg() -> Measured:
    dump, vmlinux = big("zlib-d0.kdump"), guest_vmlinux()
    need_drgn()
    sides: dict[str, Callable[[], None]] = {
        "dumpfs": lambda: first_dmesg(dump),
        "crash": lambda: crash_log(dump, vmlinux),
        "drgn": lambda: drgn_log(dump, vmlinux),
    }
    cold: dict[str, list[float]] = {name: [] for name in sides}
    again: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(PAIRS):
        for name, command in sides.items():
            drop_caches()
            cold[name].append(seconds(command))
            again[name].append(seconds(command))
    faster = {
        name: median(theirs / ours for theirs, ours in zip(cold[name], cold["dumpfs"], strict=True))
        for name in ("crash", "drgn")
    }
    text = f"{median(cold['dumpfs']):.2f} s ({spread(cold['dumpfs'])}; {median(again['dumpfs']):.2f} s when cached)"
    for name, value in faster.items():
        text += f", {name} {value:.1f} x ({median(cold[name]):.2f} s; {median(again[name]):.2f} s when cached)"
    return Measured(text, median(cold["dumpfs"]) < 0.8 and min(faster.values()) >= 3)


def mount_cpu(*dumps: Path) -> float:
    """CPU seconds until `dumpfs mount` returned: the command's and those of the processes that serve the mount."""
    before = children_cpu()
    with mounted(*dumps) as mount:
        return children_cpu() - before + mount.cpu()


@bar("mount-startup", "`dumpfs mount` of any dump returns within 0.35 s CPU, the processes behind the mount included")
def mount_startup() -> Measured:
    dumps: dict[str, tuple[Path, ...]] = {name: (corpus(name),) for name in (*TINY, *OTHERS)}
    dumps["tiny/mkd-split-zlib-d31"] = tuple(corpus(name) for name in SPLIT)
    for form in ("lzo-d0.kdump", "zlib-d0.kdump", "vmcore", "elf"):
        path = big(form)
        dumps[path.name] = (path,)
    used: dict[str, float] = {}
    for name, paths in dumps.items():
        warm(*paths)
        # What else runs on the machine can only add CPU, by cold caches: the least of five counts.
        used[name] = min(mount_cpu(*paths) for _ in range(PAIRS))
    worst = max(used, key=lambda name: used[name])
    text = f"{len(used)} dumps, at most {used[worst]:.2f} s ({worst}), in the middle {median(used.values()):.2f} s"
    return Measured(text, used[worst] <= 0.35)


def flattened() -> Path:
    """The benchmark guest's lzo dump as a flattened stream of makedumpfile's."""
    command = f"{tool('makedumpfile')} -F -l -d 0 {big('vmcore')} 2>/dev/null"
    return made("guest-lzo-d0.flat", lambda out: ["sh", "-c", f"{command} > {out}"])


def only_mount(dump: Path) -> float:
    """Wall seconds of `dumpfs mount` alone."""
    point = Path(tempfile.mkdtemp(prefix="dumpfs-bar-"))
    try:
        used = seconds(lambda: run(DUMPFS, "mount", dump, point))
        if not os.path.ismount(point):
            raise RuntimeError("mount failed")
        run(DUMPFS, "umount", point)
        return used
    finally:
        point.rmdir()


@bar("flattened-mount", "a flattened 1 GiB dump: at most 0.5 s more to mount than a rearranged one (wall)")
def flattened_mount() -> Measured:
    plain, flat, one_page = big("lzo-d0.kdump"), flattened(), random_list(big("lzo-d0.kdump"), 1)
    warm(plain, flat)
    sides: dict[str, Callable[[Path], float]] = {
        "dumpfs": only_mount,
        "libkdumpfile": lambda dump: seconds(lambda: libkdumpfile(dump, one_page)),
    }
    try:
        vmlinux, crash = guest_vmlinux(), tool("crash")
        warm(vmlinux)
        sides["crash"] = lambda dump: seconds(lambda: run(crash, "-s", vmlinux, dump, input=b"quit\n"))
    except Missing:
        pass
    texts, more = [], {}
    for name, open_dump in sides.items():
        try:
            pairs = [(open_dump(flat), open_dump(plain)) for _ in range(PAIRS if name != "crash" else 1)]
        except RuntimeError as exc:
            texts.append(f"{name} cannot: {str(exc).strip().rsplit(': ', 1)[-1]}")
            continue
        more[name] = median(a - b for a, b in pairs)
        a, b = (median(column) for column in zip(*pairs, strict=True))
        texts.append(f"{name} {more[name]:+.2f} s ({a:.2f} s, rearranged {b:.2f} s)")
    return Measured(", ".join(texts), more["dumpfs"] <= 0.5)


# -- gdb ---------------------------------------------------------------------------------------------------------------


def backtraces(dump: Path, local: Path, file: Path | None) -> tuple[float, float, float, float]:
    """Wall seconds of full backtraces of all tasks: first and second time through a fresh mount, and on a local copy.

    Before each first one caches are dropped, and gdb and the vmlinux, which both sides need alike, read again.
    """
    texts, used = [], []
    with mounted(dump) as mount:
        for before in ((), (f'set $dumpfs_core = "{local}"',)):
            only_warm(*([file] if file else []))
            run(tool("gdb"), "-nx", "-batch", "-ex", "python 1")
            for _ in range(2):
                text, wall = gdb(mount.path, "thread apply all bt", file=file, before=before)
                texts.append(text.split("\nThread ", 1)[1])
                used.append(wall)
    if len(set(texts)) != 1 or texts[0].count("\nThread ") < 20:
        raise RuntimeError("the backtraces differ")
    first, second, local_first, local_second = used
    return first, second, local_first, local_second


@bar(
    "gdb-local",
    "gdb VMLINUX, first backtrace of all tasks of 1 GiB (zlib), caches dropped: <= 1.3 x that on a local ELF",
)
def gdb_local() -> Measured:
    dump, vmlinux = big("zlib-d0.kdump"), guest_vmlinux()
    local = local_core(dump)
    texts, ratios = [], []
    # The dump's own symbols are made by the mount for both sides; the copy finds them made already.
    for what, file in (("VMLINUX", vmlinux), ("own symbols", None)):
        rows = [backtraces(dump, local, file) for _ in range(3)]
        value, repeated = median(r[0] / r[2] for r in rows), median(r[1] / r[3] for r in rows)
        first, second, local_first, local_second = (median(column) for column in zip(*rows, strict=True))
        texts.append(
            f"{what} {value:.2f} x ({first:.2f} s, local {local_first:.2f} s), "
            f"second time {repeated:.2f} x ({second:.2f} s, local {local_second:.2f} s)"
        )
        ratios.append(value)
    return Measured("; ".join(texts), ratios[0] <= 1.3)


def local_core(dump: Path) -> Path:
    """/vmcore-tasks of a dump, copied once to the local disk."""

    def copy(out: Path) -> list[str | Path]:
        with mounted(dump) as mount:
            shutil.copyfile(mount.path / "vmcore-tasks", out)
        return ["true"]

    return made(f"{dump.name}.vmcore-tasks", copy)
