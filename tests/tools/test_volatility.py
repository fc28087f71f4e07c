"""volatility3 finds in our cores what it finds in the dump: it says nothing when it does not find memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dumpfs.vfs.context import Dump
from tests.build.isf import build_isf

pytestmark = pytest.mark.tool

CRASH, KASLR_CRASH = "mkd-raw-d31.kdump", "tiny/kdump-kaslr.vmcore"


def read(dump: Dump, path: str) -> bytes:
    node = dump.tree.lookup_path(path)
    return node.read(0, node.size())


@pytest.fixture
def volatility(tmp_path):
    """Runs a plugin on a file, with a symbol table."""
    tool = Path(sys.executable).with_name("vol")
    if not tool.exists():
        pytest.skip("needs volatility3")
    for folder in ("symbols/linux", "cache"):
        (tmp_path / folder).mkdir(parents=True)

    def run(dump: Dump, file: Path, plugin: str) -> str:
        offset = re.search(rb"KERNELOFFSET=(\w+)", read(dump, "vmcoreinfo"))
        banner = read(dump, "version").removesuffix(b"\n") + b"\n"
        table = build_isf(
            read(dump, "btf"), read(dump, "kallsyms").decode(), banner, int(offset[1], 16) if offset else 0
        )
        (tmp_path / "symbols/linux/kernel.json").write_text(json.dumps(table))
        done = subprocess.run(
            [
                tool,
                "-q",
                "--offline",
                "--cache-path",
                tmp_path / "cache",
                "-s",
                tmp_path / "symbols",
                "-f",
                file,
                plugin,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def write_core(dump: Dump, view: str, target: Path) -> None:
    with target.open("wb") as out:
        node = dump.tree.lookup_path(view)
        for offset in range(0, node.size(), 1 << 20):
            out.write(node.read(offset, 1 << 20))


@pytest.mark.parametrize("view", ["vmcore", "vmcore-kern"])
def test_every_process_is_listed(view, data, tmp_path, volatility):
    with Dump.open([str(data(CRASH))]) as dump:
        write_core(dump, view, tmp_path / "core")
        said = volatility(dump, tmp_path / "core", "linux.pslist")
        expected = {int(entry[1]) for entry in dump.tree.lookup_path("tasks").entries(0)}
    rows = [line.split("\t") for line in said.splitlines() if line.startswith("0x")]
    assert {int(row[1]) for row in rows} == expected
    assert len(expected) > 30


def test_the_original_of_a_moved_kernel_gives_the_same(corpus, tmp_path, volatility):
    with Dump.open([str(corpus(KASLR_CRASH))]) as dump:
        write_core(dump, "vmcore", tmp_path / "core")
        ours = volatility(dump, tmp_path / "core", "linux.pslist")
        assert "kthreadd" in ours
        assert ours == volatility(dump, corpus(KASLR_CRASH), "linux.pslist")
