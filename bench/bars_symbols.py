"""Bars of the dead kernel's own symbols, tasks, modules and configuration."""

from __future__ import annotations

import json
import lzma
import os
import re

from barlib import CORPUS, Measured, Missing, bar, corpus, mounted

_TINY = ("tiny/kdump-kaslr.vmcore", "tiny/mkd-raw-d31.kdump")


def system_map() -> dict[str, set[tuple[int, str]]]:
    """Name to (link address, type) of tiny's System.map."""
    found: dict[str, set[tuple[int, str]]] = {}
    for line in lzma.decompress((CORPUS / "tiny/truth/System.map.xz").read_bytes()).decode().splitlines():
        address, kind, name = line.split()
        found.setdefault(name, set()).add((int(address, 16), kind))
    return found


def kallsyms(text: str) -> list[tuple[int, str, str]]:
    """(address, type, name) of the kernel's own symbols in a text like /proc/kallsyms."""
    rows = (line.split() for line in text.splitlines() if "[" not in line)
    return [(int(address, 16), kind, name) for address, kind, name in rows]


def compare_symbols(text: str, offset: int, link: dict[str, set[tuple[int, str]]]) -> tuple[int, int, int]:
    """(symbols, wrong ones, those of the map that are missing) of a kallsyms text against a System.map."""
    rows = kallsyms(text)
    wrong = sum((a, k) not in link.get(n, ()) and (a - offset, k) not in link.get(n, ()) for a, k, n in rows)
    missing = set(link) - {name for _, _, name in rows}
    return len(rows), wrong, len(missing)


# What scripts/kallsyms.c of the kernel leaves out of its table, by name: they are in System.map only.
_LEFT_OUT = re.compile(
    r"^(__crc_|__efistub_|__kstrtab|__kallsyms|kallsyms_(offsets|relative_base|num_syms|names|markers|token|seqs)"
    r"|__start_static_call|__bss_|_end$|__brk_|__initramfs|\.L|\$)"
)


@bar(
    "kallsyms",
    "/kallsyms: every System.map symbol that the kernel's own table keeps, same address and type (tiny, deb61)",
)
def symbols() -> Measured:
    link = system_map()
    texts = []
    ok = True
    for name in _TINY:
        with mounted(corpus(name)) as mount:
            text = (mount.path / "kallsyms").read_text()
            info = (mount.path / "vmcoreinfo").read_text()
        offset = int(re.search(r"^KERNELOFFSET=(\w+)", info, re.M)[1], 16)  # type: ignore[index]
        count, wrong, missing = compare_symbols(text, offset, link)
        kept = {n for n in link if not _LEFT_OUT.match(n)} - {n for _, _, n in kallsyms(text)}
        texts.append(f"{name.split('/')[1]}: {count} symbols, {wrong} wrong, {missing} of the map not in the table")
        texts[-1] += f" ({len(kept)} of them unexplained: {sorted(kept)[:5]})" if kept else " (all by kallsyms' rules)"
        ok &= count > 10_000 and not wrong and not kept
    link, offset = debian_map()
    with mounted(corpus("deb61/raw-d31.kdump")) as mount:
        text = (mount.path / "kallsyms").read_text()
    count, wrong, missing = compare_symbols(text, offset, link)
    kept = {n for n in link if not _LEFT_OUT.match(n)} - {n for _, _, n in kallsyms(text)}
    texts.append(
        f"deb61: {count} symbols, {wrong} wrong, {missing} of the map not in the table, {len(kept)} unexplained"
    )
    ok &= count > 80_000 and not wrong and not kept
    return Measured("; ".join(texts), ok)


def debian_map() -> tuple[dict[str, set[tuple[int, str]]], int]:
    """deb61's System.map, from the debug package, and its KASLR offset."""
    path = "/usr/lib/debug/boot/System.map-6.1.0-56-cloud-amd64"
    if not os.path.exists(path):
        raise Missing(f"{path} (package linux-image-6.1.0-56-cloud-amd64-dbg)")
    found: dict[str, set[tuple[int, str]]] = {}
    with open(path) as file:
        for line in file:
            address, kind, name = line.split()
            found.setdefault(name, set()).add((int(address, 16), kind))
    return found, 0x7A00000


@bar("tasks-and-modules", "/tasks/*/comm = task_struct.comm, /modules = truth (deb61); /config = the kernel's (tiny)")
def tasks_and_modules() -> Measured:
    with open(CORPUS / "deb61/truth/drgn.jsonl") as file:
        truth = json.loads(file.readline())
    comms = {pid: comm for pid, _, _, comm, *_ in truth["tasks"]}
    listed = {(name, int(base, 16), size) for name, base, size in truth["modules"]}
    with mounted(corpus("deb61/raw-d31.kdump")) as mount:
        names = [n for n in os.listdir(mount.path / "tasks") if n.isdigit()]
        ours = {int(n): (mount.path / "tasks" / n / "comm").read_text().rstrip("\n") for n in names}
        rows = [line.split() for line in (mount.path / "modules").read_text().splitlines()]
    modules = {(row[0], int(row[5], 16), int(row[1])) for row in rows}
    same_comm = sum(ours.get(pid) == comm for pid, comm in comms.items())
    with mounted(corpus("tiny/kdump-kaslr.vmcore")) as mount:
        same_config = (mount.path / "config").read_bytes() == (CORPUS / "tiny/truth/config").read_bytes()
    ok = same_comm == len(comms) > 50 and set(ours) == set(comms) and modules == listed and same_config
    return Measured(
        f"{same_comm} of {len(comms)} comms same ({len(ours)} tasks listed); {len(modules & listed)} of {len(listed)} "
        f"modules same in name, address and size; config identical {same_config}",
        ok,
    )
