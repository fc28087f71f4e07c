"""How one record is printed."""

from __future__ import annotations

import pytest

from dumpfs.linux.logrecord import LogRecord, LogReport, escape, render_records, split_level


def record(
    text: bytes, ts: int = 1_234_567_890, caller: int | None = 7, subsystem: str = "", device: str = ""
) -> LogRecord:
    return LogRecord(0, ts, 6, 0, caller, text, subsystem, device)


def test_time_is_seconds_padded_to_five_and_microseconds():
    assert render_records([record(b"hello")]) == b"[    1.234567] hello\n"


def test_long_uptime_widens_the_time():
    assert render_records([record(b"x", 1_234_567_000_000_999)]) == b"[1234567.000000] x\n"


def test_lines_after_the_first_stand_below_it():
    assert render_records([record(b"a\nb")]) == b"[    1.234567] a\n               b\n"


def test_no_record_gives_no_text():
    assert render_records([]) == b""


@pytest.mark.parametrize(
    ("caller", "shown"), [(7, b"[    T7]"), (1 << 31 | 3, b"[    C3]"), (1234567, b"[T1234567]"), (None, b"")]
)
def test_caller_is_thread_or_processor(caller: int | None, shown: bytes):
    assert render_records([record(b"x", caller=caller)], caller=True) == b"[    1.234567]" + shown + b" x\n"


def test_device_lines_are_those_of_dev_kmsg():
    text = render_records([record(b"x", subsystem="pci", device="+pci:0000:00:02.0")], device=True)
    assert text == b"[    1.234567] x\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:02.0\n"


@pytest.mark.parametrize(
    ("text", "signed", "shown"),
    [
        (b"tab\there", True, b"tab\there"),
        (b"\x1b[0m\x00", True, b"\\x1b[0m\\x00"),
        ("é".encode(), True, b"\\xffffffc3\\xffffffa9"),
        ("é".encode(), False, b"\\xc3\\xa9"),
        (b"\x7f", True, b"\\x7f"),
    ],
)
def test_odd_bytes_are_escaped_as_makedumpfile_of_that_machine_does(text: bytes, signed: bool, shown: bytes):
    assert escape(text, signed_char=signed) == shown


def test_level_is_in_the_high_bits_on_little_endian_and_in_the_low_on_big_endian():
    assert split_level(0xC1, little=True) == 6
    assert split_level(0x0E, little=False) == 6


def test_report_gives_a_sentence_for_each_kind_of_trouble():
    report = LogReport()
    report.count("without text", 2)
    report.count("that are odd")
    report.sentences.append("first")
    assert report.notices() == ("first", "log records without text: 2", "log records that are odd: 1")
