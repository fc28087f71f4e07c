"""Answers to READDIRPLUS that are made without libfuse."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from dumpfs.fuse.listing import list_bare
from dumpfs.vfs.node import DirNode, Entry, FileNode, Node
from tests.work import bounded_work

FILES = [(9, b"9", 1009), (10, b"10", 1010), (12345678, b"12345678", 7), (123456789, b"123456789", 1 << 60)]


@dataclass(slots=True)
class Names(DirNode):
    """Lists four files; with `pair` a folder before them."""

    BARE: ClassVar[bool] = True
    pair: bool = False

    def lookup(self, name: str) -> Node | None:
        return None

    def entries(self, cookie: int) -> Iterator[Entry]:
        if self.pair:
            yield 1, "sub", Names(5)
        yield from (row for row in FILES if row[0] > cookie)


@dataclass(slots=True)
class Empty(FileNode):
    def size(self) -> int:
        return 0

    def read(self, offset: int, size: int) -> bytes:
        return b""


def parse(answer: bytes) -> list[tuple[int, bytes, int]]:
    """What the kernel makes of an answer (fs/fuse/readdir.c, parse_dirplusfile): cookie, name, inode number."""
    found = []
    while answer:
        node, ino, cookie, length, kind = struct.unpack_from("=Q120xQQII", answer)
        assert (node, kind) == (0, 8)
        found.append((cookie, answer[152 : 152 + length], ino))
        answer = answer[152 + (length + 7 & ~7) :]
    return found


def test_kernel_finds_names_and_numbers():
    answer = list_bare(Names(1), 0, 1 << 16)
    assert answer is not None
    assert parse(answer) == FILES


@pytest.mark.parametrize("size", [168, 320, 400, 4096])
def test_listing_goes_on_where_it_had_no_room(size):
    found: list[tuple[int, bytes, int]] = []
    while answer := list_bare(Names(1), found[-1][0] if found else 0, size):
        assert len(answer) <= size
        found += parse(answer)
    assert found == FILES


@dataclass(slots=True)
class Many(DirNode):
    """Lists names that are ready."""

    BARE: ClassVar[bool] = True

    def lookup(self, name: str) -> Node | None:
        return None

    def entries(self, cookie: int) -> Iterator[Entry]:
        numbers = range(cookie + 1, 1 << 20)
        return zip(numbers, map(b"%d".__mod__, numbers), numbers, strict=True)


def test_listing_takes_few_calls_for_each_name():
    with bounded_work(10_000):  # measured: 4 a name
        answer = list_bare(Many(1), 1000, 1 << 17)
    assert answer is not None
    names = len(parse(answer))
    assert names > 700


def test_end_of_a_listing_is_empty():
    assert list_bare(Names(1), FILES[-1][0], 4096) == b""


def test_answer_without_room_for_a_name_is_not_taken_for_the_end():
    assert list_bare(Names(1), 0, 159) is None


def test_other_nodes_are_left_to_libfuse():
    assert list_bare(Names(1, pair=True), 0, 4096) is None
    assert list_bare(Empty(2), 0, 4096) is None
