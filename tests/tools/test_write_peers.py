"""crash, drgn, gdb and libkdumpfile open what `dumpfs write` made, in every codec and as ELF."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.tool
RELEASE = "6.1.192-dumpfs-tiny"
FORMS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "none": "", "elf": "-E"}
SYSTEM_PYTHON = "/usr/bin/python3"
_LIBKDUMPFILE = """
import kdumpfile, sys
dump = kdumpfile.kdumpfile(sys.argv[1])
print(dump.attr["linux.uts.release"], bytes(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, 0x4400000, 4)).hex())
"""


@pytest.fixture(scope="module", params=FORMS)
def dump(
    request: pytest.FixtureRequest, corpus: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("written") / "dump"
    form = [FORMS[request.param]] if FORMS[request.param] else []
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", "--message-level", "4", *form, "-d", "31"]
    subprocess.run([*command, corpus("tiny/kdump-kaslr.vmcore"), target], check=True)
    return target


@pytest.mark.skipif(shutil.which("crash") is None, reason="needs crash")
def test_crash_tells_the_panic(dump, corpus):
    done = subprocess.run(
        ["crash", "-s", corpus("tiny/vmlinux"), dump],
        input=b"sys\nquit\n",
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert f"RELEASE: {RELEASE}".encode() in done.stdout
    assert b"sysrq triggered crash" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("drgn") is None, reason="needs drgn")
def test_drgn_reads_the_kernels_name(dump, corpus):
    code = 'print(prog["init_uts_ns"].name.release.string_().decode())'
    done = subprocess.run(
        [sys.executable, "-m", "drgn", "-q", "-c", dump, "-s", corpus("tiny/vmlinux"), "-e", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == RELEASE, done.stderr


def test_libkdumpfile_reads_the_kernels_name_and_a_page(dump):
    probe = subprocess.run([SYSTEM_PYTHON, "-c", "import kdumpfile"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs libkdumpfile's Python binding")
    done = subprocess.run([SYSTEM_PYTHON, "-c", _LIBKDUMPFILE, dump], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [RELEASE, "488d2551"], done.stderr


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_gdb_reads_the_elf_core(dump, corpus):
    if dump.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("gdb reads ELF cores only")
    commands = [
        f"symbol-file -o 0xf600000 {corpus('tiny/vmlinux')}",
        f"target core {dump}",
        "p init_uts_ns.name.release",
    ]
    arguments = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert f'"{RELEASE}"' in done.stdout
