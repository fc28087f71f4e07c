"""ORC tables as call frame information."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.elf import orcframes
from dumpfs.elf.callframes import (
    Coverage,
    FrameSection,
    def_cfa,
    def_cfa_indirect,
    saved_at_cfa,
    saved_at_register,
    unsaved,
)
from dumpfs.elf.framerows import add_rows
from dumpfs.elf.orcframes import CALL, END, PARTIAL, REGS, Functions, orc_rows, translate
from dumpfs.linux.orc import OrcEntry, OrcReg, OrcTable, OrcType

RBP, RSP, R10 = 6, 7, 10
BASE = 0xFFFFFFFF82000000
TEXT = 0xFFFFFFFF81000000
NOTHING = OrcEntry(0, 0, OrcReg.UNDEFINED, OrcReg.UNDEFINED, OrcType.CALL, False)
ENTERED = OrcEntry(8, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.CALL, False)
PUSHED = OrcEntry(16, -16, OrcReg.SP, OrcReg.PREV_SP, OrcType.CALL, False)
ENDED = OrcEntry(0, 0, OrcReg.UNDEFINED, OrcReg.UNDEFINED, OrcType.END_OF_STACK, False)
TRAPPED = OrcEntry(0, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.REGS, True)
IN_ENTERED, IN_PUSHED = def_cfa(RSP, 8) + unsaved(RBP), def_cfa(RSP, 16) + saved_at_cfa(RBP, -16)


KINDS = {OrcType.CALL: CALL, OrcType.END_OF_STACK: END, OrcType.REGS: REGS, OrcType.REGS_PARTIAL: PARTIAL}


def make_rows(entries: list[tuple[int, OrcEntry]], functions: list[tuple[int, int]], ends=()):
    """What `orc_rows` makes of entries and functions with offsets from TEXT."""
    ips = array("i", [TEXT + offset - BASE - 4 * i for i, (offset, _) in enumerate(entries)])
    raw = b"".join(struct.pack("<hhBB", i, 0, 0, 0) for i in range(len(entries)))
    table = OrcTable.thaw((BASE.to_bytes(8, "little"), ips.tobytes(), raw))
    kept = [entry for _, entry in entries]
    bounds = np.array([(TEXT + start, TEXT + stop) for start, stop in functions], np.uint64).reshape(-1, 2)
    decode = lambda data: kept[struct.unpack_from("<h", data)[0]]  # noqa: E731
    return list(orc_rows(table, decode, Functions(bounds[:, 0], bounds[:, 1]), ends))


def cover(entries: list[tuple[int, OrcEntry]], functions: list[tuple[int, int]], ends=()):
    """FDEs with offsets from TEXT: start, stop, kind, rows."""
    found = []
    for piece in make_rows(entries, functions, ends):
        last = [*piece.firsts.tolist(), len(piece.rows)][1:]
        for first, after, stop in zip(piece.firsts.tolist(), last, piece.stops.tolist(), strict=True):
            numbers = piece.rows[first:after]
            places = [at - TEXT for at in piece.places[first:after].tolist()]
            (kind,) = {piece.menu.kinds[number] for number in piece.menu.kind[numbers].tolist()}
            texts = [bytes(piece.menu.columns[: piece.menu.sizes[number], number]) for number in numbers.tolist()]
            found.append((places[0], stop - TEXT, kind, list(zip(places, texts, strict=True))))
    return found


def plain_cover(entries, functions, ends=()) -> Iterator[Coverage]:
    """The same, thought out slowly: what holds at every single address."""
    holds = dict(entries)  # the last of several for one place
    for start, stop in functions:
        rows: list[tuple[int, bytes]] = []
        now = kind = begin = None
        for place in range(start, stop):
            before = [at for at in holds if at <= place] if place == start else [place] if place in holds else []
            row = translate(holds[max(before)]) if before else None
            if place == start and TEXT + start in ends:
                row = (OrcType.END_OF_STACK, b"")
            elif TEXT + start in ends:
                row = None
            if row is None or row == now:
                continue
            if kind is not None and row[0] is not kind:
                yield Coverage(TEXT + begin, TEXT + place, KINDS[kind], rows)
            if row[0] is not kind:
                kind, begin, rows = row[0], place, []
            rows.append((TEXT + place, row[1]))
            now = row
        if kind is not None:
            yield Coverage(TEXT + begin, TEXT + stop, KINDS[kind], rows)


@pytest.mark.parametrize(
    ("entry", "frame"),
    [
        (OrcEntry(24, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.CALL, False), def_cfa(RSP, 24) + unsaved(RBP)),
        (OrcEntry(16, -16, OrcReg.BP, OrcReg.PREV_SP, OrcType.CALL, False), def_cfa(RBP, 16) + saved_at_cfa(RBP, -16)),
        (OrcEntry(0, 0, OrcReg.R10, OrcReg.BP, OrcType.CALL, False), def_cfa(R10, 0) + saved_at_register(RBP, RBP, 0)),
        (
            OrcEntry(-8, 0, OrcReg.BP_INDIRECT, OrcReg.UNDEFINED, OrcType.CALL, False),
            def_cfa_indirect(RBP, -8) + unsaved(RBP),
        ),
        (
            OrcEntry(16, 0, OrcReg.SP_INDIRECT, OrcReg.UNDEFINED, OrcType.CALL, False),
            def_cfa_indirect(RSP, 0, 16) + unsaved(RBP),
        ),
        (OrcEntry(8, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.REGS, True), def_cfa(RSP, 8 + 168)),
        (OrcEntry(8, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.REGS_PARTIAL, True), def_cfa(RSP, 8 + 40)),
    ],
)
def test_entry_tells_where_the_frame_is(entry, frame):
    assert translate(entry) == (entry.type, frame)


@pytest.mark.parametrize(
    "entry",
    [
        NOTHING,
        NOTHING._replace(type=OrcType.UNDEFINED),
        NOTHING._replace(sp_reg=15),
        NOTHING._replace(sp_reg=OrcReg.PREV_SP),
    ],
)
def test_entries_without_meaning_are_passed_over(entry):
    assert translate(entry) is None


def test_rows_are_cut_at_functions():
    found = cover([(0, ENTERED), (1, PUSHED), (16, ENTERED)], [(0, 16), (16, 32)])
    assert found == [(0, 16, CALL, [(0, IN_ENTERED), (1, IN_PUSHED)]), (16, 32, CALL, [(16, IN_ENTERED)])]


def test_an_entry_goes_on_in_the_next_function():
    assert cover([(0, ENTERED)], [(0, 16), (16, 32)])[1] == (16, 32, CALL, [(16, IN_ENTERED)])


def test_the_kind_of_frame_may_change_within_a_function():
    found = cover([(0, TRAPPED), (8, ENTERED), (12, ENDED)], [(0, 16)])
    assert [(start, stop, kind) for start, stop, kind, _ in found] == [(0, 8, REGS), (8, 12, CALL), (12, 16, END)]


def test_where_nothing_is_said_the_entry_before_goes_on():
    assert cover([(0, PUSHED), (4, NOTHING), (8, PUSHED)], [(0, 16)]) == [(0, 16, CALL, [(0, IN_PUSHED)])]


def test_a_function_of_which_nothing_is_said_has_no_frames():
    assert cover([(0, ENTERED), (16, NOTHING), (32, ENTERED)], [(0, 16), (16, 32), (32, 48)])[1][0] == 32


def test_code_before_the_first_entry_has_no_frames():
    assert cover([(24, ENTERED)], [(0, 16), (16, 32)]) == [(24, 32, CALL, [(24, IN_ENTERED)])]


def test_entries_between_the_functions_do_not_count():
    found = cover([(0, ENTERED), (20, PUSHED), (100, ENTERED)], [(0, 16), (100, 120)])
    assert [(start, stop) for start, stop, _, _ in found] == [(0, 16), (100, 120)]


def test_of_two_entries_at_one_place_the_last_counts():
    assert cover([(0, NOTHING), (0, PUSHED)], [(0, 16)]) == [(0, 16, CALL, [(0, IN_PUSHED)])]


def test_entries_from_user_mode_end_the_stack():
    assert cover([(0, TRAPPED)], [(0, 16)], ends={TEXT}) == [(0, 16, END, [(0, b"")])]


def test_interrupts_save_all_registers_and_are_signals():
    assert REGS.signal
    assert PARTIAL.signal
    assert saved_at_cfa(16, -40) in REGS.rules
    assert saved_at_cfa(16, -40) in PARTIAL.rules
    assert saved_at_cfa(15, -168) in REGS.rules
    assert not CALL.signal


ENTRIES = st.builds(
    OrcEntry,
    st.integers(-(1 << 15), (1 << 15) - 1),
    st.integers(-(1 << 15), (1 << 15) - 1),
    st.integers(0, 15),
    st.integers(0, 15),
    st.sampled_from(OrcType),
    st.booleans(),
)


@given(st.lists(st.tuples(st.integers(-64, 300), ENTRIES), max_size=20), st.lists(st.integers(0, 256), max_size=6))
def test_any_table_makes_frames_inside_its_functions(entries, bounds):
    bounds = sorted(set(bounds))
    functions = list(pairwise(bounds))
    found = cover(entries, functions)
    at = 0
    for start, stop, _, rows in found:
        assert at <= start < stop
        assert any(first <= start and stop <= last for first, last in functions)
        assert [place for place, _ in rows] == sorted(place for place, _ in rows)
        assert rows[0][0] == start
        at = stop


def sections(entries, functions, ends=()) -> tuple[bytes, bytes]:
    """The section made at once, and the one made row by row."""
    quick, plain = FrameSection(8, "little"), FrameSection(8, "little")
    for rows in make_rows(entries, functions, ends):
        add_rows(quick, rows)
    plain.add(plain_cover(entries, functions, ends))
    return quick.build(), plain.build()


@given(
    st.lists(st.tuples(st.integers(-64, 700), ENTRIES), max_size=30),
    st.lists(st.integers(0, 700), max_size=6),
    st.booleans(),
)
def test_the_section_is_the_one_made_row_by_row(entries, bounds, ends):
    functions = list(pairwise(sorted(set(bounds))))
    quick, plain = sections(entries, functions, {TEXT + start for start, _ in functions[1:2] if ends})
    assert quick == plain


def test_functions_are_taken_in_pieces(monkeypatch):
    entries = [(16 * n, (ENTERED, PUSHED, TRAPPED, ENDED)[n % 4]) for n in range(20)]
    functions = [(32 * n, 32 * n + 32) for n in range(10)]
    whole, plain = sections(entries, functions)
    monkeypatch.setattr(orcframes, "_AT_ONCE", 3)
    assert sections(entries, functions)[0] == whole == plain
    assert len(make_rows(entries, functions)) == 4


@pytest.mark.parametrize("distance", [1, 63, 64, 255, 256, 65535, 65536, 1 << 20])
def test_advances_of_every_size(distance):
    def section(quick: bool) -> bytes:
        out = FrameSection(8, "little")
        for rows in make_rows([(0, ENTERED), (distance, PUSHED)], [(0, distance + 1)]):
            add_rows(out, rows)
        if quick:
            return out.build()
        out = FrameSection(8, "little")
        out.add([Coverage(TEXT, TEXT + distance + 1, CALL, [(TEXT, IN_ENTERED), (TEXT + distance, IN_PUSHED)])])
        return out.build()

    assert section(True) == section(False)


def test_rows_are_for_targets_like_x86_64_only():
    (rows,) = make_rows([(0, ENTERED)], [(0, 16)])
    with pytest.raises(ValueError, match="little-endian"):
        add_rows(FrameSection(8, "big"), rows)
