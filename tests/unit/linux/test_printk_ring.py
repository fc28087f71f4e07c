"""The printk ring of 5.10 and later, laid out by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import CorruptDumpError, DumpfsError, PageError, VmcoreinfoError
from dumpfs.linux.logrecord import LogGap, LogRecord, LogReport, merge_gaps, render_records
from dumpfs.linux.printk_ring import iter_ring
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.unit.linux.guest import PAGE, Guest, Ring
from tests.work import bounded_work

ABIS = [(8, "little"), (8, "big"), (4, "little"), (4, "big")]
abis = pytest.mark.parametrize(("word", "order"), ABIS, ids=[f"{8 * w}-bit {o}" for w, o in ABIS])


def walk(ring: Ring, info: bytes | None = None) -> tuple[list[LogRecord], tuple[str, ...]]:
    report = LogReport()
    text = ring.vmcoreinfo() if info is None else info
    found = merge_gaps(iter_ring(ring.guest.space(ring.word), Vmcoreinfo(text), report), report)
    return list(found), report.notices()


def texts(ring: Ring) -> list[bytes]:
    return [record.text for record in walk(ring)[0]]


def new_ring(word: int = 8, order: str = "little", **sizes: int) -> Ring:
    return Ring(Guest(64, order), word, **sizes)


@abis
def test_records_come_oldest_first_with_their_facts(word: int, order: str):
    ring = new_ring(word, order)
    ring.add(b"first", 5, level=4, facility=1, caller=42, seq=0)
    ring.add(b"second line", 1_000_000_007, level=6, caller=0x80000001, seq=1)
    found, notices = walk(ring)
    assert found == [
        LogRecord(0, 5, 4, 1, 42, b"first", "pci", "+pci:0000:00:02.0"),
        LogRecord(1, 1_000_000_007, 6, 0, 0x80000001, b"second line", "pci", "+pci:0000:00:02.0"),
    ]
    assert notices == ()


@abis
def test_a_full_ring_keeps_the_newest_records(word: int, order: str):
    ring = new_ring(word, order, count_bits=3)
    for i in range(100):
        ring.add(b"record %d" % i)
    assert texts(ring) == [b"record %d" % i for i in range(92, 100)]


@abis
def test_text_that_would_cross_the_end_is_at_the_start(word: int, order: str):
    ring = new_ring(word, order, count_bits=3, data_bits=8)
    for i in range(40):
        ring.add(b"%d " % i * 7)
    kept = texts(ring)
    assert kept
    assert kept == [b"%d " % i * 7 for i in range(40 - len(kept), 40)]


@pytest.mark.parametrize("in_place", [True, False], ids=["left in place", "moved to the start"])
def test_text_that_ends_at_the_end_of_the_ring_reads_right_in_old_and_new_kernels(in_place: bool):
    ring = new_ring(count_bits=4, data_bits=8)
    for letter in b"abc":
        ring.add(bytes([letter]) * 56)  # blocks of 64 bytes: the fourth ends at 256
    ring.add(b"d" * 56, in_place=in_place)
    ring.add(b"e" * 24)
    if in_place:
        assert texts(ring) == [b"b" * 56, b"c" * 56, b"d" * 56, b"e" * 24]
    else:
        assert texts(ring)[-2:] == [b"d" * 56, b"e" * 24]


def test_positions_wrap_around_the_word():
    ring = new_ring(4, count_bits=4, data_bits=8)
    ring.lpos = (1 << 32) - 32
    ring.add(b"x" * 28, in_place=True)  # next is 2^32, which is 0
    ring.lpos = 0
    ring.add(b"after")
    assert texts(ring) == [b"x" * 28, b"after"]


def test_ids_wrap_around_below_the_state_bits():
    ring = new_ring(count_bits=2)
    ring.set_head(ring.id_mask - 1, ring.id_mask - 1)
    for i in range(4):
        ring.add(b"record %d" % i)
    assert texts(ring) == [b"record %d" % i for i in range(4)]
    assert ring.head < 4


@pytest.mark.parametrize(("lpos", "noticed"), [(1, True), (3, False)], ids=["no room", "empty text"])
def test_records_without_text_are_left_out(lpos: int, noticed: bool):
    ring = new_ring()
    ring.add(b"before")
    number = ring.add(b"gone")
    ring.put_desc(number, lpos, lpos)
    ring.add(b"after")
    found, notices = walk(ring)
    assert [r.text for r in found] == [b"before", b"after"]
    assert bool(notices) is noticed


@pytest.mark.parametrize(("state", "shown"), [(0, False), (1, True), (2, True), (3, False)])
def test_only_committed_and_finalized_records_are_shown(state: int, shown: bool):
    ring = new_ring()
    number = ring.add(b"text")
    begin = ring.guest.get(ring.descs + number % ring.count * ring.desc_size + 8)
    ring.put_desc(number, begin, ring.lpos, state)
    assert texts(ring) == ([b"text"] if shown else [])


def test_a_descriptor_of_another_id_is_stale():
    ring = new_ring()
    number = ring.add(b"old")
    ring.put_desc(number + ring.count, 0, ring.lpos)
    ring.guest.put(ring.descs + number % ring.count * ring.desc_size, (number + ring.count) & ring.id_mask | 2 << 62)
    assert texts(ring) == []


def test_text_that_was_overwritten_is_noticed():
    ring = new_ring()
    number = ring.add(b"text")
    ring.put_block(0, number + 1, b"other text")
    found, notices = walk(ring)
    assert found == []
    assert notices == ("log records whose text was overwritten: 1",)


def test_length_beyond_the_block_is_cut():
    ring = new_ring()
    number = ring.add(b"12345678")
    ring.put_info(number, 0, 60000)
    assert texts(ring) == [b"12345678"]


@pytest.mark.parametrize("part", ["descs", "infos", "data"])
def test_a_missing_page_costs_only_its_own_records(part: str):
    ring = new_ring(count_bits=9, data_bits=14)
    for i in range(500):
        ring.add(b"record %3d" % i)
    ring.guest.lost_pages.add(getattr(ring, part) // PAGE + 1)
    found, notices = walk(ring)
    gaps = [r for r in found if isinstance(r, LogGap)]
    there = [r.text for r in found if isinstance(r, LogRecord)]
    assert all(text.startswith(b"record ") for text in there)
    assert len(there) == len(set(there)) == 500 - sum(gap.number for gap in gaps)
    assert 3 <= sum(gap.number for gap in gaps) <= PAGE // {"descs": 24, "infos": 88, "data": 24}[part] + 2
    assert len(gaps) == 1
    assert gaps[0].why.startswith(f"page {getattr(ring, part) // PAGE + 1:#x} is lost")
    assert any("not in the dump" in notice for notice in notices)
    text = render_records(found).decode()
    assert text.count(f"-- {gaps[0].number} records: ") == 1


def test_the_ring_itself_missing_is_an_error():
    ring = new_ring()
    ring.add(b"text")
    ring.guest.lost_pages.add(ring.rb // PAGE)
    with pytest.raises(PageError):
        walk(ring)


@pytest.mark.parametrize("bits", [0, 32, 0xFFFFFFFF])
def test_an_impossible_number_of_descriptors_is_an_error(bits: int):
    ring = new_ring()
    ring.guest.put(ring.rb, bits, 4)
    with pytest.raises(CorruptDumpError):
        walk(ring)


def test_wild_counters_show_what_still_fits_them():
    ring = new_ring()
    for i in range(5):
        ring.add(b"record %d" % i)
    ring.set_head((ring.head + 1000) & ring.id_mask, ring.head)
    found, notices = walk(ring)
    assert [r.text for r in found] == [b"record %d" % i for i in range(5)]
    assert any("do not fit together" in notice for notice in notices)


def test_overlapping_texts_end_the_walk():
    ring = new_ring(count_bits=4, data_bits=8)
    for i in range(10):
        number = ring.add(b"%d" % i)
        ring.put_desc(number, 16 * i % 256, 256)
        ring.put_block(16 * i % 256, number, b"")
    found, notices = walk(ring)
    assert len(found) < 10
    assert any("overlap" in notice for notice in notices)


@pytest.mark.parametrize("key", ["SIZE(prb_desc)", "OFFSET(printk_info.ts_nsec)", "SYMBOL(prb)", "SIZE(printk_info)"])
def test_a_missing_or_absurd_key_is_an_error(key: str):
    ring = new_ring()
    ring.add(b"text")
    lines = ring.vmcoreinfo().decode().splitlines()
    without = "\n".join(line for line in lines if not line.startswith(key + "=")).encode()
    with pytest.raises(VmcoreinfoError):
        walk(ring, without)
    with pytest.raises(DumpfsError):
        walk(ring, without + f"\n{key}={'7' * 18}\n".encode())


def test_millions_of_stale_descriptors_are_passed_over_together():
    ring = Ring(Guest(64), count_bits=4)
    ring.guest.put(ring.rb, 26, 4)  # 2^26 descriptors of which nearly all lie outside of memory
    ring.set_head(0, (1 << 26) - 1)
    with bounded_work(2_000_000):  # measured: at most 540,000
        assert [gap.number > 2_000_000 for gap in walk(ring)[0]] == [True]


@given(
    seed=st.integers(0, 2**32),
    word_order=st.sampled_from(ABIS),
    where=st.sampled_from(["rb", "descs", "infos", "data"]),
)
def test_garbage_gives_records_or_an_error_and_ends(seed: int, word_order: tuple[int, str], where: str):
    word, order = word_order
    ring = new_ring(word, order, count_bits=6, data_bits=12)
    for i in range(80):
        ring.add(b"record %d" % i)
    rng = random.Random(seed)
    start = getattr(ring, where)
    for _ in range(rng.choice([1, 3, 50])):
        ring.guest.put(start + rng.randrange(256), rng.randbytes(rng.choice([1, 2, 4, 8])))
    with bounded_work(50_000):  # measured: at most 2,300
        try:
            found, _ = walk(ring)
        except DumpfsError:
            found = []
    assert len(found) <= 1 << 21
