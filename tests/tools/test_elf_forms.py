"""Every ELF form of one real memory holds the same pages, whoever wrote it."""

import hashlib
import json
import shutil
import subprocess

import pytest

from dumpfs.formats import open_image
from dumpfs.units import PageState

PAGE = 4096


def check_pages(image, truth: dict[str, str]) -> dict[PageState, int]:
    """How many pages of the truth have each state; those with content must have the right one."""
    found: dict[PageState, int] = {}
    for paddr, sha1 in truth.items():
        data, state, _ = image.read_page(int(paddr) // PAGE)
        found[state] = found.get(state, 0) + 1
        if state is PageState.STORED:
            assert hashlib.sha1(data).hexdigest() == sha1, f"page at {int(paddr):#x}"
    return found


@pytest.mark.parametrize(
    ("dump", "pages", "complete"),
    [
        ("tiny/kdump-kaslr.vmcore", "tiny/pages-kdump-kaslr.json", True),
        ("tiny/qemu-kaslr.elf", "tiny/pages-qemu-kaslr.json", True),
        ("tiny/mkd-incomplete-elf-d31.elf", "tiny/pages-mkd.json", False),
    ],
)
def test_pages_of_real_elf_dumps_are_right(corpus, dump, pages, complete):
    image = open_image([corpus(dump)])
    truth = json.loads(corpus(pages).read_text())
    found = check_pages(image, truth)
    assert image.meta.complete is complete
    assert image.meta.nr_cpus == 2
    if complete:
        assert found == {PageState.STORED: len(truth)}
    else:
        assert found[PageState.LOST] > 50
    image.close()


@pytest.mark.tool
@pytest.mark.parametrize("options", [["-d", "31"], ["-d", "0"], ["-d", "31", "-F"]], ids=" ".join)
def test_pages_of_makedumpfiles_elf_are_right(corpus, tmp_path, options):
    if not shutil.which("makedumpfile"):
        pytest.skip("needs makedumpfile")
    source = corpus("tiny/kdump-kaslr.vmcore")
    target = tmp_path / "out"
    if "-F" in options:  # to standard output
        with target.open("wb") as out:
            subprocess.run(["makedumpfile", "-E", *options, source], check=True, stdout=out, stderr=subprocess.DEVNULL)
    else:
        subprocess.run(["makedumpfile", "-E", *options, source, target], check=True, capture_output=True)
    image, whole = open_image([target]), open_image([source])
    found = check_pages(image, json.loads(corpus("tiny/pages-kdump-kaslr.json").read_text()))
    assert set(found) <= {PageState.STORED, PageState.EXCLUDED}
    assert found[PageState.STORED] >= 300
    assert image.meta.complete
    assert image.ram == whole.ram
    for first, stop in image.stored.runs():
        for pfn in range(first, stop, 1024):
            count = min(1024, stop - pfn)
            assert image.read_run(pfn, count) == whole.read_run(pfn, count)
    image.close()
    whole.close()
