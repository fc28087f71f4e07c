"""One memory in every form that makedumpfile makes reads the same: compressed, plain, flattened, split, ELF.

The committed sample serves everywhere; the corpus has a whole /proc/vmcore, of which every level can be made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.formats.base import DumpImage
from dumpfs.units import PageState

pytestmark = pytest.mark.tool

FORMS = {"zlib": ["-c"], "lzo": ["-l"], "none": []}
COMPRESSION = {"zlib": 1, "lzo": 2, "none": 0}


@pytest.fixture(scope="module")
def makedumpfile() -> Callable[..., bytes]:
    """Runs makedumpfile; what it writes to stdout."""
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")

    def run(*arguments: str | Path) -> bytes:
        done = subprocess.run(["makedumpfile", *map(str, arguments)], capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr.decode() + done.stdout[-2000:].decode(errors="replace")
        return done.stdout

    return run


def digest(image: DumpImage, states: bool = True) -> str:
    """SHA-1 of all of RAM, and of the pages' states."""
    result = hashlib.sha1()
    for first, stop in image.ram.runs():
        for low in range(first, stop, 1024):
            data, found = image.read_run(low, min(1024, stop - low))
            result.update(data)
            if states:
                result.update(found)
    return result.hexdigest()


def digest_of(*paths: Path, states: bool = True) -> str:
    image = open_image(list(paths))
    try:
        return digest(image, states)
    finally:
        image.close()


@pytest.fixture(scope="module")
def sample_digest(data) -> str:
    return digest_of(data("mkd-raw-d31.kdump"))


@pytest.mark.parametrize("form", FORMS)
def test_sample_in_every_compression(makedumpfile, data, tmp_path, sample_digest, form):
    out = tmp_path / "out"
    makedumpfile(*FORMS[form], "-d", "31", data("mkd-raw-d31.kdump"), out)
    image = open_image([out])
    assert image.meta.compression == form
    assert image.meta.header["main"]["status"] == COMPRESSION[form]
    assert digest(image) == sample_digest
    image.close()


def test_sample_flattened(makedumpfile, data, tmp_path, sample_digest):
    out = tmp_path / "out.flat"
    out.write_bytes(makedumpfile("-F", "-c", "-d", "31", data("mkd-raw-d31.kdump")))
    assert out.read_bytes()[:12] == b"makedumpfile"
    assert digest_of(out) == sample_digest


@pytest.mark.parametrize("count", [2, 3])
def test_sample_split_and_put_together_again(makedumpfile, data, tmp_path, sample_digest, count):
    parts = [tmp_path / f"part{i}" for i in range(count)]
    split = ["--split", "--splitblock-size", "1024", "-l", "-d", "31"]
    makedumpfile(*split, data("mkd-raw-d31.kdump"), *parts)
    assert digest_of(*reversed(parts)) == sample_digest
    makedumpfile("--reassemble", *parts, tmp_path / "whole")
    assert digest_of(tmp_path / "whole") == sample_digest
    image = open_image(parts[1:])
    assert not image.meta.complete
    assert image.lost.count() > 0
    assert image.stored.count() + image.lost.count() == 6088
    image.close()


def test_empty_parts_of_a_small_dump_do_no_harm(makedumpfile, data, tmp_path, sample_digest):
    """A split block is 1 GiB by default: all but the first part of a small dump hold nothing."""
    parts = [tmp_path / f"part{i}" for i in range(3)]
    makedumpfile("--split", "-c", "-d", "31", data("mkd-raw-d31.kdump"), *parts)
    assert digest_of(*parts) == sample_digest


# -- a whole /proc/vmcore, of the corpus -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vmcore(corpus) -> Path:
    return corpus("tiny/kdump-kaslr.vmcore")


@pytest.fixture(scope="module")
def whole(vmcore):
    """The memory as the kernel itself gave it."""
    image = open_image([vmcore])
    yield image
    image.close()


def check_against(image: DumpImage, whole: DumpImage, oracle: dict[str, str]) -> int:
    """Every stored page is the vmcore's; returns how many there are."""
    stored = 0
    for first, stop in image.ram.runs():
        for low in range(first, stop, 1024):
            count = min(1024, stop - low)
            data, states = image.read_run(low, count)
            expected, _ = whole.read_run(low, count)
            if not any(states):
                assert data == expected
                stored += count
                continue
            for i, state in enumerate(states):
                assert state in (PageState.STORED, PageState.EXCLUDED, PageState.PARTIAL)
                if state != PageState.EXCLUDED:
                    assert data[i * 4096 : (i + 1) * 4096] == expected[i * 4096 : (i + 1) * 4096]
                    stored += 1
    for address, sha1 in oracle.items():
        data, state, _ = image.read_page(int(address) // 4096)
        if state is PageState.STORED:
            assert hashlib.sha1(data).hexdigest() == sha1
    return stored


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 31])
def test_every_form_of_a_vmcore(makedumpfile, corpus, vmcore, whole, tmp_path, level):
    oracle = json.loads(corpus("tiny/pages-kdump-kaslr.json").read_text())
    digests = {}
    for form, options in FORMS.items():
        out = tmp_path / form
        makedumpfile(*options, "-d", str(level), vmcore, out)
        image = open_image([out])
        assert (image.meta.version, image.meta.dump_level, image.meta.nr_cpus) == (6, level, 2)
        assert image.meta.machine == "x86_64"
        assert image.meta.uts.release == "6.1.192-dumpfs-tiny"
        assert check_against(image, whole, oracle) == image.stored.count()
        assert (image.stored.count() == image.ram.count()) == (level < 2)
        digests[form] = digest(image)
        image.close()
    flat = tmp_path / "flat"
    flat.write_bytes(makedumpfile("-F", "-l", "-d", str(level), vmcore))
    digests["flat"] = digest_of(flat)
    parts = [tmp_path / "part1", tmp_path / "part2"]
    makedumpfile("--split", "--splitblock-size", "1024", "-c", "-d", str(level), vmcore, *parts)
    digests["split"] = digest_of(*parts)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 31])
def test_elf_forms_of_a_vmcore(makedumpfile, corpus, vmcore, whole, tmp_path, level):
    oracle = json.loads(corpus("tiny/pages-kdump-kaslr.json").read_text())
    out, flat = tmp_path / "elf", tmp_path / "flat"
    makedumpfile("-E", "-d", str(level), vmcore, out)
    flat.write_bytes(makedumpfile("-F", "-E", "-d", str(level), vmcore))
    assert digest_of(out) == digest_of(flat)
    image = open_image([out])
    assert image.meta.format == "elf"
    assert check_against(image, whole, oracle) > 6000
    if level == 0:
        assert digest(image, states=False) == digest(whole, states=False)
    image.close()
