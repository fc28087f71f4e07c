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


def compare_symbols(text: str, offset: int, link: dict[str, set[tuple[int, str]]]) -> tuple[str, bool]:
    """What a kallsyms text says against a System.map, and whether it is all right.

    The kernel's own table leaves out absolute symbols and the table itself (Linux scripts/kallsyms.c), and calls
    per-CPU ones, which System.map gives a type of data and which do not move with KASLR, absolute.
    """
    rows = kallsyms(text)
    wrong = 0
    for address, kind, name in rows:
        known = link.get(name, set())
        per_cpu = kind == "A" and any(a == address and k in "dDbB" for a, k in known)
        wrong += not per_cpu and (address - offset, kind) not in known
    found = {name for _, _, name in rows}
    missing = {n for n, places in link.items() if n not in found and any(k != "A" for _, k in places)}
    missing = {n for n in missing if not n.startswith("kallsyms_")}
    return f"{len(rows)} symbols, {wrong} wrong, {len(missing)} missing", not wrong and not missing and len(
        rows
    ) > 10_000


@bar("kallsyms", "/kallsyms: every System.map symbol of the kernel's table, same address and type; tiny, deb61")
def symbols() -> Measured:
    texts = []
    ok = True
    for name in (*_TINY, "deb61/raw-d31.kdump"):
        with mounted(corpus(name)) as mount:
            text = (mount.path / "kallsyms").read_text()
            info = (mount.path / "vmcoreinfo").read_text()
        offset = int(re.search(r"^KERNELOFFSET=(\w+)", info, re.M)[1], 16)  # type: ignore[index]
        said, good = compare_symbols(text, offset, system_map() if name in _TINY else debian_map())
        texts.append(f"{name.split('/')[1]}: {said}")
        ok &= good
    return Measured("; ".join(texts), ok)


def debian_map() -> dict[str, set[tuple[int, str]]]:
    """deb61's System.map, from the debug package."""
    path = "/usr/lib/debug/boot/System.map-6.1.0-56-cloud-amd64"
    if not os.path.exists(path):
        raise Missing(f"{path} (package linux-image-6.1.0-56-cloud-amd64-dbg)")
    found: dict[str, set[tuple[int, str]]] = {}
    with open(path) as file:
        for line in file:
            address, kind, name = line.split()
            found.setdefault(name, set()).add((int(address, 16), kind))
    return found


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
