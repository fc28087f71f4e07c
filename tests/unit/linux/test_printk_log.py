"""The log of 3.5 to 5.9 and the text ring before, laid out by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import CorruptDumpError, DumpfsError, VmcoreinfoError
from dumpfs.linux.logrecord import LogGap, LogRecord, LogReport, merge_gaps
from dumpfs.linux.printk_log import is_record_log, iter_record_log, parse_text_log, read_text_log
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.unit.linux.guest import BASE, PAGE, Guest, log_record

ABIS = [(8, "little"), (8, "big"), (4, "little"), (4, "big")]
abis = pytest.mark.parametrize(("word", "order"), ABIS, ids=[f"{8 * w}-bit {o}" for w, o in ABIS])
VARS, BUFFER = 0x1000, 0x4000


class Log:
    """A log buffer and its variables in a guest's memory."""

    def __init__(
        self, content: bytes, first: int, after: int, word: int = 8, order: str = "little", name: str = "printk_log"
    ):
        self.guest, self.word, self.name = Guest(32, order), word, name
        base = BASE[word]
        self.guest.put(VARS, base + BUFFER, word)
        self.guest.put(VARS + 8, len(content), 4)
        self.guest.put(VARS + 12, first, 4)
        self.guest.put(VARS + 16, after, 4)
        self.guest.put(BUFFER, content)
        symbols = {"log_buf": VARS, "log_buf_len": VARS + 8, "log_first_idx": VARS + 12, "log_next_idx": VARS + 16}
        self.lines = [f"SYMBOL({k})={base + v:x}" for k, v in symbols.items()]
        self.lines += [f"SIZE({name})=16", f"OFFSET({name}.ts_nsec)=0", f"OFFSET({name}.len)=8"]
        self.lines += [f"OFFSET({name}.text_len)=10", f"OFFSET({name}.dict_len)=12"]

    def info(self) -> Vmcoreinfo:
        return Vmcoreinfo("\n".join(self.lines).encode())

    def walk(self) -> tuple[list[LogRecord], tuple[str, ...]]:
        report = LogReport()
        found = merge_gaps(iter_record_log(self.guest.space(self.word), self.info(), report), report)
        return list(found), report.notices()


@abis
@pytest.mark.parametrize("name", ["printk_log", "log"], ids=["since 3.11", "before 3.11"])
def test_records_come_with_their_facts(word: int, order: str, name: str):
    content = log_record(b"first", 5, order, b"SUBSYSTEM=net\0DEVICE=n2", level=3, facility=1)
    content += log_record(b"second\nline", 1_500_000_000, order)
    log = Log(content, 0, len(content), word, order, name)
    log.guest.put(VARS + 8, len(content) + 64, 4)
    assert log.walk() == (
        [
            LogRecord(0, 5, 3, 1, None, b"first", "net", "n2"),
            LogRecord(1, 1_500_000_000, 6, 0, None, b"second\nline"),
        ],
        (),
    )


def test_a_record_of_length_zero_sends_the_walk_to_the_start():
    new = log_record(b"newer", 2, "little")
    old = log_record(b"older", 1, "little")
    content = new + bytes(40) + old + bytes(16)
    log = Log(content, len(new) + 40, len(new))
    assert [r.text for r in log.walk()[0]] == [b"older", b"newer"]


def test_records_that_lead_in_a_circle_end():
    content = log_record(b"a", 1, "little") + log_record(b"b", 2, "little") + bytes(16)
    log = Log(content, 0, 0x7FFFFF0)
    found, notices = log.walk()
    assert len(found) <= 6
    assert notices


def test_zero_at_the_start_ends_the_walk():
    found, notices = Log(bytes(256), 0, 128).walk()
    assert found == []
    assert notices


