"""What a kernel died of, from its log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dumpfs.linux.panic import Panic, find_panic

SYSRQ = """\
[    5.330591] dumpfs-corpus marker line
[    5.430591] sysrq: Trigger a crash
[    5.430910] Kernel panic - not syncing: sysrq triggered crash
[    5.431221] CPU: 0 PID: 1 Comm: init Kdump: loaded Not tainted 6.1.192-dumpfs-tiny #1
[    5.431599] Call Trace:
[    5.433223] RIP: 0033:0x47b7a0
"""

OOPS = """\
[  101.000000] BUG: kernel NULL pointer dereference, address: 0000000000000010
[  101.000001] #PF: supervisor read access in kernel mode
[  101.000002] #PF: error_code(0x0000) - not-present page
[  101.000003] PGD 0 P4D 0
[  101.000004] Oops: 0000 [#1] PREEMPT SMP NOPTI
[  101.000005] CPU: 3 UID: 0 PID: 4321 Comm: my worker/3:1 Tainted: G        W          6.12.0 #1
[  101.000006] RIP: 0010:some_driver_poll+0x1a/0x80 [some_driver]
[  101.000007] Call Trace:
"""


def test_panic_line_cause_and_task_are_found() -> None:
    assert find_panic(SYSRQ) == Panic(
        message="Kernel panic - not syncing: sysrq triggered crash",
        cause="sysrq: Trigger a crash",
        task="init",
        pid=1,
        cpu=0,
        uptime=5.433223,
    )


def test_oops_that_went_straight_to_the_capture_kernel_has_a_cause_only() -> None:
    assert find_panic(OOPS) == Panic(
        cause="BUG: kernel NULL pointer dereference, address: 0000000000000010",
        where="some_driver_poll+0x1a/0x80",
        task="my worker/3:1",
        pid=4321,
        cpu=3,
        uptime=101.000007,
    )


def test_headline_is_the_cause_where_no_panic_was_printed() -> None:
    assert find_panic(OOPS).headline.startswith("BUG: kernel NULL pointer")


def test_oops_before_a_panic_gives_both() -> None:
    panic = find_panic(OOPS + "[  101.500000] Kernel panic - not syncing: Fatal exception\n")
    assert panic.message == "Kernel panic - not syncing: Fatal exception"
    assert panic.cause.startswith("BUG: kernel NULL pointer")


def test_old_complaint_is_not_the_cause() -> None:
    panic = find_panic(OOPS + "[  900.000000] Kernel panic - not syncing: hung_task: blocked tasks\n")
    assert (panic.message, panic.cause) == ("Kernel panic - not syncing: hung_task: blocked tasks", "")


def test_last_of_two_panics_counts() -> None:
    assert find_panic(SYSRQ + "[   6.0] Kernel panic - not syncing: two\n").message.endswith(": two")


END = "[    5.900000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n"


def test_last_line_of_a_panic_is_not_taken_for_its_first() -> None:
    assert find_panic(SYSRQ + END) == replace(find_panic(SYSRQ), uptime=5.9)


def test_last_line_of_a_panic_tells_where_the_first_is_lost() -> None:
    assert find_panic(END).headline == "Kernel panic - not syncing: sysrq triggered crash"


def test_caller_ids_do_not_disturb() -> None:
    assert find_panic("[    5.430910][    T1] Kernel panic - not syncing: x\n").message == (
        "Kernel panic - not syncing: x"
    )


@pytest.mark.parametrize(
    "log", ["", "no time stamp\n", "[   42.500000] all is well\n"], ids=["empty", "plain", "quiet"]
)
def test_quiet_log_has_no_panic(log: str) -> None:
    assert find_panic(log).headline == ""


def test_uptime_is_the_last_time() -> None:
    assert find_panic("[   42.500000] a\n[   43.000000] b\nplain\n").uptime == 43.0
