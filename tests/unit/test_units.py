"""Sizes as text, and the numbers of the page states."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.units import READABLE, PageState, one_line, one_word, parse_size, render_size, text_line, text_lines, zeros
from tests.build.model import Kind


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("1k", 1024),
        ("64K", 65536),
        ("3M", 3 << 20),
        ("2 GiB", 2 << 30),
        ("1TB", 1 << 40),
        (" 5m ", 5 << 20),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1X", "0x10", "1 2"])
def test_other_text_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (1 << 40, "1.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_are_shown(size, text):
    assert render_size(size) == text


def test_states_keep_their_numbers():
    assert {s.name: int(s) for s in PageState} == {k.name: int(k) for k in Kind}


def test_only_stored_and_partial_pages_have_content():
    assert {PageState.STORED, PageState.PARTIAL} == READABLE


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_zeros_are_as_many_as_asked_for(size):
    assert zeros(size) == bytes(size)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("zram", "zram"),
        ("ñ", "ñ"),
        ("a b", r"a\x20b"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("a\nb", r"a\nb"),
        ("\u202etxt", r"\u202etxt"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\ud800"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u200b\u3164\U000e0101", r"\u200b\u3164\U000e0101"),
        ("a\u2028b\u2066", r"a\u2028b\u2066"),
        ("", ""),
    ],
)
def test_a_word_stays_one_among_others(text, shown):
    assert one_word(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_a_line_holds_nothing_that_acts_or_hides(text):
    shown = one_line(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown)
    assert one_line(shown) == shown
    shown.encode()


@given(st.binary())
def test_lines_keep_their_breaks_and_tabs_alone(data):
    shown = text_lines(data)
    assert [shown.count(c) for c in (b"\n", b"\t")] == [data.count(c) for c in (b"\n", b"\t")]
    assert all(c.isprintable() or c in "\n\t" for c in shown.decode())


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"root=/dev/vda quiet\n", b"root=/dev/vda quiet\n"),
        (b"a\nforged\n\n", b"a\\nforged\n"),
        ("ñ\t".encode() + b"\xff", "ñ\\t\\xff\n".encode()),
        (b"", b"\n"),
    ],
)
def test_bytes_become_one_line(data, line):
    assert text_line(data) == line
