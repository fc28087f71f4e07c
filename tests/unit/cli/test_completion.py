"""Shell completion offers the words that the commands take."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dumpfs.cli import mount_helper
from dumpfs.cli.main import VERBS, verb_parser
from dumpfs.formats.detect import FORMAT_NAMES
from dumpfs.fuse.options import OPTIONS
from dumpfs.vfs.tree import ROWS

FOLDER = Path(__file__).resolve().parents[3] / "completion"
BASH = FOLDER / "dumpfs.bash"
ZSH = FOLDER / "_dumpfs"

VALUES = {option.name: set(option.metavar.split("|")) for option in OPTIONS if "|" in option.metavar}
VALUES["format"] = set(FORMAT_NAMES)
VIEWS = {row.path + "/" * bool(row.space) for row in ROWS}


def option_words(*, mounting: bool) -> set[str]:
    """What -o takes, with = where a value must follow."""
    return {option.name + "=" * bool(option.metavar) for option in OPTIONS if mounting or not option.mounting}


def flags(verb: str) -> set[str]:
    """Every spelling of every option of a verb that its help shows."""
    shown = (action for action in verb_parser(verb)._actions if action.help != argparse.SUPPRESS)
    return {name for action in shown for name in action.option_strings}


def complete(line: str, command: str = "dumpfs", breaks: str = " \t\n\"'@><=;|&(:") -> list[str]:
    """What bash offers at the end of `line`."""
    words: list[str] = []
    for word in line.split(" "):
        words += [piece for piece in re.split(r"(=)", word) if piece or word == ""] if "=" in breaks else [word]
    function = {"dumpfs": "_dumpfs", "mount.dumpfs": "_mount_dumpfs"}[command]
    program = f"""
source {shlex.quote(str(BASH))}
COMP_WORDBREAKS={shlex.quote(breaks)}
COMP_LINE={shlex.quote(line)}
COMP_POINT={len(line)}
COMP_WORDS=({" ".join(map(shlex.quote, words))})
COMP_CWORD={len(words) - 1}
{function} {command}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []


def test_verbs_are_offered() -> None:
    assert set(complete("dumpfs ")) == {*VERBS, "--help", "--version"}


def test_verb_is_completed() -> None:
    assert complete("dumpfs che") == ["check"]


@pytest.mark.parametrize("verb", VERBS)
def test_flags_of_a_verb_are_offered(verb: str) -> None:
    assert set(complete(f"dumpfs {verb} -")) == flags(verb)


@pytest.mark.parametrize("verb", ["info", "cat", "dmesg", "check"])
def test_options_of_reading_are_offered(verb: str) -> None:
    assert set(complete(f"dumpfs {verb} -o ")) == option_words(mounting=False)


def test_options_of_mounting_are_offered() -> None:
    assert set(complete("dumpfs mount -o ")) == option_words(mounting=True)


def test_options_of_the_helper_are_offered() -> None:
    assert set(complete("mount.dumpfs dump mnt -o ", "mount.dumpfs")) == option_words(mounting=True)


def test_flags_of_the_helper_are_offered() -> None:
    names = {name for action in mount_helper.parser()._actions for name in action.option_strings}
    assert set(complete("mount.dumpfs -", "mount.dumpfs")) == names


@pytest.mark.parametrize("name", VALUES)
def test_values_of_an_option_are_offered(name: str) -> None:
    assert set(complete(f"dumpfs mount -o ro,{name}=")) == VALUES[name]


@pytest.mark.parametrize("name", VALUES)
def test_values_are_whole_words_where_bash_does_not_break_at_equals(name: str) -> None:
    found = complete(f"dumpfs mount -o ro,{name}=", breaks=" \t\n")
    assert set(found) == {f"ro,{name}={value}" for value in VALUES[name]}


def test_option_behind_a_value_is_offered() -> None:
    assert complete("dumpfs mount -o holes=zero,all") == ["zero,allow_other"]


def test_file_of_an_option_is_completed(tmp_path: Path) -> None:
    (tmp_path / "vmlinux-6.1").touch()
    found = complete(f"dumpfs mount -o ro,vmlinux={tmp_path}/vm")
    assert found == [f"{tmp_path}/vmlinux-6.1"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_option_with_a_file_or_name_offers_such(option) -> None:
    text = BASH.read_text()
    kinds = dict(re.findall(r"\[(\w+)\]=(FILE|USER|GROUP)$", text, re.MULTILINE))
    expected = option.metavar if option.metavar in ("FILE", "USER", "GROUP") else None
    assert kinds.get(option.name) == expected


def test_views_are_offered_after_a_dump() -> None:
    assert set(complete("dumpfs cat dump.kdump ")) == VIEWS


def test_views_are_not_offered_before_a_dump() -> None:
    assert complete("dumpfs cat --offset 4096 ") == []


@pytest.mark.parametrize("line", ["dumpfs info ", "dumpfs mount du", "dumpfs check -q ", "dumpfs info --vmlinux "])
def test_file_names_are_left_to_readline(line: str) -> None:
    assert complete(line) == []


def zsh_words(pattern: str) -> set[str]:
    return set(re.findall(pattern, ZSH.read_text()))


def zsh_block(name: str) -> str:
    """The lines of one verb's case."""
    text = ZSH.read_text()
    start = text.index(f"        ({name})\n")
    return text[start : text.index(";;", start)]


def test_zsh_offers_the_verbs() -> None:
    text = ZSH.read_text()
    block = text[text.index("verbs=(") :]
    found = re.findall(r'"(\w+):([^"]*)"', block[: block.index("    )")])
    assert found == [(name, verb.help) for name, verb in VERBS.items()]


@pytest.mark.parametrize("verb", VERBS)
def test_zsh_offers_the_flags_of_a_verb(verb: str) -> None:
    block = zsh_block(verb)
    found = set(re.findall(r"(?<![\w-])(--?[a-zA-Z][a-z-]*)(?=[=\[+]|,|\})", block))
    found |= {"-o"} if "$dump_options" in block or "$mount_options" in block else set()
    assert found | {"-h", "--help"} == flags(verb)


@pytest.mark.parametrize(("array", "mounting"), [("reading", False), ("mounting", True)])
def test_zsh_offers_the_options(array: str, mounting: bool) -> None:
    text = ZSH.read_text()
    block = text[text.index(f"    {array}=(") :]
    found = set(re.findall(r"'\*?(\w+)\[", block[: block.index("\n    )")]))
    assert found == {option.name for option in OPTIONS if option.mounting == mounting}


@pytest.mark.parametrize("name", VALUES)
def test_zsh_offers_the_values(name: str) -> None:
    match = re.search(rf"'{name}\[[^]]*\]:[^:]*:\(([^)]*)\)'", ZSH.read_text())
    assert match is not None
    assert set(match[1].split()) == VALUES[name]


def test_zsh_offers_the_views() -> None:
    match = re.search(r"views=\(([^)]*)\)", ZSH.read_text())
    assert match is not None
    assert set(match[1].split()) == VIEWS


@pytest.mark.tool
def test_zsh_can_parse_the_file() -> None:
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    done = subprocess.run(["zsh", "-n", str(ZSH)], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
