"""The benchmark page says what was measured: ratios, missing peers, nothing of the machine's folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in set(sys.modules) - before:
        if name in ("barlib", "readlib") or name.split(".")[0] == "page":
            del sys.modules[name]


def test_ratio_of_rates_is_ours_over_theirs() -> None:
    from page.measure import Row

    assert Row("r", "MB/s", {"dumpfs": [30.0, 40.0], "peer": [10.0, 10.0]}).ratios("peer") == [3.0, 4.0]


def test_ratio_of_times_is_theirs_over_ours() -> None:
    from page.measure import Row

    assert Row("r", "s", {"dumpfs": [1.0, 2.0], "peer": [3.0, 4.0]}).ratios("peer") == [3.0, 2.0]


def test_order_of_sides_turns_round_every_second_time() -> None:
    from page.measure import Turns

    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return 1.0

    Turns(2, {"dumpfs": lambda: side("dumpfs"), "peer": lambda: side("peer")})
    assert order == ["dumpfs", "peer", "peer", "dumpfs"]


def test_missing_peer_is_named_below_the_table() -> None:
    from barlib import Missing
    from page.measure import Turns
    from page.render import table

    def missing() -> float:
        raise Missing("crash is not installed")

    row = Turns(2, {"dumpfs": lambda: 1.0, "crash": missing}).row("log", "s", dumpfs="dumpfs", crash="crash")
    lines = table([row])
    assert lines[2] == "| log | – | 1.00 s (1.00–1.00) | – |"
    assert lines[-1] == "* no value for crash: crash is not installed (log)"


def test_failure_of_a_peer_is_told_without_folders() -> None:
    from page.measure import Turns

    def fails() -> float:
        raise RuntimeError("/home/somebody/dumps/guest.flat: Unknown file format")

    assert Turns(1, {"peer": fails}).missing == {"peer": "guest.flat: Unknown file format"}


def test_failure_of_dumpfs_ends_the_run() -> None:
    from page.measure import Turns

    def fails() -> float:
        raise RuntimeError("short read")

    with pytest.raises(RuntimeError, match="short read"):
        Turns(1, {"dumpfs": fails})


def test_runs_are_cut_after_so_many_pages() -> None:
    from readlib import cut

    assert cut([(0, 10), (20, 30), (40, 50)], 15) == [(0, 10), (20, 25)]
