"""The options of -o."""

from __future__ import annotations

import os

import pytest

from dumpfs.errors import UsageError
from dumpfs.fuse.options import (
    OPTIONS,
    MountOptions,
    is_option,
    parse_open_options,
    parse_options,
    render_options,
    split_options,
)
from dumpfs.memory.physical import HolePolicy
from dumpfs.vfs.context import OpenOptions


def test_no_options_are_the_defaults():
    assert parse_options([]) == (OpenOptions(), MountOptions())
    assert parse_open_options([]) == OpenOptions()


def test_defaults_of_the_mount():
    options = MountOptions()
    assert (options.uid, options.gid, options.umask) == (os.geteuid(), os.getegid(), 0o077)
    assert 1 <= options.workers <= 4
    assert not options.allow_other


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("holes=zero", "holes", HolePolicy.ZERO),
        ("holes=error", "holes", HolePolicy.ERROR),
        ("pages=open", "pages", "open"),
        ("cache=0", "cache", 0),
        ("cache=64M", "cache", 64 << 20),
        ("format=raw", "format", "raw"),
        ("vmcoreinfo=/a/b", "vmcoreinfo", "/a/b"),
        ("vmlinux=/a/b=c", "vmlinux", "/a/b=c"),
        ("phys_base=-0x1000", "phys_base", -4096),
        ("phys_base=4096", "phys_base", 4096),
        ("kaslr=0x8000000", "kaslr", 0x8000000),
        ("caller", "caller", True),
        ("device", "device", True),
    ],
)
def test_reading_option(text, field, value):
    assert getattr(parse_options([text])[0], field) == value
    assert getattr(parse_open_options([text]), field) == value


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("allow_other", "allow_other", True),
        ("uid=12", "uid", 12),
        ("uid=root", "uid", 0),
        ("gid=34", "gid", 34),
        ("gid=root", "gid", 0),
        ("umask=022", "umask", 0o022),
        ("workers=3", "workers", 3),
        ("log=/var/log/x", "log", "/var/log/x"),
        ("part=a,part=b", "parts", ("a", "b")),
    ],
)
def test_mounting_option(text, field, value):
    assert getattr(parse_options([text])[1], field) == value
    with pytest.raises(UsageError, match="concerns mounting only"):
        parse_open_options([text])


@pytest.mark.parametrize("text", ["ro", "nodev", "nosuid", "noexec", "default_permissions"])
def test_what_is_always_on_may_be_said(text):
    assert parse_options([text]) == (OpenOptions(), MountOptions())


def test_relative_paths_become_absolute_before_the_daemon_changes_its_folder():
    reading, mount = parse_options(["vmlinux=a,vmcoreinfo=b,log=c"])
    assert (reading.vmlinux, reading.vmcoreinfo, mount.log) == tuple(map(os.path.abspath, "abc"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "-o nonsense: unknown option"),
        ("nonsense=1", "-o nonsense: unknown option"),
        ("holes", "-o holes: needs a value"),
        ("holes=", "-o holes: needs a value"),
        ("holes=maybe", "-o holes: 'maybe' is not zero or error"),
        ("pages=none", "-o pages: 'none' is not auto, list or open"),
        ("cache=lots", "-o cache: 'lots' is not a size"),
        ("cache=-1", "-o cache: '-1' is not a size"),
        ("kaslr=-1", "-o kaslr: '-1' is negative"),
        ("phys_base=x", "-o phys_base: 'x' is not a number"),
        ("workers=0", "-o workers: '0' is not between 1 and 64"),
        ("workers=65", "-o workers: '65' is not between 1 and 64"),
        ("workers=many", "-o workers: 'many' is not a number"),
        ("umask=9", "-o umask: '9' is not an octal mode"),
        ("uid=no-such-user-here", "-o uid: there is no user 'no-such-user-here'"),
        ("uid=4294967295", "-o uid: '4294967295' is not between 0 and 4294967294"),
        ("gid=99999999999999999999", "-o gid: '99999999999999999999' is not between 0 and 4294967294"),
        ("gid=no-such-group-here", "-o gid: there is no group 'no-such-group-here'"),
        ("allow_other=1", "-o allow_other: takes no value"),
        ("ro=1", "-o ro: takes no value"),
    ],
)
def test_wrong_option_is_told(text, message):
    with pytest.raises(UsageError) as failure:
        parse_options([text])
    assert failure.value.message.startswith(message)
    assert failure.value.hint
    assert failure.value.exit_code == 2


def test_near_miss_gets_the_right_name():
    with pytest.raises(UsageError) as failure:
        parse_options(["alow_other"])
    assert failure.value.hint == "did you mean allow_other?"


def test_lists_may_be_repeated_and_the_last_wins():
    reading, mount = parse_options(["holes=error,workers=2", "holes=zero", "", "uid=5,,"])
    assert (reading.holes, mount.workers, mount.uid) == (HolePolicy.ZERO, 2, 5)


def test_commas_and_backslashes_can_be_escaped():
    assert split_options([r"part=a\,b,log=c\\d", r"e\x", "f\\"]) == ["part=a,b", r"log=c\d", r"e\x", "f\\"]


def test_table_is_whole():
    for option in OPTIONS:
        assert is_option(option.name)
        assert option.help
        assert option.usage in render_options()
        fields = MountOptions.__dataclass_fields__ if option.mounting else OpenOptions.__dataclass_fields__
        assert not option.target or option.target in fields
    assert {option.target for option in OPTIONS if not option.mounting} == set(OpenOptions.__dataclass_fields__)
    assert set(MountOptions.__dataclass_fields__) <= {option.target for option in OPTIONS if option.mounting}
    assert "allow_other" not in render_options(mounting=False)
