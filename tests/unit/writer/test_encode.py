"""Zero pages are found; what does not become shorter is stored raw."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.structs import BE64, LE64
from dumpfs.writer.encode import KIND_DATA, KIND_LOST, KIND_ZERO, Encoded, find_zero_pages
from dumpfs.writer.sink_kdump import build_descriptors, descriptor_dtype, page_offsets

PAGE = 4096


@given(st.lists(st.sampled_from(["zero", "first", "middle", "last", "random"]), min_size=1, max_size=40))
def test_zero_pages_are_exactly_those_without_a_set_byte(kinds):
    pages = []
    for kind in kinds:
        page = bytearray(PAGE)
        if kind == "random":
            page = bytearray(os.urandom(PAGE - 1) + b"\1")
        elif kind != "zero":
            page[{"first": 0, "middle": PAGE // 2, "last": PAGE - 1}[kind]] = 1
        pages.append(bytes(page))
    assert find_zero_pages(b"".join(pages), PAGE).tolist() == [not any(page) for page in pages]


def descriptors(order: str) -> tuple[Encoded, bytes]:
    encoded = Encoded(
        np.array([10, 0, 0, PAGE], dtype=np.uint32),
        np.array([1, 0, 0, 0], dtype=np.uint32),
        np.array([KIND_DATA, KIND_ZERO, KIND_LOST, KIND_DATA], dtype=np.uint8),
        [],
    )
    abi = LE64 if order == "<" else BE64
    return encoded, build_descriptors(descriptor_dtype(abi), encoded, page_offsets(encoded, 1000), 500, PAGE)


def test_descriptors_of_data_follow_one_another():
    rows = np.frombuffer(descriptors("<")[1], dtype="<u8").reshape(4, 3)
    assert rows[0].tolist() == [1000, 10 | 1 << 32, 0]
    assert rows[3].tolist() == [1010, PAGE, 0]


def test_zero_page_shares_the_common_copy():
    rows = np.frombuffer(descriptors("<")[1], dtype="<u8").reshape(4, 3)
    assert rows[1].tolist() == [500, PAGE, 0]


def test_lost_page_has_no_descriptor():
    assert descriptors("<")[1][48:72] == bytes(24)


def test_descriptors_have_the_byte_order_of_the_dump():
    assert descriptors(">")[1][:8] == (1000).to_bytes(8, "big")
