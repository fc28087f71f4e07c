"""The progress bar."""

from __future__ import annotations

import io

import pytest

from dumpfs.cli.progress import Progress, render_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_line_tells_share_speed_and_time_left() -> None:
    clock = Clock()
    progress = Progress("checking", 100 << 20, Terminal(), clock)
    clock.now += 2
    progress.advance(25 << 20)
    assert progress.render() == "checking  25% [######..................] 25.0 MiB of 100.0 MiB, 13 MB/s, 6 s left"


def test_nothing_is_drawn_without_a_terminal() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("checking", 10, stream, clock) as progress:
        clock.now += 5
        progress.advance(5)
    assert stream.getvalue() == ""


def test_drawing_is_limited_in_rate() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("checking", 1000, stream, clock)
    clock.now += 1
    for _ in range(50):
        clock.now += 0.001
        progress.advance(1)
    assert stream.getvalue().count("\r") == 1


def test_closing_wipes_the_line() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("checking", 1000, stream, clock) as progress:
        clock.now += 1
        progress.advance(1)
        drawn = len(stream.getvalue()) - 1
    assert stream.getvalue().endswith("\r" + " " * drawn + "\r")


def test_empty_total_is_done_at_once() -> None:
    assert "100%" in Progress("checking", 0, Terminal(), Clock()).render()
