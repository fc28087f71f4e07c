"""Which views there are, once the kernel was looked into."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dumpfs.errors import ViewError
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.config import ConfigFile
from dumpfs.vfs.views.status import render_status

NOT_KNOWN = "  what else, and why, is not known yet"


@pytest.fixture
def dump(data):
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        yield dump


@pytest.fixture
def incomplete(data):
    with Dump.open([str(data("mkd-incomplete-zlib-d31.kdump"))]) as dump:
        yield dump


def names(dump: Dump) -> list[str]:
    return [name for _, name, _ in dump.tree.root.entries(0)]


def section(dump: Dump, title: str) -> list[str]:
    lines = render_status(dump).decode().split("\n")
    start = lines.index(f"{title}:") + 1
    stop = next(i for i in range(start, len(lines)) if not lines[i].startswith("  "))
    return lines[start:stop]


def test_whatever_a_dump_may_offer_is_listed_until_it_is_known(incomplete):
    assert {"config", "tasks", "kallsyms", "dmesg"} <= set(names(incomplete))
    assert incomplete.tree.root.decided_by() is incomplete.tree.at("tasks")
    assert section(incomplete, "not offered")[-1].startswith(NOT_KNOWN)


def test_what_another_process_found_out_decides(incomplete, data):
    with Dump.open([str(data("mkd-incomplete-zlib-d31.kdump"))]) as other:
        found = other.inspection.build()
    incomplete.inspection.adopt(found)
    assert incomplete.tree.root.decided_by() is None
    assert names(incomplete) == [
        "README", "bitmaps", "cpus", "gdb", "gdbinit", "hmem", "info.json", "memmap", "pages", "status", "vmcore",
        "vmcoreinfo",
    ]  # fmt: skip
    offered = section(incomplete, "not offered")
    assert any(line.startswith("  config: no configuration in the kernel") for line in offered)
    assert not any(line.startswith(NOT_KNOWN) for line in offered)
    assert incomplete.tree.lookup_path("config") is None


def test_file_that_was_looked_up_before_still_says_why(incomplete):
    config = incomplete.tree.at("config")
    incomplete.tree.settle({"config": "made up"})
    assert incomplete.tree.at("config") is None
    assert incomplete.tree.node(config.ino) is config


def test_all_that_the_kernels_inside_takes_is_missing_when_that_is_not_to_be_had(dump):
    tasks = dump.tree.at("tasks")
    dump.tree.decide({tasks.ino: "the kernel is not to be known"})
    missing = {"btf", "cmdline", "config", "cpus", "gdbinit", "kallsyms", "modules", "tasks", "version", "vmcore-tasks"}
    assert not missing & set(names(dump))
    assert {"dmesg", "vmcore", "hmem", "README", "status"} <= set(names(dump))
    assert "  cmdline: the kernel is not to be known" in section(dump, "not offered")


def test_file_that_could_not_be_built_is_not_listed_any_more(dump):
    core = dump.tree.at("vmcore-kern")
    reasons = {core.ino: "it takes all memory"}
    dump.failures = lambda: reasons
    dump.tree.decide(reasons)
    assert "vmcore-kern" not in names(dump)
    assert section(dump, "could not be built") == ["  vmcore-kern: it takes all memory"]


@pytest.mark.logs("unexpected error while looking whether there can be a config")
def test_mistake_of_ours_in_one_view_costs_that_view(dump, monkeypatch):
    def broken(dump: Dump) -> None:
        raise KeyError("made up")

    monkeypatch.setattr(ConfigFile, "probe", broken)
    assert dump.tree.find_absent()["config"] == "unexpected KeyError; the log tells more"


def test_remedy_is_told_with_the_reason(dump, monkeypatch):
    def refused(dump: Dump) -> None:
        raise ViewError("made up", hint="do something")

    monkeypatch.setattr(ConfigFile, "probe", refused)
    assert dump.tree.find_absent()["config"] == "made up (do something)"


def test_size_of_status_stays_while_it_only_counts(dump):
    dump.inspection.adopt(dump.inspection.build())
    dump.counters.values = lambda: {"requests": 1, "errors": 0, "cache_bytes": 9}
    size = dump.tree.at("status").size()
    dump.counters.values = lambda: {"requests": 123456789, "errors": 0, "cache_bytes": 1 << 40}
    assert dump.tree.at("status").size() == size


def test_large_dump_is_not_searched_for_a_listing(dump, monkeypatch):
    status = dump.tree.at("status")
    assert status.patient
    assert dump.tree.root.patient
    monkeypatch.setitem(vars(dump), "kernel", replace(dump.kernel, vmcoreinfo=None))
    monkeypatch.setitem(vars(dump), "searched_bytes", 1 << 40)
    assert not status.patient
    assert not dump.tree.root.patient
