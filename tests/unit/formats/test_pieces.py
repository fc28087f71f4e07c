"""Flat images in pieces: with holes squeezed out, or a file for each bank of RAM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from dumpfs.errors import SourceError, UsageError
from dumpfs.formats import open_image
from dumpfs.formats.pieces import Piece, parse_piece, split_address
from dumpfs.fuse.options import parse_open_options
from dumpfs.sources.joined import JoinedSource
from dumpfs.sources.local import FileSource, MemorySource
from dumpfs.units import PageState

PAGE = 4096
FIRST, SECOND = bytes([1]) * 2 * PAGE, bytes([2]) * 3 * PAGE


@pytest.fixture
def squeezed(tmp_path: Path) -> Path:
    path = tmp_path / "ram.bin"
    path.write_bytes(FIRST + SECOND)
    return path


def states(image, *pfns: int) -> list[PageState]:
    return [image.read_page(pfn)[1] for pfn in pfns]


def test_pieces_of_one_file_are_where_the_option_says(squeezed):
    image = open_image([squeezed], pieces=[Piece(0, 0, 2 * PAGE), Piece(2 * PAGE, 4 << 30, 3 * PAGE)])
    high = (4 << 30) // PAGE
    assert states(image, 1, 2, high - 1, high, high + 2, high + 3) == [
        PageState.STORED, PageState.ABSENT, PageState.ABSENT, PageState.STORED, PageState.STORED, PageState.ABSENT
    ]  # fmt: skip
    assert image.read_page(high)[0] == SECOND[:PAGE]
    assert image.meta.variant == "2 pieces"
    image.close()


def test_files_are_where_their_names_say(tmp_path):
    for name, data in (("a", FIRST), ("b", SECOND)):
        (tmp_path / name).write_bytes(data)
    image = open_image([f"{tmp_path}/b@0x40000000", f"{tmp_path}/a@1M"])
    assert image.read_page((1 << 20) // PAGE)[0] == FIRST[:PAGE]
    assert image.read_page((1 << 30) // PAGE + 2)[0] == SECOND[:PAGE]
    assert image.ram.count() == 5
    image.close()


def test_file_that_is_really_called_so_wins(tmp_path):
    path = tmp_path / "dump@0x1000"
    path.write_bytes(FIRST)
    assert split_address(path) == (str(path), None)
    assert split_address(f"{tmp_path}/dump@4K") == (f"{tmp_path}/dump", 4096)
    assert split_address(f"{tmp_path}/me@home") == (f"{tmp_path}/me@home", None)


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([Piece(0, 0, 2 * PAGE), Piece(0, PAGE, PAGE)], "overlap"),
        ([Piece(0, 0, 6 * PAGE)], "beyond the end of the file"),
        ([Piece(1 << 60, 0, PAGE)], "beyond the end of the file"),
        ([Piece(0, 5, PAGE)], "does not begin at a page"),
        ([Piece(7, 0, PAGE)], "does not begin at a page"),
        ([Piece(0, 0, 0)], "is empty"),
        ([Piece(0, 1 << 63, PAGE)], "where no memory is"),
    ],
)
def test_pieces_that_cannot_be_are_refused(squeezed, pieces, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        open_image([squeezed], pieces=pieces)
    assert "multiples of 4096" in (caught.value.hint or "")


def test_files_and_pieces_must_fit_each_other(squeezed, tmp_path):
    with pytest.raises(UsageError, match="pieces of one file"):
        open_image([squeezed, squeezed], pieces=[Piece(0, 0, PAGE)])
    with pytest.raises(UsageError, match="pieces of one file"):
        open_image([f"{squeezed}@0x1000"], pieces=[Piece(0, 0, PAGE)])
    with pytest.raises(UsageError, match="is not said"):
        open_image([f"{squeezed}@0x1000", squeezed])
    with pytest.raises(UsageError, match="says itself"):
        open_image([f"{squeezed}@0x1000"], format="elf")
    with pytest.raises(SourceError, match="No such file"):
        open_image([f"{tmp_path}/none@0x1000"])


def test_option_takes_one_or_many():
    found = parse_open_options(["map=0:0:8M,8M:0x1000000:32M", "map=40M:1G:4K,caller"])
    assert found.pieces == (Piece(0, 0, 8 << 20), Piece(8 << 20, 16 << 20, 32 << 20), Piece(40 << 20, 1 << 30, 4096))
    assert found.caller
    for text in ("0:0", "0:0:0:0", "a:b:c", "-1:0:4K", ""):
        with pytest.raises(UsageError):
            parse_open_options([f"map={text}"])
    with pytest.raises(UsageError, match="unknown option"):
        parse_open_options(["caller,0:0:8M"])
    assert parse_piece("0x10:1K:1") == Piece(16, 1024, 1)


def test_joined_sources_read_as_one(tmp_path):
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 20)
    joined = JoinedSource([MemorySource(b"abc"), FileSource(sparse), MemorySource(b""), MemorySource(b"xyz")])
    size = joined.size
    assert size == (1 << 20) + 6
    assert joined.read_at(0, 5) == b"abc\0\0"
    assert joined.read_at(size - 4, 100) == b"\0xyz"
    assert joined.read_at(size, 5) == joined.read_at(size + 9, 5) == b""
    assert joined.next_data(0) == 0
    assert joined.next_data(5) in (5, size - 3)
    assert joined.next_hole(0) in (3, size)
    assert joined.next_data(size) == size
    assert joined.change() is None
    sparse.write_bytes(b"now shorter")
    assert joined.read_at(0, 20) == b"abcnow shorter"
    assert "truncated" in (joined.change() or "")
    joined.close()


def test_a_real_machine_is_read_from_its_pieces(corpus: Callable[[str], Path], tmp_path, capfd):
    """RAM of 48 MiB of which 8 to 16 MiB, below the kernel, were a hole: squeezed, in pieces, in two files."""
    image = open_image([corpus("tiny/qemu-kaslr.elf")])
    data = b"".join(image.read_run(first, 1024)[0] for first in range(0, 0x3000, 1024))
    image.close()
    low, high = data[: 8 << 20], data[16 << 20 :]
    whole, squeezed = tmp_path / "whole", tmp_path / "squeezed"
    whole.write_bytes(data)
    squeezed.write_bytes(low + high)
    (tmp_path / "low").write_bytes(low)
    (tmp_path / "high").write_bytes(high)

    def log(*words: str) -> str:
        assert main(["dmesg", *words]) == 0
        return hashlib.sha256(capfd.readouterr().out.encode()).hexdigest()

    wanted = log("-o", "format=raw", str(whole))
    assert log("-o", "map=0:0:8M,8M:16M:32M", str(squeezed)) == wanted
    assert log(f"{tmp_path}/low@0", f"{tmp_path}/high@0x1000000") == wanted
    assert main(["info", "-o", "format=raw", str(squeezed)]) == 0
    assert "the kernel's name lies 0x800000 bytes below where it says it is" in capfd.readouterr().out
