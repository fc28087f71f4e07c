"""Small things about processes that the standard library lacks."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable
from types import FrameType

_LOG = logging.getLogger("dumpfs")

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int, signum: signal.Signals = signal.SIGTERM, guardian: int | None = None) -> None:
    """Have the kernel send `signum` to this process when its parent ends, however it ends.

    Args:
        parent: process id of the parent as it was before the fork; when it is gone already, this process ends.
        guardian: unless this process has adopted it by then.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() not in (parent, guardian):
        os._exit(128 + signum)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, and so be who waits for them; not handed on to children."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_unless_adopted(guardian: int, signum: signal.Signals) -> None:
    """Let this process live on when its parent dies, as long as `guardian` does, which must be who adopts it.

    Args:
        guardian: process id.
        signum: the signal that tells of a parent's death; see `die_with_parent`. The kernel sends it for each parent.
    """

    def orphaned(_signum: int, _frame: FrameType | None) -> None:
        if os.getppid() != guardian:
            os._exit(128 + signum)

    signal.signal(signum, orphaned)


def is_alive(pid: int) -> bool:
    """Whether a process exists (a zombie does)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def render_exit(status: int) -> str:
    """What `os.waitpid`'s status says, for people: 'was killed by signal 9 (SIGKILL)', 'ended with exit code 1'."""
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        try:
            name = f" ({signal.Signals(signum).name})"
        except ValueError:
            name = ""  # a real-time signal
        return f"was killed by signal {signum}{name}"
    return f"ended with exit code {os.WEXITSTATUS(status)}"


def spawn(target: Callable[[], int], *, on_parent_death: signal.Signals, guardian: int | None = None) -> int:
    """Fork a process that runs `target` and ends with the exit code it returns; its process id.

    The child never returns into its parent's frames, has no exit handlers and flushes no buffer it shares with its
    parent. An exception is logged with its traceback and ends it with exit code 1.

    Args:
        target: what the child does.
        on_parent_death: the signal that the child gets when this process ends.
        guardian: process that adopts the child when this one ends; see `end_unless_adopted`.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)  # of our parent's event loop
        die_with_parent(parent, on_parent_death, guardian)
        code = target()
    except BaseException:  # noqa: BLE001  # whatever it is, it must not unwind into the parent's code
        _LOG.exception("unexpected error in process %d", os.getpid())
    finally:
        os._exit(code)


def limit_memory(nbytes: int) -> None:
    """Have this process fail when it asks for more than `nbytes` on top of what it has.

    Else the system would choose a process to kill, and not always the one that takes all memory.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + nbytes
    if (soft == resource.RLIM_INFINITY or soft > limit) and (hard == resource.RLIM_INFINITY or hard >= limit):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
