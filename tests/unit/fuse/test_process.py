"""Forked processes that never come back into their parent's code."""

from __future__ import annotations

import os
import signal

import pytest

from dumpfs.fuse.process import is_alive, render_exit, spawn


def wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def test_value_is_the_exit_code():
    assert os.waitstatus_to_exitcode(wait(spawn(lambda: 7, on_parent_death=signal.SIGKILL))) == 7


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_is_exit_code_1(error):
    def fail() -> int:
        raise error

    assert os.waitstatus_to_exitcode(wait(spawn(fail, on_parent_death=signal.SIGKILL))) == 1


def test_exit_is_told_in_words():
    def kill() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert render_exit(wait(spawn(kill, on_parent_death=signal.SIGKILL))) == "was killed by signal 9 (SIGKILL)"
    assert render_exit(wait(spawn(lambda: 3, on_parent_death=signal.SIGKILL))) == "ended with exit code 3"


def test_process_ends_with_its_parent():
    receiver, sender = os.pipe()

    def parent() -> int:
        def child() -> int:
            os.close(receiver)
            signal.pause()
            return 0

        spawn(child, on_parent_death=signal.SIGKILL)
        return 0

    wait(spawn(parent, on_parent_death=signal.SIGKILL))
    os.close(sender)
    assert os.read(receiver, 1) == b"", "the grandchild, too, has let go of the pipe"
    os.close(receiver)


def test_liveness():
    assert is_alive(os.getpid())
    pid = spawn(lambda: 0, on_parent_death=signal.SIGKILL)
    wait(pid)
    assert not is_alive(pid)
