"""The command line of `dumpfs write`: makedumpfile's options work, or are refused with a reason; its page lists all."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dumpfs.cli.main import verb_parser
from dumpfs.cli.write_options import IGNORED, REFUSED, refuse_unsupported, resolve
from dumpfs.errors import UsageError

PAGE = Path(__file__).resolve().parents[3] / "man" / "dumpfs-write.1"
MAKEDUMPFILE = [
    *(f"-{letter}" for letter in "clpzEFRdLxigfDvhbeX"),
    *("--split", "--reassemble", "--splitblock-size", "--num-threads", "--config", "--eppic", "--extension"),
    *("--dump-dmesg", "--partial-dmesg", "--message-level", "--show-stats", "--dry-run", "--check-params", "--vtop"),
    *("--cyclic-buffer", "--non-cyclic", "--non-mmap", "--work-dir", "--mem-usage", "--diskset"),
    *("--xen-syms", "--xen-vmcoreinfo", "--xen_phys_start"),
]
"""Every option of makedumpfile 1.7's own help and manual."""


def parse(line: str) -> argparse.Namespace:
    return verb_parser("write").parse_intermixed_args(line.split())


def options() -> set[str]:
    return {name for action in verb_parser("write")._actions for name in action.option_strings}


@pytest.mark.parametrize("name", MAKEDUMPFILE)
def test_every_option_of_makedumpfile_is_known(name):
    assert name in options()


def test_page_names_every_option():
    text = PAGE.read_text()
    named = {f"-{word}" for line in re.findall(r"^\.It (Fl .*)$", text, re.M) for word in re.findall(r"[\w-]+", line)}
    missing = {name for name in options() - {"--help"} if name not in named and name.replace("--", "---") not in named}
    assert not missing


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_page_is_lint_clean():
    done = subprocess.run(["mandoc", "-T", "lint", PAGE], capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert found == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused_option_is_named_with_its_reason(name):
    value = " x" if REFUSED[name][1] else ""
    with pytest.raises(UsageError, match=f"{name} is not offered: "):
        refuse_unsupported(parse(f"{name}{value} a b"))


@pytest.mark.parametrize("name", IGNORED)
def test_tuning_option_is_accepted(name):
    value = " 1" if name in ("--cyclic-buffer", "--work-dir", "-b") else ""
    assert resolve(parse(f"{name}{value} a b")).action == "write"


@pytest.mark.parametrize(
    ("line", "sources", "outputs"),
    [
        ("a b", ("a",), ("b",)),
        ("a -l b -d 31", ("a",), ("b",)),
        ("a1 a2 b", ("a1", "a2"), ("b",)),
        ("--split a b c d", ("a",), ("b", "c", "d")),
        ("--reassemble a b c", ("a", "b"), ("c",)),
        ("-F a", ("a",), ("-",)),
        ("-F a b", ("a",), ("b",)),
        ("-R b", (), ("b",)),
        ("-R a b", ("a",), ("b",)),
        ("-g f -x v", (), ("f",)),
        ("--dump-dmesg a b", ("a",), ("b",)),
    ],
)
def test_file_names(line, sources, outputs):
    resolved = resolve(parse(line))
    assert (resolved.sources, resolved.outputs) == (sources, outputs)


@pytest.mark.parametrize(
    ("line", "levels"),
    [("-d31 a b", (31,)), ("-d 31 a b", (31,)), ("-d 1,3,31 a b", (1, 3, 31)), ("-l a b", (0,)), ("-ld 16 a b", (16,))],
)
def test_level_in_every_spelling(line, levels):
    assert resolve(parse(line)).levels == levels


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "",
        "-d 32 a b",
        "-d x a b",
        "-c -l a b",
        "-c -E a b",
        "-g f",
        "-R",
        "--split a b",
        "--split -E a b c",
        "--reassemble -d 1 a b",
        "-R --dump-dmesg a b",
        "--message-level 32 a b",
    ],
)
def test_nonsense_is_a_usage_error(line):
    with pytest.raises(UsageError):
        resolve(parse(line))
