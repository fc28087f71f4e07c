"""Notes of a process's core in a kernel's dump: no file for debuggers of kernels passes them on."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from dumpfs.notes import parse_notes
from dumpfs.vfs.context import Dump
from dumpfs.writer.pipeline.run import Hooks, WriteRequest, write_dump
from tests.build.notes import note

NT_FILE, NT_PRPSINFO, NT_AUXV = 0x46494C45, 3, 6
CORES = ["vmcore", "vmcore-tasks", "vmcore-kern"]


def file_note(*names: str) -> bytes:
    """NT_FILE: mappings of files."""
    rows = b"".join(struct.pack("<3Q", 0x400000 + i * 0x1000, 0x401000 + i * 0x1000, 0) for i in range(len(names)))
    desc = struct.pack("<2Q", len(names), 4096) + rows + "".join(f"{name}\0" for name in names).encode()
    return note(b"CORE", NT_FILE, desc, "little")


def add_notes(path: Path, notes: bytes) -> None:
    """Move an ELF dump's notes to its end, with others behind them."""
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<Q", data, 32)[0]  # PT_NOTE is the first program header
    offset, size = struct.unpack_from("<Q", data, at + 8)[0], struct.unpack_from("<Q", data, at + 32)[0]
    whole = bytes(data[offset : offset + size]) + notes
    struct.pack_into("<Q", data, at + 8, len(data))
    struct.pack_into("<Q", data, at + 32, len(whole))
    path.write_bytes(data + whole)


@pytest.fixture(scope="module")
def hostile(data, tmp_path_factory) -> tuple[Path, Path]:
    """An ELF dump with notes of a process, and the FIFO that its NT_FILE names."""
    folder = tmp_path_factory.mktemp("notes")
    fifo = folder / "fifo"
    fifo.touch()  # a FIFO in the test with gdb
    path = folder / "dump.elf"
    request = WriteRequest(sources=(str(data("mkd-raw-d31.kdump")),), outputs=(str(path),), threads=1, elf=True)
    write_dump(request, Hooks())
    command = note(b"CORE", NT_PRPSINFO, b"\x1b]0;owned\x07".ljust(136, b"\0"), "little")
    add_notes(path, file_note(str(fifo), "/etc/shadow") + command + note(b"CORE", NT_AUXV, bytes(32), "little"))
    return path, fifo


def notes_of(core: bytes) -> list[tuple[bytes, int]]:
    """Owners and types of the notes of an ELF file."""
    at = struct.unpack_from("<Q", core, 32)[0]
    offset, size = struct.unpack_from("<Q", core, at + 8)[0], struct.unpack_from("<Q", core, at + 32)[0]
    return [(n.name, n.type) for n in parse_notes(core[offset : offset + size], "little")]


@pytest.mark.parametrize("view", CORES)
def test_cores_have_only_notes_of_kernels_and_status_names_the_others(hostile, view):
    path, fifo = hostile
    with Dump.open([str(path)]) as dump:
        node = dump.tree.lookup_path(view)
        head = node.read(0, 1 << 20)
        assert set(notes_of(head)) == {(b"CORE", 1), (b"VMCOREINFO", 0)}
        assert str(fifo).encode() not in head
        status = dump.tree.lookup_path("status")
        told = status.read(0, 1 << 20).decode()
    sentence = f"/{view}: notes that no kernel's dump needs were left out: CORE NT_FILE, CORE NT_PRPSINFO, CORE NT_AUXV"
    assert told.count(sentence) == 1


def test_an_elf_that_is_written_has_only_notes_of_kernels(hostile, tmp_path):
    path, _ = hostile
    told: list[str] = []
    request = WriteRequest(sources=(str(path),), outputs=(str(tmp_path / "out"),), threads=1, elf=True)
    write_dump(request, Hooks(notice=told.append))
    assert set(notes_of((tmp_path / "out").read_bytes())) == {(b"CORE", 1), (b"VMCOREINFO", 0)}
    assert "notes that no kernel's dump needs were left out: CORE NT_FILE, CORE NT_PRPSINFO, CORE NT_AUXV" in told


def test_a_kdump_that_is_written_keeps_all_notes_as_makedumpfile_does(hostile, tmp_path):
    path, fifo = hostile
    write_dump(WriteRequest(sources=(str(path),), outputs=(str(tmp_path / "out"),), threads=1), Hooks())
    assert str(fifo).encode() in (tmp_path / "out").read_bytes()


@pytest.mark.tool
@pytest.mark.parametrize("form", [*CORES, "written"])
def test_gdb_does_not_open_what_the_dump_names(hostile, tmp_path, form):
    # It would wait for a writer of the FIFO for ever.
    tool = shutil.which("gdb")
    if tool is None:
        pytest.skip("needs gdb")
    path, fifo = hostile
    core = tmp_path / "core"
    if form == "written":
        request = WriteRequest(sources=(str(path),), outputs=(str(core),), threads=1, elf=True)
        write_dump(request, Hooks())
    else:
        with Dump.open([str(path)]) as dump, core.open("wb") as out:
            node = dump.tree.lookup_path(form)
            for offset in range(0, node.size(), 1 << 20):
                out.write(node.read(offset, 1 << 20))
    fifo.unlink()
    subprocess.run(["mkfifo", fifo], check=True)
    try:
        done = subprocess.run(
            [tool, "-nx", "-batch", "-ex", "info threads", "-core", core], capture_output=True, text=True, timeout=120
        )
    finally:
        fifo.unlink()
        fifo.touch()
    assert "LWP 1" in done.stdout
    assert "\x1b" not in done.stdout
