"""Where bytes of the tree go: files with holes, terminals without commands, pipes as they are."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.cli.dumps import PAGE, flat_memory, write_kdump

DUMPFS = str(Path(sys.executable).with_name("dumpfs"))
SECONDS = 60.0


def cat(stdout: object, *arguments: str) -> int:
    return subprocess.run([DUMPFS, "cat", *arguments], stdout=stdout, check=False, timeout=SECONDS).returncode  # type: ignore[call-overload]


@pytest.fixture
def dump(tmp_path: Path) -> str:
    return write_kdump(tmp_path / "dump.kdump")


def holes_of(path: Path) -> set[int]:
    """Numbers of the blocks that the file system does not store."""
    found = set()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for block in range(0, size, PAGE):
            try:
                data = os.lseek(file.fileno(), block, os.SEEK_DATA)
            except OSError:
                data = size
            if data >= min(block + PAGE, size):
                found.add(block // PAGE)
    return found


def zero_blocks(data: bytes) -> set[int]:
    return {i // PAGE for i in range(0, len(data), PAGE) if not any(data[i : i + PAGE])}


def test_zeros_are_holes_of_a_file(dump: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with empty.open("wb") as file:
        file.truncate(PAGE)
    if not holes_of(empty):
        pytest.skip("this file system tells of no holes")
    copy = tmp_path / "copy"
    with copy.open("wb") as file:
        assert cat(file, dump, "hmem") == 0
    assert copy.read_bytes() == flat_memory()
    assert zero_blocks(flat_memory())
    assert holes_of(copy) == zero_blocks(flat_memory())


def test_what_ends_in_zeros_has_its_size(dump: str, tmp_path: Path) -> None:
    last = max(zero_blocks(flat_memory()))
    copy = tmp_path / "copy"
    with copy.open("wb") as file:
        assert cat(file, "--count", str((last + 1) * PAGE), dump, "hmem") == 0
    assert copy.read_bytes() == flat_memory()[: (last + 1) * PAGE]


def test_bytes_that_are_there_are_overwritten_by_zeros(dump: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"x" * 2 * len(flat_memory()))
    with copy.open("r+b") as file:
        assert cat(file, dump, "hmem") == 0
    assert copy.read_bytes() == flat_memory() + b"x" * len(flat_memory())


def test_file_is_appended_to(dump: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for _ in range(2):
        with copy.open("ab") as file:
            assert cat(file, dump, "hmem") == 0
    assert copy.read_bytes() == flat_memory() * 2


def test_programs_that_share_an_output_write_one_behind_the_other(dump: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with copy.open("wb") as file:
        os.write(file.fileno(), b"before")
        assert cat(file, dump, "hmem") == 0
        os.write(file.fileno(), b"after")
    assert copy.read_bytes() == b"before" + flat_memory() + b"after"


def test_output_before_a_bad_page_has_its_size(tmp_path: Path) -> None:
    blocks = zero_blocks(flat_memory())
    bad = next(pfn for pfn in range(max(blocks) + 1, 64) if pfn not in blocks)
    dump = write_kdump(tmp_path / "bad.kdump", {bad})
    copy = tmp_path / "copy"
    with copy.open("wb") as file:
        assert cat(file, dump, "hmem") == 4
    assert copy.read_bytes() == flat_memory()[: bad * PAGE]


def on_terminal(*command: str) -> bytes:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        subprocess.Popen(command, stdout=theirs, stdin=subprocess.DEVNULL) as process,
    ):
        os.close(theirs)
        with suppress(OSError):  # EIO: nobody has the other end open any more
            while piece := terminal.read(65536):
                pieces.append(piece)
        assert process.wait(SECONDS) == 0
    return b"".join(pieces).replace(b"\r\n", b"\n")


def test_terminal_gets_no_control_characters(dump: str) -> None:
    said = on_terminal(DUMPFS, "cat", "--offset", "0xf000", "--count", "8K", dump, "hmem")
    assert all(c.isprintable() or c in "\n\t" for c in said.decode())
    assert b"\\x00" in said


def test_characters_are_not_cut_between_pieces(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from dumpfs.cli.output import TerminalOutput

    output = TerminalOutput()
    for byte in "é\x1b€".encode() + b"\xe2\x82":
        output.write(bytes([byte]))
    output.finish()
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == "é\\x1b€\\xe2\\x82".encode()
