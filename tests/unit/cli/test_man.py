"""The man pages say what the programs do: lint, options in both directions, examples."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.cli import mount_helper
from dumpfs.cli.main import VERBS, main, top_parser, verb_parser
from dumpfs.errors import DumpfsError
from dumpfs.fuse.options import _IGNORED, _IGNORED_PREFIXES, OPTIONS, split_options
from dumpfs.units import PageState
from dumpfs.vfs.tree import ROWS

MAN = Path(__file__).resolve().parents[3] / "man"
OTHER_PAGES = {"write": "dumpfs-write.1"}
"""Verbs that have a page of their own, which is compared elsewhere."""
OWN_VERBS = [verb for verb in VERBS if verb not in OTHER_PAGES]
PAGES = ["dumpfs.1", "dumpfs.5", "mount.dumpfs.8"]


def lines(page: str) -> list[str]:
    return (MAN / page).read_text().splitlines()


def section(page: str, *titles: str) -> list[str]:
    """Lines of a .Sh section, or of the .Ss section in it that a second title names."""
    found = lines(page)
    for macro, title in zip((".Sh", ".Ss"), titles, strict=False):
        rest = found[found.index(f"{macro} {title}") + 1 :]
        stop = next((i for i, line in enumerate(rest) if line.startswith(f"{macro} ")), len(rest))
        found = rest[:stop]
    return found


def plain(arguments: str) -> str:
    """What a line of .Cm, .Ar and Ns macros shows."""
    text = ""
    glue = True
    for word in arguments.split():
        if word == "Ns":
            glue = True
        elif word not in ("Cm", "Ar", "Fl", "Op"):
            text += word if glue else " " + word
            glue = False
    return text


def flag_items(page_lines: list[str]) -> dict[tuple[str, ...], str]:
    """Options of `.It Fl q , -quiet Ar n` lines: (names) to the argument's word, '' without."""
    found = {}
    for line in page_lines:
        if line.startswith(".It Fl "):
            names, _, argument = line.removeprefix(".It Fl ").partition(" Ar ")
            found[tuple(f"-{name.strip()}" for name in names.split(" , "))] = argument
    return found


def parser_flags(parser: argparse.ArgumentParser) -> dict[tuple[str, ...], str]:
    """The same of a parser; -h is said once for all verbs."""
    found = {}
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            metavar = str(action.metavar or "") if action.nargs != 0 else ""
            found[tuple(action.option_strings)] = metavar.lower()
    return found