def test_a_record_shorter_than_its_text_ends_the_walk():
    good = log_record(b"good", 1, "little")
    bad = bytearray(log_record(b"bad", 2, "little"))
    bad[10:12] = (60000).to_bytes(2, "little")
    found, notices = Log(good + bytes(bad) + bytes(64), 0, len(good) + len(bad)).walk()
    assert [r.text for r in found] == [b"good"]
    assert "damaged" in notices[0]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_page_costs_only_what_was_in_it(lost: int):
    numbers = range(400)
    content = b"".join(log_record(b"record %4d" % i, i, "little") for i in numbers)
    log = Log(content, 0, len(content) - 32)
    log.guest.lost_pages.add(BUFFER // PAGE + lost)
    found, notices = log.walk()
    (gap,) = (r for r in found if isinstance(r, LogGap))
    there = [r.text for r in found if isinstance(r, LogRecord)]
    before = found.index(gap)
    first = int(there[before][-4:]) if before < len(there) else numbers[-1]
    assert there == [b"record %4d" % i for i in (*range(before), *range(first, numbers[-1]))]
    size = len(content) // len(numbers)
    assert (gap.number, gap.unit) == (size * (first - before), "byte")
    assert gap.number < PAGE + 2 * size
    assert f"{gap.number} bytes: of the log are not in the dump (page {BUFFER // PAGE + lost:#x} is lost" in notices[0]


def test_a_log_that_has_wrapped_goes_on_behind_a_missing_page():
    """The oldest records lie behind the newest; the page between the end of the buffer and its start is lost."""
    records = [log_record(b"record %4d" % i, i, "little") for i in range(256)]
    size = len(records[0])
    content = b"".join(records[100:]) + b"".join(records[:100]) + bytes(16)
    log = Log(content, 156 * size, 150 * size)
    log.guest.lost_pages.add(BUFFER // PAGE)
    found, _ = log.walk()
    assert [r.text for r in found if isinstance(r, LogRecord)][:3] == [b"record    0", b"record    1", b"record    2"]
    assert found[-1].text == b"record  249"
    assert sum(isinstance(r, LogGap) for r in found) == 1


def test_garbage_behind_a_missing_page_is_no_record():
    content = b"".join(log_record(b"record %4d" % i, i, "little") for i in range(400))
    log = Log(content, 0, len(content) - 32)
    log.guest.lost_pages.add(BUFFER // PAGE + 1)
    log.guest.put(BUFFER + 2 * PAGE, random.Random(1).randbytes(len(content) - 2 * PAGE))
    found, _ = log.walk()
    assert isinstance(found[-1], LogGap)
    assert all(r.text.startswith(b"record") for r in found[:-1])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_an_impossible_size_is_an_error(size: int):
    log = Log(bytes(64), 0, 32)
    log.guest.put(VARS + 8, size, 4)
    with pytest.raises(CorruptDumpError):
        log.walk()


@pytest.mark.parametrize("size", ["0", "8", "100000", "-16"])
def test_a_header_that_does_not_hold_its_members_is_an_error(size: str):
    log = Log(bytes(64), 0, 32)
    log.lines.append(f"SIZE(printk_log)={size}")
    with pytest.raises(VmcoreinfoError):
        log.walk()


@given(seed=st.integers(0, 2**32), order=st.sampled_from(["little", "big"]))
def test_garbage_gives_records_or_an_error_and_ends(seed: int, order: str):
    rng = random.Random(seed)
    content = bytearray(b"".join(log_record(b"record %d" % i, i, order) for i in range(100)))
    log = Log(bytes(content), 0, len(content) - 32, 8, order)
    for _ in range(rng.choice([1, 5, 100])):
        log.guest.put(rng.choice([VARS + 8, BUFFER]) + rng.randrange(12), rng.randbytes(2))
    try:
        found, _ = log.walk()
    except DumpfsError:
        return
    assert len(found) <= 1 << 20


def text_log(content: bytes, size: int, end: int, order: str = "little") -> tuple[Guest, Vmcoreinfo]:
    guest = Guest(32, order)
    guest.put(VARS, BASE[8] + BUFFER)
    guest.put(VARS + 8, size, 4)
    guest.put(VARS + 12, end, 4)
    guest.put(BUFFER, content)
    lines = [f"SYMBOL(log_buf)={BASE[8] + VARS:x}", f"SYMBOL(log_buf_len)={BASE[8] + VARS + 8:x}"]
    lines.append(f"SYMBOL(log_end)={BASE[8] + VARS + 12:x}")
    return guest, Vmcoreinfo("\n".join(lines).encode())


@pytest.mark.parametrize("order", ["little", "big"])
def test_text_that_has_not_wrapped_is_taken_from_the_start(order: str):
    guest, info = text_log(b"<6>[    0.000000] hello\n", 4096, 24, order)
    assert not is_record_log(info)
    assert read_text_log(guest.space(), info, LogReport()) == b"<6>[    0.000000] hello\n"


def test_text_that_has_wrapped_is_turned_around():
    guest, info = text_log(b"world\n<4>hello ", 15, 15 * 7 + 6)
    assert read_text_log(guest.space(), info, LogReport()) == b"<4>hello world\n"


def test_missing_text_is_left_out_and_noticed():
    guest, info = text_log(b"x" * 3 * PAGE, 3 * PAGE, 3 * PAGE - 1)
    guest.lost_pages.add(BUFFER // PAGE + 1)
    report = LogReport()
    text = read_text_log(guest.space(), info, report)
    page = BUFFER // PAGE + 1
    gap = f"4096 bytes: of the log are not in the dump (page {page:#x} is lost)"
    assert text == b"x" * PAGE + f"\n-- {gap} --\n".encode() + b"x" * (PAGE - 1)
    assert report.notices() == (gap,)


def test_lines_of_text_are_records():
    found = list(parse_text_log(b"<3>[   12.345678] eth0: up\nplain\n<13>user\n"))
    assert [(r.ts_nsec, r.level, r.facility, r.text) for r in found] == [
        (12_345_678_000, 3, 0, b"eth0: up"),
        (0, 4, 0, b"plain"),
        (0, 5, 1, b"user"),
    ]
