"""libkdumpfile reads the same pages that we do, from files it can open."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.units import PageState
from dumpfs.vfs.context import Dump
from tests.build import notes
from tests.build.kdump import KdumpSpec, build_kdump
from tests.property.samples import memory

pytestmark = pytest.mark.tool

PYTHON = "/usr/bin/python3"
"""The distribution's own, which python3-libkdumpfile is for."""

_PEER = """
import hashlib, sys, kdumpfile
dump = kdumpfile.kdumpfile(sys.argv[1])
for line in sys.stdin:
    pfn = int(line)
    try:
        data = dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn * 4096, 4096)
    except Exception as exc:
        print(pfn, type(exc).__name__)
    else:
        print(pfn, hashlib.sha1(data).hexdigest())
"""


@pytest.fixture(scope="module", autouse=True)
def _peer() -> None:
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import kdumpfile"], capture_output=True).returncode:
        pytest.skip("needs python3-libkdumpfile")


def compare(path: Path, step: int = 1) -> int:
    """Every `step`-th page of RAM; returns how many had content."""
    image = open_image([path])
    pfns = [p for run in image.ram.runs() for p in range(*run)][::step]
    done = subprocess.run(
        [PYTHON, "-c", _PEER, str(path)],
        input="".join(f"{p}\n" for p in pfns),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    theirs = dict(line.split() for line in done.stdout.splitlines())
    assert len(theirs) == len(pfns)
    stored = 0
    for pfn in pfns:
        data, state, _ = image.read_page(pfn)
        if state is PageState.STORED:
            assert theirs[str(pfn)] == hashlib.sha1(data).hexdigest(), f"page {pfn:#x}"
            stored += 1
        else:
            assert theirs[str(pfn)].endswith("Exception"), f"page {pfn:#x} is {state.name} here"
    image.close()
    return stored


@pytest.mark.parametrize("layout", ["64", "32packed"])
@pytest.mark.parametrize("version", [1, 4, 6])
def test_a_built_dump(tmp_path, layout, version):
    """What the tests build is what others read, too."""
    spec = KdumpSpec(
        layout=layout,
        version=version,
        machine="x86_64" if layout == "64" else "i686",
        vmcoreinfo=notes.vmcoreinfo_text(),
        notes=notes.prstatus(1, "little") if layout == "64" else b"",
    )
    path = tmp_path / "built"
    path.write_bytes(build_kdump(memory(), spec).data)
    assert compare(path) > 20


def test_the_sample(data):
    assert compare(data("mkd-raw-d31.kdump")) == 6088


@pytest.mark.parametrize("option", ["-c", "-l"], ids=["zlib", "lzo"])
def test_the_sample_compressed(data, tmp_path, option):
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")
    out = tmp_path / "out"
    subprocess.run(
        ["makedumpfile", option, "-d", "31", data("mkd-raw-d31.kdump"), out],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert compare(out, 3) > 1000


def test_our_core_of_the_sample(data, tmp_path):
    core = tmp_path / "vmcore"
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump, core.open("wb") as out:
        node = dump.tree.lookup_path("vmcore")
        for offset in range(0, node.size(), 1 << 20):
            out.write(node.read(offset, 1 << 20))
    assert compare(core) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny/mkd-snappy-d31.kdump", "tiny/mkd-zstd-d31.kdump", "tiny/kdump-kaslr.vmcore"])
def test_dumps_of_the_corpus(corpus, name):
    assert compare(corpus(name), 5) > 1000
