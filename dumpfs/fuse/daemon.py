"""Leaving the terminal: the command returns when the mount answers, and hears of every failure before that.

The parent forks, waits at a pipe and reports; the grandchild mounts and stays. No thread and no event loop exists
before the forks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import NoReturn

from dumpfs.errors import DumpfsError, MountError

_STANDARD = (0, 1, 2)


def detach(mount: Callable[[], None], serve: Callable[[Callable[[], None]], int]) -> None:
    """Run a mount in the background; return when it answers.

    Args:
        mount: mounts; runs in the background process, still with the terminal.
        serve: serves until the end; gets a function to call when the mount answers. Runs without the terminal;
            its value is the process's exit code.

    Raises:
        MountError: what either raised before the mount answered.
    """
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_daemon(receiver, sender, mount, serve)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        line = pipe.readline()
    os.waitpid(pid, 0)
    if not line:
        raise MountError("the mount's process ended without a word", hint="try -f, which stays in the foreground")
    answer = json.loads(line)
    if answer:
        raise MountError(answer["message"], hint=answer["hint"])


def _become_daemon(
    receiver: int, sender: int, mount: Callable[[], None], serve: Callable[[Callable[[], None]], int]
) -> NoReturn:
    """The child's part of `detach`; does not return."""
    code = 1
    told = False

    def tell(answer: object) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(sender, json.dumps(answer).encode() + b"\n")
            os.close(sender)

    try:
        os.close(receiver)
        _close_inherited()
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        mount()
        _let_go_of_terminal()
        code = serve(lambda: tell(None))
    except BrokenPipeError:
        import logging

        logging.getLogger("dumpfs").info("nobody waits for the mount any more; it was taken away again")
    except DumpfsError as exc:
        tell({"message": exc.message, "hint": exc.hint})
        code = exc.exit_code
    except BaseException as exc:  # this process must not unwind into the command's code
        import logging

        logging.getLogger("dumpfs").exception("unexpected error")
        tell({"message": f"unexpected {type(exc).__name__}: {exc}", "hint": "-f -d tells more"})
    finally:
        os._exit(code)


def _close_inherited() -> None:
    """Close what the command was started with beside its standard descriptors: a script's lock, the end of a pipe.

    Whoever waits for these to be closed would wait until the dump is unmounted. They are told by what got them here:
    they stay open over an exec, and nothing does that a Python program opens.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if descriptor > max(_STANDARD) and os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            continue  # it was the listing's own


def _let_go_of_terminal() -> None:
    """Point the standard descriptors at /dev/null, before workers are forked: who reads our output must see its end."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _STANDARD:
        os.dup2(null, descriptor)
    os.close(null)
