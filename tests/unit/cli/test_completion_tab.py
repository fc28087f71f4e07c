"""A real TAB in a real shell: names that a stranger has chosen are completed, and never run."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "completion"
DEADLINE = 60.0
"""Seconds after which a shell that does not answer is given up."""
QUIET = 0.05
"""Seconds without a character after which a shell has said what it had to say."""
HOSTILE = {
    "substitution": "a$(touch PWNED).kdump",
    "backticks": "b`touch PWNED`",
    "variable": "c${HOME}$HOME",
    "double quote": 'd"; touch PWNED; "',
    "single quote": "e'; touch PWNED; '",
    "space": "f a  b",
    "newline": "g\ntouch PWNED\n",
    "backslash": "h\\ \\$(touch PWNED)",
    "glob": "i*?[a-z]{b,c}",
    "operators": "j; touch PWNED & | > PWNED < (x)",
    "arithmetic": "k$((PWNED[$(touch PWNED)]))",
    "escape": "l\x1b]0;PWNED\x07",
    "history": "m!!",
    "percent": "n%s%n",
    "tilde": "o~root",
    "equals": "p=q:r",
    "bytes": os.fsdecode(b"q\xff\xfe"),
    "ampersand": "r&s",
    "IFS": "s$(touch${IFS}PWNED)",
}
SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
SET_UP = {
    "bash": "PS1=; source {folder}/dumpfs.bash; bind 'set enable-bracketed-paste off'",
    "zsh": (
        "PS1=; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; unset zle_bracketed_paste;"
        " zstyle ':completion:*' list-prompt ''"
    ),
}


class Shell:
    """An interactive shell on a terminal; `dumpfs` and `mount.dumpfs` in it write their arguments to a file.

    Args:
        name: of the shell.
        folder: where it stands.
        mounts: what the kernel is said to have mounted.
    """

    def __init__(self, name: str, folder: Path, mounts: Path | None = None) -> None:
        self.name = name
        self._folder = folder
        self._told = folder.parent / f"told-{name}"
        self._pid, self._terminal = pty.fork()
        if not self._pid:
            os.chdir(folder)
            more = {"TERM": "dumb", "HOME": str(folder.parent), "HISTFILE": "", "LC_ALL": "C.UTF-8"}
            os.execvpe(SHELLS[name][0], SHELLS[name], {**os.environ, **more})
        told = shlex.quote(str(self._told))
        tell = f"{{ printf '%s\\0' \"$@\" >{told}.new; mv {told}.new {told}; }}"
        lines = [SET_UP[name].format(folder=shlex.quote(str(FOLDER)))]
        lines += [f"dumpfs() {tell}", f"mount.dumpfs() {tell}"]
        if mounts is not None:
            lines.append(f"_dumpfs_mounts={shlex.quote(str(mounts))}")
        for line in [*lines, "dumpfs ready"]:
            os.write(self._terminal, line.encode() + b"\n")
        assert self.arguments() == ["ready"]

    def complete(self, line: str) -> list[str]:
        """The arguments that the command gets when TAB and ENTER are typed behind `line`."""
        self._told.unlink(missing_ok=True)
        os.write(self._terminal, line.encode() + b"\t")
        self._listen()
        os.write(self._terminal, b"\n")
        return self.arguments()

    def _listen(self) -> None:
        while select.select([self._terminal], [], [], QUIET)[0]:
            os.read(self._terminal, 4096)

    def arguments(self) -> list[str]:
        """What the command was given, as soon as it was."""
        until = time.monotonic() + DEADLINE
        said = b""
        while not self._told.exists():
            if select.select([self._terminal], [], [], 0.02)[0]:
                said += os.read(self._terminal, 4096)
            assert time.monotonic() < until, said
        return [os.fsdecode(word) for word in self._told.read_bytes().split(b"\0")[:-1]]

    def close(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion") / "dumps"
    folder.mkdir()
    for name in HOSTILE.values():
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def mounts(folder: Path) -> Path:
    """A table of mounts as the kernel writes it (fs/proc_namespace.c)."""
    path = folder.parent / "mounts"
    with path.open("wb") as table:
        table.write(b"proc /proc proc rw 0 0\n")
        for name in HOSTILE.values():
            point = b"/" + os.fsencode(name)
            for character in b"\\ \t\n#":
                point = point.replace(bytes((character,)), b"\\%03o" % character)
            table.write(b"/dump " + point + b" fuse.dumpfs ro 0 0\n")
    return path


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path, mounts: Path) -> Iterator[Shell]:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    shell = Shell(request.param, folder, mounts)
    yield shell
    shell.close()
    assert not list(folder.parent.rglob("PWNED")), "a name was run"


@pytest.mark.tool
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("before", ["mount -o vmlinux=", "mount -o ro,log=", "info -o vmcoreinfo=", "check "])
def test_name_of_a_file_is_completed_and_not_run(shell: Shell, folder: Path, name: str, before: str) -> None:
    found = shell.complete(f"dumpfs {before}{HOSTILE[name][0]}")
    *words, last = before.split(" ")
    assert found == [*words, last + HOSTILE[name]]
    assert not (folder / "PWNED").exists()


@pytest.mark.tool
@pytest.mark.parametrize("name", ["substitution", "newline", "bytes"])
@pytest.mark.parametrize("before", ["mount -o part=", "mount -o vmcoreinfo=", "cat -o vmlinux=", "dmesg -o vmlinux="])
def test_every_option_with_a_file_does_so(shell: Shell, folder: Path, name: str, before: str) -> None:
    *words, last = before.split(" ")
    assert shell.complete(f"dumpfs {before}{HOSTILE[name][0]}")[: len(words) + 1] == [*words, last + HOSTILE[name]]
    assert not (folder / "PWNED").exists()


@pytest.mark.tool
@pytest.mark.parametrize("name", HOSTILE)
def test_mount_point_is_completed_and_not_run(shell: Shell, folder: Path, name: str) -> None:
    assert shell.complete(f"dumpfs umount /{HOSTILE[name][0]}") == ["umount", f"/{HOSTILE[name]}"]
    assert not (folder / "PWNED").exists()


@pytest.mark.tool
def test_name_that_was_begun_in_quotes_is_completed(shell: Shell) -> None:
    assert shell.complete("dumpfs info -o vmlinux=f\\ a")[-1] == f"vmlinux={HOSTILE['space']}"


@pytest.mark.tool
@pytest.mark.parametrize("line", ["mount -o vmlinux=", "umount ", "info ", "cat ", "mount "])
def test_list_of_hostile_names_runs_nothing(shell: Shell, folder: Path, line: str) -> None:
    shell.complete(f"dumpfs {line}")
    assert not (folder / "PWNED").exists()


@pytest.mark.tool
@pytest.mark.parametrize("line", ["-o $(touch PWNED)=", "-o `touch PWNED`,vm", "-o vmlinux=$(touch PWNED)/"])
def test_what_was_typed_is_not_run_by_tab(shell: Shell, folder: Path, line: str) -> None:
    """ENTER would run it, as always; TAB does not."""
    if shell.name == "zsh":
        pytest.skip("zsh itself expands at TAB what its user has typed")
    os.write(shell._terminal, f"dumpfs info {line}\t".encode())
    shell._listen()
    os.write(shell._terminal, b"\x03")
    shell._listen()
    assert shell.complete("dumpfs inf") == ["info"]
    assert not (folder / "PWNED").exists()