def spelled(flags: dict[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """With the macros of -o's argument as the parser's metavar says it."""
    lists = "option Ns Op Cm \\&, Ns Ar option ..."
    return {names: "option[,option...]" if word == lists else word for names, word in flags.items()}


@pytest.mark.tool
@pytest.mark.parametrize("page", PAGES)
def test_page_is_lint_clean(page: str) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(MAN / page)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_options_of_a_verb_are_those_of_its_parser(verb: str) -> None:
    assert spelled(flag_items(section("dumpfs.1", "DESCRIPTION", f"dumpfs {verb}"))) == parser_flags(verb_parser(verb))


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_synopsis_names_every_option_of_a_verb(verb: str) -> None:
    text = "\n".join(section("dumpfs.1", "SYNOPSIS"))
    part = next(part for part in text.split(".Nm\n") if part.startswith(f".Cm {verb}\n"))
    shown = {"-" + name for name in re.findall(r"Fl (\S+)", part)}
    # One name of each option is enough.
    flags = parser_flags(verb_parser(verb))
    assert shown <= {name for names in flags for name in names}
    assert [names for names in flags if not shown & set(names)] == []


def test_verb_with_a_page_of_its_own_refers_to_it() -> None:
    text = (MAN / "dumpfs.1").read_text()
    for verb, page in OTHER_PAGES.items():
        name, _, number = page.rpartition(".")
        assert f".It Cm {verb}\n" in text
        assert f".Xr {name} {number}" in text


def test_every_verb_is_listed() -> None:
    items = [line.removeprefix(".It Cm ") for line in section("dumpfs.1", "DESCRIPTION") if line.startswith(".It Cm ")]
    assert items == list(VERBS)


def test_options_before_the_verb_are_named() -> None:
    flags = {names[-1] for names in parser_flags(top_parser())} | {"--help"}
    text = "\n".join(section("dumpfs.1", "SYNOPSIS"))
    assert flags == {"--version", "--help"}
    assert all(f"Fl {flag[1:]}" in text for flag in flags)


def test_mount_options_are_those_of_the_table() -> None:
    items = [line.removeprefix(".It ") for line in section("dumpfs.1", "OPTIONS OF -o") if line.startswith(".It ")]
    table = [option.usage.partition("=") for option in OPTIONS]
    assert [plain(item) for item in items] == [
        name + equals + (value if "|" in value else value.lower()) for name, equals, value in table
    ]


def test_options_that_read_and_that_mount_are_told_apart() -> None:
    text = "\n".join(section("dumpfs.1", "OPTIONS OF -o"))
    reading, mounting = text.split("These options concern the mount:")
    for option in OPTIONS:
        assert f".It Cm {option.name}" in (mounting if option.mounting else reading)


def test_options_of_the_helper_are_those_of_its_parser() -> None:
    flags = spelled(flag_items(section("mount.dumpfs.8", "OPTIONS")))
    assert flags == parser_flags(mount_helper.parser())


def test_ignored_options_are_those_of_the_helper() -> None:
    text = "\n".join(section("mount.dumpfs.8", "OPTIONS", "Ignored options"))
    options, prefixes = (
        {word for line in part.splitlines() if line.startswith(".Cm ") for word in re.findall(r"[^\s,.]+", line[4:])}
        for part in text.split("compared with the program by a test")[1].split("So are options")
    )
    assert options == set(_IGNORED)
    assert prefixes == set(_IGNORED_PREFIXES)


def test_exit_codes_of_the_helper_are_told() -> None:
    items = [line for line in section("mount.dumpfs.8", "EXIT STATUS") if line.startswith(".It ")]
    assert items == [f".It {int(code)}" for code in mount_helper.Code]


def error_classes(base: type[DumpfsError] = DumpfsError) -> set[type[DumpfsError]]:
    return {base}.union(*(error_classes(kind) for kind in base.__subclasses__()))


def test_exit_codes_are_told() -> None:
    items = {line.split()[1] for line in section("dumpfs.1", "EXIT STATUS") if line.startswith(".It ")}
    codes = {str(kind.exit_code) for kind in error_classes() if kind.__module__ == "dumpfs.errors"}
    assert items == codes | {"0", "128+"}


def test_every_file_of_the_tree_is_described() -> None:
    items = " ".join(line for line in section("dumpfs.5", "THE TREE") if line.startswith(".It Pa "))
    described = {path.rstrip("/") for path in re.findall(r"(?<= )/(\S+)", items)}
    assert described == {row.path for row in ROWS}


def test_every_state_is_described() -> None:
    items = [line.split()[2] for line in section("dumpfs.5", "PAGES WITHOUT CONTENT") if line.startswith(".It Cm ")]
    assert items == [state.name.lower() for state in PageState]


def test_every_attribute_is_described(data, tmp_path: Path) -> None:
    from dumpfs.vfs.context import Dump
    from tests.build.kdump import KdumpSpec, split_parts
    from tests.unit.cli.dumps import MAX_PFN, memory

    names = []
    for i, part in enumerate(split_parts(memory({3}), KdumpSpec(status=1), [0, 32, MAX_PFN])[:2]):
        names.append(str(tmp_path / f"dump.{i}"))
        Path(names[-1]).write_bytes(part.data[:-100] if i else part.data)
    dump = Dump.open(names)
    attributes = {name for pfn in (0, 0x3F) for name in dump.tree.lookup_path(f"pages/{pfn}").xattrs()}  # type: ignore[union-attr]
    dump.close()
    items = {line.split()[2] for line in section("dumpfs.5", "PAGES AS FILES") if line.startswith(".It Va ")}
    assert items == attributes


def fstab_lines() -> list[list[str]]:
    found = [line.split() for line in section("mount.dumpfs.8", "EXAMPLES") if " dumpfs " in line]
    assert len(found) > 3
    return found


@pytest.mark.parametrize("line", fstab_lines(), ids=lambda line: line[3])
def test_fstab_examples_have_options_that_the_helper_takes(line: list[str]) -> None:
    from dumpfs.fuse.options import parse_options

    assert len(line) == 6
    own = mount_helper.own_options([line[3]], sloppy=False)
    parse_options(own)
    assert set(own) <= set(split_options([line[3]]))


def commands() -> list[str]:
    """The commands of dumpfs(1)'s examples."""
    text = section("dumpfs.1", "EXAMPLES")
    return [line.removeprefix(".Dl ") for line in text if re.match(r"(\.Dl )?(dumpfs|gdb|ls) ", line)]


@pytest.mark.parametrize("command", [c for c in commands() if re.match("dumpfs (info|dmesg|cat|check) ", c)])
def test_examples_without_a_mount_work(
    command: str, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "dump.kdump").symlink_to(data("mkd-raw-d31.kdump"))
    if "vmlinux" in command:
        from tests.unit.linux.test_identity import build_vmlinux

        (tmp_path / "vmlinux").write_bytes(build_vmlinux())
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command.split("|")[0])[1:]
    expected = 1 if "vmlinux" in command else 0  # the vmlinux made here is of another kernel
    assert main(arguments) == expected
    out, err = capfdbinary.readouterr()
    assert out
    assert err == b""


@pytest.mark.parametrize("command", [c for c in commands() if re.match("dumpfs (mount|umount) ", c)])
def test_examples_with_a_mount_parse(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    verb_parser(verb).parse_args(arguments)


def names_in(facts: object, *, free: tuple[str, ...] = ()) -> set[str]:
    """Names of a JSON object and of the objects in it; those in `free` have names of their own."""
    if isinstance(facts, list):
        return set().union(*(names_in(item) for item in facts))
    if not isinstance(facts, dict):
        return set()
    inside = (names_in(value, free=free) for name, value in facts.items() if name not in free)
    return set(facts).union(*inside)


def said(page_lines: list[str]) -> set[str]:
    """Words of .Li macros."""
    found: set[str] = set()
    for line in page_lines:
        _, literal, words = line.partition("Li ")
        found |= set(words.replace(",", " ").split()) if literal else set()
    return found


def test_json_of_info_is_described(data: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", str(data("mkd-raw-d31.kdump"))]) == 0
    facts = json.loads(capfd.readouterr().out)
    described = section("dumpfs.5", "INFO.JSON")
    assert [line.split()[2] for line in described if line.startswith(".It Li ")] == list(facts)
    assert names_in(facts, free=("header", "uts", "origins", "not_offered", "codecs")) <= said(described)


def test_json_of_check_is_described(data: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    main(["check", "--json", str(data("mkd-incomplete-zlib-d31.kdump"))])
    report = json.loads(capfd.readouterr().out)
    assert report["bad"]
    assert names_in(report) <= said(section("dumpfs.1", "DESCRIPTION", "dumpfs check"))


def test_json_of_write_is_described(
    data: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from dumpfs.cli.write import _WORDS

    assert main(["write", "--json", str(data("mkd-raw-d31.kdump")), str(tmp_path / "out")]) == 0
    report = json.loads(capfd.readouterr().out)
    described = said(section("dumpfs-write.1", "OPTIONS"))
    assert names_in(report) | set(_WORDS) <= described


@pytest.mark.parametrize("page", ["dumpfs.1", "dumpfs.5"])
def test_number_of_listed_pages_is_true(page: str) -> None:
    from dumpfs.vfs.views.pages import MAX_LISTED

    assert set(re.findall(r"(?:at most|up to) (\d{6,})", (MAN / page).read_text())) == {str(MAX_LISTED)}


def test_number_of_ranges_is_true() -> None:
    from dumpfs.vfs.views.memmap import MAX_LINES

    assert f"It has {MAX_LINES} ranges at most" in (MAN / "dumpfs.5").read_text()


def test_defaults_of_options_are_true() -> None:
    from dumpfs.fuse.options import DEFAULT_UMASK, DEFAULT_WORKERS, MAX_WORKERS
    from dumpfs.memory.cache import DEFAULT_CACHE_BYTES

    text = " ".join(section("dumpfs.1", "OPTIONS OF -o"))
    assert f"{DEFAULT_CACHE_BYTES >> 20}M by default" in text
    assert f"The default is {DEFAULT_UMASK:03o}." in text
    assert f"from 1 to {MAX_WORKERS}. The default is one for each processor, at most {DEFAULT_WORKERS}." in text
