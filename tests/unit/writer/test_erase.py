"""Redaction: the grammar, and that every byte named is overwritten wherever a run begins."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import UsageError
from dumpfs.formats import open_image
from dumpfs.writer.erase import EraseRules, PhysicalEraser, Rule
from dumpfs.writer.rearrange import set_mark

PAGE = 4096
ranges = st.lists(
    st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 3 * PAGE), st.sampled_from([b"X", b"Y"])), max_size=8
)


@given(ranges, st.integers(0, 30), st.integers(1, 10))
def test_every_byte_of_a_range_is_overwritten_and_no_other(found, first, count):
    eraser = PhysicalEraser(found, PAGE, 0)
    data = eraser.patch(first, b"." * (count * PAGE))
    base = first * PAGE
    erased = {at for start, size, _ in found for at in range(max(start, base), min(start + size, base + len(data)))}
    assert {base + i for i, byte in enumerate(data) if byte != ord(".")} == erased


def test_untouched_pages_are_the_same_object():
    data = bytes(PAGE)
    assert PhysicalEraser([(PAGE, 1, b"X")], PAGE, 0).patch(0, data) is data


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("erase jiffies", Rule("jiffies")),
        ("erase a.b.c", Rule("a.b.c")),
        ("erase a size 12", Rule("a", size=12)),
        ("erase a size 2K", Rule("a", size=2048)),
        ("erase a size len.b", Rule("a", size_path="len.b")),
        ("erase a nullify", Rule("a", nullify=True)),
        ("  erase a  # why", Rule("a")),
    ],
)
def test_rule(line, rule):
    assert EraseRules.parse(f"[vmlinux]\n{line}\n".encode(), "conf", None).rules == [rule]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[ext4]\n", r"line 1: section \[ext4\] is not offered"),
        ("\nfor x in list_head\n", "line 2: loops"),
        ("erase\n", "line 1: 'erase' is no command"),
        ("remove a\n", "line 1: 'remove' is no command"),
        ("erase a size\n", "not understood"),
        ("erase 1a\n", "is not SYMBOL"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        EraseRules.parse(text.encode(), "conf", None)


@pytest.mark.parametrize("form", ["-l", "-E"])
def test_erased_name_is_in_no_part_of_the_dump(corpus, tmp_path, form):
    source, vmlinux = corpus("tiny/kdump-kaslr.vmcore"), corpus("tiny/vmlinux")
    (tmp_path / "conf").write_text("[vmlinux]\nerase init_uts_ns.name.nodename\nerase saved_command_line\n")
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", form, "-d", "31", "--message-level", "4"]
    options = ["--config", tmp_path / "conf", "-x", vmlinux]
    subprocess.run([*command, *options, source, tmp_path / "out"], check=True)
    image = open_image([str(tmp_path / "out")])
    assert image.eraseinfo() == b"erase init_uts_ns.name.nodename 65\nerase saved_command_line 41\n"
    assert image.meta.uts.nodename.strip("X") == ""
    image.close()


@pytest.mark.parametrize("marked", [False, True], ids=["before its rename", "while it was resumed"])
def test_whole_dump_that_was_killed_is_resumed(corpus, tmp_path, marked):
    source, vmlinux = corpus("tiny/kdump-kaslr.vmcore"), corpus("tiny/vmlinux")
    (tmp_path / "conf").write_text("erase saved_command_line\n")
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", "-l", "-d", "31", "--message-level", "4"]
    options = ["--config", tmp_path / "conf", "-x", vmlinux]
    out, part = tmp_path / "out", tmp_path / "out.partial"
    subprocess.run([*command, *options, source, out], check=True)
    whole = out.read_bytes()
    out.rename(part)
    if marked:
        part.write_bytes(set_mark(whole))
    subprocess.run([*command, *options, "--resume", source, out], check=True)
    assert out.read_bytes() == whole
    out.rename(part)
    (tmp_path / "conf").write_text("erase jiffies\n")  # other rules make another dump
    done = subprocess.run([*command, *options, "--resume", source, out], capture_output=True, check=False)
    assert done.returncode == 2
    assert part.read_bytes() == whole
