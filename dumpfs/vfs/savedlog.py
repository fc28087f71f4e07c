"""The kernel log that whoever saved a dump has put beside it: what is left where the dump's memory cannot give it.

kdump's scripts print the log before they save memory, for a disk may fill up: RHEL and SUSE `vmcore-dmesg.txt` (with
`-incomplete` where that failed), Debian `dmesg.STAMP` beside `dump.STAMP`, abrt `dmesg`.

A dump's folder may come from a stranger, too: only plain files of the dump's own owner are looked at, and none that
names another kernel.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import NamedTuple

_NAMES = re.compile(r"(vmcore-dmesg.*\.txt|dmesg(\.\w[\w.-]*)?)", re.ASCII)
_MAX_NAMES = 10_000
"""Entries of the folder that are looked at."""
_MAX_BYTES = 64 << 20
_BANNER = re.compile(rb"Linux version (\S+) \(")


class SavedLog(NamedTuple):
    """A log saved as text."""

    name: str
    """The file's, without its folder."""
    text: bytes


class SavedLogs:
    """The logs in the folder of a dump; the folder is opened at once, for a mount may come to lie over it.

    Args:
        path: absolute name of the dump.
    """

    def __init__(self, path: str) -> None:
        folder, self._dump = os.path.split(path)
        self._folder = -1
        with suppress(OSError, ValueError):
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def names(self) -> list[str]:
        """Names of what may be this dump's log, the likeliest first."""
        if self._folder < 0:
            return []
        names: list[str] = []
        dumps: set[str] = set()
        with suppress(OSError), os.scandir(self._folder) as entries:
            for number, entry in enumerate(entries):
                if number >= _MAX_NAMES:
                    break
                if entry.name == self._dump:
                    continue
                if _NAMES.fullmatch(entry.name):
                    names.append(entry.name)
                elif entry.name.startswith(("dump.", "vmcore.")):
                    dumps.add(entry.name.partition(".")[2])
        _, dot, stamp = self._dump.partition(".")
        own = [name for name in names if dot and name == f"dmesg.{stamp}"]
        if own:
            return own
        # In a folder of many dumps the log of another stamp is another dump's.
        names = [name for name in names if name.partition(".")[2] not in dumps]
        return sorted(names, key=lambda name: ("incomplete" in name, not name.startswith("vmcore-dmesg"), name))

    def find(self, release: str) -> SavedLog | None:
        """The log of the dump's kernel, or None.

        Args:
            release: `uname -r` of the dump's kernel, or '' when that is not known: any log will do then.
        """
        for name in self.names():
            text = self._read(name)
            banner = _BANNER.search(text)
            if text and (banner is None or not release or banner[1].decode("utf-8", "replace") == release):
                return SavedLog(name, text)
        return None

    def _read(self, name: str) -> bytes:
        """The text of a plain file of the dump's owner; b'' of anything else."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError:
            return b""
        try:
            status = os.fstat(descriptor)
            owner = os.stat(self._dump, dir_fd=self._folder).st_uid
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (owner, 0) or status.st_size > _MAX_BYTES:
                return b""
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read(_MAX_BYTES)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the folder."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1
