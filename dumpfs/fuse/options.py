"""The options of `-o`: one table that the parser, `--help` and the man pages agree on.

Loads neither pyfuse3 nor a codec.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dumpfs.errors import UsageError
from dumpfs.units import parse_size

if TYPE_CHECKING:
    from dumpfs.vfs.context import OpenOptions

MAX_WORKERS = 64
DEFAULT_WORKERS = 4
"""Processes that serve a mount unless `workers=` says otherwise, or the machine has fewer processors."""
DEFAULT_UMASK = 0o077
_MAX_ID = (1 << 32) - 2
"""The largest number of a user or a group; the next one means 'none' to the kernel."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount behaves, as opposed to how the dump is read."""

    allow_other: bool = False
    """Let other users (and root) in; file modes still decide what they may."""
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    umask: int = DEFAULT_UMASK
    """Permission bits that files and directories do not have, out of 0444 and 0555."""
    workers: int = field(default_factory=lambda: min(len(os.sched_getaffinity(0)), DEFAULT_WORKERS))
    """Processes that answer requests."""
    log: str | None = None
    """Absolute path of a file to log to instead of syslog."""
    parts: tuple[str, ...] = ()
    """Further files of a split set."""


class Option(NamedTuple):
    """One option of the table."""

    name: str
    metavar: str
    """What stands behind the '=', or '' for an option without a value."""
    help: str
    parse: Callable[[str], object]
    """Value of the option's text; raises ValueError (with a message for people) or UsageError."""
    target: str
    """Field of `OpenOptions` or `MountOptions`; '' for what is always on."""
    mounting: bool = False
    """True when it concerns the mount and not the reading of the dump."""

    @property
    def usage(self) -> str:
        """'name=METAVAR' or 'name'."""
        return f"{self.name}={self.metavar}" if self.metavar else self.name


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not {', '.join(allowed[:-1])} or {allowed[-1]}")
        return text

    return parse


def _holes(text: str) -> object:
    from dumpfs.memory.physical import HolePolicy

    return HolePolicy(_choice("zero", "error")(text))


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is not a number; write 0x before a hexadecimal one") from None


def _unsigned(text: str) -> int:
    value = _integer(text)
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise ValueError(f"{text!r} is not an octal mode")
    return int(text, 8) & 0o777


def _workers(text: str) -> int:
    value = _integer(text)
    if not 1 <= value <= MAX_WORKERS:
        raise ValueError(f"{text!r} is not between 1 and {MAX_WORKERS}")
    return value


def _id(text: str) -> int:
    value = int(text)
    if value > _MAX_ID:
        raise ValueError(f"{text!r} is not between 0 and {_MAX_ID}")
    return value


def _user(text: str) -> int:
    if text.isdecimal():
        return _id(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {text!r}") from None


def _group(text: str) -> int:
    if text.isdecimal():
        return _id(text)
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {text!r}") from None


def _path(text: str) -> str:
    return os.path.abspath(text)


def _piece(text: str) -> object:
    from dumpfs.formats.pieces import parse_piece

    return parse_piece(text)


def _flag(_text: str) -> bool:
    return True


OPTIONS: tuple[Option, ...] = (
    Option(
        "holes",
        "zero|error",
        "what /hmem and /vmcore give for pages that the dump left out: zeros (default), or an error",
        _holes,
        "holes",
    ),
    Option(
        "pages",
        "auto|list|open",
        "whether /pages lists its entries or has them opened by name only (auto: listed up to 2^20 of them)",
        _choice("auto", "list", "open"),
        "pages",
    ),
    Option("cache", "SIZE", "decoded pages to keep, per worker process (default 16M)", parse_size, "cache"),
    Option("format", "NAME", "take the input for this format; raw images need format=raw", str, "format"),
    Option(
        "map",
        "OFFSET:ADDRESS:SIZE",
        "where in physical memory a piece of a flat image belongs; for each piece once",
        _piece,
        "pieces",
    ),
    Option("vmcoreinfo", "FILE", "VMCOREINFO text for a dump that has none", _path, "vmcoreinfo"),
    Option("vmlinux", "FILE", "vmlinux of the kernel, for a dump without VMCOREINFO", _path, "vmlinux"),
    Option(
        "phys_base", "N", "x86-64: physical displacement of the kernel, when the dump lacks it", _integer, "phys_base"
    ),
    Option("kaslr", "N", "virtual displacement of the kernel, when the dump lacks it", _unsigned, "kaslr"),
    Option("caller", "", "/dmesg shows caller ids", _flag, "caller"),
    Option("device", "", "/dmesg shows device information", _flag, "device"),
    Option("allow_other", "", "let other users in; modes still decide what they may", _flag, "allow_other", True),
    Option("uid", "USER", "owner of the files (default: who mounts)", _user, "uid", True),
    Option("gid", "GROUP", "group of the files", _group, "gid", True),
    Option(
        "umask", "MODE", "octal permission bits to take away from 0444 and 0555 (default 077)", _octal, "umask", True
    ),
    Option(
        "workers",
        "N",
        "processes that answer requests (default: one per processor, at most 4)",
        _workers,
        "workers",
        True,
    ),
    Option("log", "FILE", "log to a file instead of syslog", _path, "log", True),
    Option("part", "FILE", "one more file of a split set; may be repeated", str, "parts", True),
    Option("ro", "", "always on, as are the next four", _flag, "", True),
    Option("nodev", "", "always on", _flag, "", True),
    Option("nosuid", "", "always on", _flag, "", True),
    Option("noexec", "", "always on", _flag, "", True),
    Option("default_permissions", "", "always on", _flag, "", True),
)
_BY_NAME = {option.name: option for option in OPTIONS}

_IGNORED = frozenset((
    "defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group", "_netdev", "async", "sync",
    "dirsync", "rw", "suid", "dev", "exec", "relatime", "norelatime", "atime", "noatime", "diratime", "nodiratime",
    "strictatime", "nostrictatime", "lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand", "silent",
    "loud",
))  # fmt: skip
"""Options that fstab may hold, and mount(8) hands on, which mean nothing to a dump or are mount(8)'s own."""
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "fsname=", "subtype=", "user=", "uhelper=", "helper=")


_MORE_PIECES = re.compile(r"\w+:\w+:\w+")


def is_ignored(item: str) -> bool:
    """Whether an option is mount(8)'s own, or means nothing to a dump."""
    return item.partition("=")[0] in _IGNORED or item.startswith(_IGNORED_PREFIXES)


def is_option(name: str) -> bool:
    """Whether an option of that name exists."""
    return name in _BY_NAME


def split_options(texts: Iterable[str]) -> list[str]:
    r"""The single options of some comma-separated lists; `\,` and `\\` stand for a comma and a backslash."""
    found = []
    for text in texts:
        for item in re.findall(r"(?:[^,\\]|\\.|\\$)+", text, re.DOTALL):
            item = re.sub(r"\\([,\\])", r"\1", item)
            if item:
                found.append(item)
    return found


def _parse(texts: Iterable[str], *, mounting: bool) -> tuple[dict[str, object], dict[str, object]]:
    reading: dict[str, object] = {}
    mount: dict[str, object] = {}
    parts: list[object] = []
    pieces: list[object] = []
    for item in split_options(texts):
        if pieces and _MORE_PIECES.fullmatch(item):
            item = f"map={item}"  # a list of pieces has commas, too
        name, equals, text = item.partition("=")
        if mounting and is_ignored(item):
            continue
        option = _BY_NAME.get(name)
        if option is None:
            raise UsageError(f"-o {name}: unknown option", hint=_nearest(name))
        if option.mounting and not mounting:
            raise UsageError(f"-o {name}: concerns mounting only", hint="leave it out here")
        if bool(option.metavar) != bool(equals) or (equals and not text):
            problem = "needs a value" if option.metavar else "takes no value"
            raise UsageError(f"-o {name}: {problem}", hint=f"-o {option.usage}")
        try:
            value = option.parse(text)
        except ValueError as exc:
            raise UsageError(f"-o {name}: {exc}", hint=f"-o {option.usage}") from exc
        if option.name == "part":
            parts.append(value)
        elif option.name == "map":
            pieces.append(value)
        elif option.target:
            (mount if option.mounting else reading)[option.target] = value
    if parts:
        mount["parts"] = tuple(parts)
    if pieces:
        reading["pieces"] = tuple(pieces)
    return reading, mount


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _BY_NAME, 1)
    return f"did you mean {_BY_NAME[near[0]].usage}?" if near else "dumpfs mount --help lists the options"


def parse_options(texts: Sequence[str]) -> tuple[OpenOptions, MountOptions]:
    """What some `-o` lists say of reading the dump, and of the mount.

    Raises:
        UsageError: an option is unknown or malformed.
    """
    from dumpfs.vfs.context import OpenOptions

    reading, mount = _parse(texts, mounting=True)
    return OpenOptions(**reading), MountOptions(**mount)  # type: ignore[arg-type]  # the table names the fields


def parse_open_options(texts: Sequence[str]) -> OpenOptions:
    """What some `-o` lists say of reading the dump, for commands that do not mount.

    Raises:
        UsageError: an option is unknown, malformed, or concerns the mount.
    """
    from dumpfs.vfs.context import OpenOptions

    return OpenOptions(**_parse(texts, mounting=False)[0])  # type: ignore[arg-type]


def render_options(*, mounting: bool = True) -> str:
    """The table for `--help`."""
    rows = [option for option in OPTIONS if mounting or not option.mounting]
    width = max(len(option.usage) for option in rows)
    return "\n".join(f"  {option.usage:<{width}}  {option.help}" for option in rows)
