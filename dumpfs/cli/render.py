"""The facts of a dump as text for a person: what one wants to know first comes first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from dumpfs.cli.common import one_line
from dumpfs.cli.progress import render_duration
from dumpfs.units import render_size

Facts = dict[str, Any]
"""JSON as `dumpfs.vfs.views.info.build_info` makes it, with `crash` and `codecs` beside."""

_FORMATS = {"kdump": "kdump-compressed", "elf": "ELF core", "lime": "LiME", "raw": "raw image"}
_SELDOM = "eraseinfo"
"""A view that is there when something was erased from a dump, of which a notice tells; else nobody misses it."""
_WIDTH = 14
"""Columns of the names."""


def render_facts(facts: Facts) -> str:
    """The text of `dumpfs info`; a line for everything that is known."""
    rows = [*_crash(facts), *_machine(facts), ("", ""), *_file(facts), *_addresses(facts), *_remarks(facts)]
    return "\n".join(f"{name:<{_WIDTH}}{one_line(text)}".rstrip() for name, text in rows)


def _crash(facts: Facts) -> Iterator[tuple[str, str]]:
    crash = facts["crash"]
    gaps = crash["log_gaps"]
    missing = f"its log is not whole, with {gaps} gap{'s' * (gaps != 1)}" if gaps else ""
    if crash["problem"]:
        yield "panic", f"unknown, the log cannot be read: {crash['problem']}"
    elif crash["message"]:
        yield "panic", crash["message"]
        if crash["cause"]:
            yield "after", crash["cause"]
    elif crash["cause"]:
        where = f"unknown: {missing}" if missing else "no such line in the log"
        yield "panic", f"{where}; the last complaint is: {crash['cause']}"
    elif missing:
        yield "panic", f"unknown: {missing}"
    else:
        yield "panic", "none in the log; the kernel was running, or its end was not logged"
    if crash["log_source"]:
        yield "log", f"that of {crash['log_source']} beside the dump; the dump's memory cannot give it"
    elif missing and crash["message"]:
        yield "log", f"not whole: {gaps} gap{'s' * (gaps != 1)}, marked in the text of dumpfs dmesg"
    if crash["task"]:
        where = f" in {crash['where']}" if crash["where"] else ""
        yield "task", f"{crash['task']} (pid {crash['pid']}) on processor {crash['cpu']}{where}"
    seconds = (facts["kernel"] or {}).get("crash_time") or facts["dump"]["timestamp"]
    if seconds:
        yield "crash time", _time(seconds)
    else:
        yield "crash time", f"unknown; the file is of {_time(facts['crash_time'])}"
    if crash["uptime"] is not None:
        yield "uptime", f"{render_duration(crash['uptime'])} (last line of the log)"


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds since 1970"


def _machine(facts: Facts) -> Iterator[tuple[str, str]]:
    kernel = facts["kernel"] or {}
    uts = kernel.get("uts") or facts["dump"]["uts"]
    if uts["nodename"]:
        yield "host", uts["nodename"]
    release = kernel.get("release") or uts["release"]
    yield "kernel", f"{release} {uts['version']}".strip() or "unknown"
    if kernel.get("build_id"):
        yield "build-id", kernel["build_id"]
    machine = kernel.get("machine") or facts["dump"]["machine"] or "unknown"
    cpus = kernel.get("cpus") or facts["dump"]["nr_cpus"]
    yield "machine", f"{machine}, {cpus} processor{'s' * (cpus != 1)}" if cpus else machine
    yield "memory", render_size(facts["sizes"]["ram"])
    yield "level", _level(facts["dump"])
    yield "complete", _completeness(facts)


def _completeness(facts: Facts) -> str:
    """What the headers say, and what a look at some page records adds: nobody has read every page."""
    dump, codecs = facts["dump"], facts["codecs"]
    if not dump["complete"]:
        return f"no: {dump['incomplete_reason'] or 'it ended early'}"
    bad = sum(codecs.get(state, 0) for state in ("lost", "corrupt"))
    if bad:
        return f"no: {bad} of {sum(codecs.values())} pages looked at cannot be read; dumpfs check looks at all"
    return "yes"


def _level(dump: Facts) -> str:
    level, words = dump["level"], dump["level_excludes"]
    if level is None or words is None:
        return "not recorded in the file"
    shared = "zero" in words and dump["format"] == "kdump"  # they stay in the file, once
    left_out = [word for word in words if not (shared and word == "zero")]
    parts = [f"left out are {', '.join(left_out)} pages"] if left_out else ["no page is left out"]
    parts += ["zero pages share one copy"] if shared else []
    return f"{level}: {'; '.join(parts)}"


def _file(facts: Facts) -> Iterator[tuple[str, str]]:
    for file in facts["files"]:
        size = "gone" if file["size"] is None else render_size(file["size"])
        yield "file", f"{file['path']} ({size})"
    dump = facts["dump"]
    words = [_FORMATS.get(dump["format"], dump["format"])]
    words += [f"version {dump['version']}"] if dump["version"] else []
    words += [dump["variant"]] if dump["variant"] else []
    words += [f"{8 * dump['word_size']}-bit {dump['byteorder']}-endian"]
    yield "format", ", ".join(words)
    if dump["format"] == "kdump":
        yield "compression", _compression(facts)
    for name in ("stored", "excluded", "lost"):
        pages = facts["pages"][name]
        if pages or name == "stored":
            yield f"{name}", f"{pages} pages, {render_size(facts['sizes'][name])}"
    yield "page size", str(facts["page_size"])
    if dump["block_size"] != facts["page_size"]:
        yield "block size", f"{dump['block_size']}: a record of the file holds {_times(facts)} pages"


def _compression(facts: Facts) -> str:
    codecs = facts["codecs"]
    total = sum(codecs.values())
    mix = ", ".join(f"{name} {100 * n / total:.0f}%" for name, n in codecs.items())
    asked = f"{facts['dump']['compression'] or 'unknown'} asked for"
    return f"{asked}; of {total} pages looked at: {mix}" if mix else asked


def _times(facts: Facts) -> int:
    return int(facts["dump"]["block_size"]) // int(facts["page_size"])


def _addresses(facts: Facts) -> Iterator[tuple[str, str]]:
    kernel = facts["kernel"] or {}
    origins = kernel.get("origins") or {}
    for key, name in (("phys_base", "phys_base"), ("kaslr_offset", "KASLR offset"), ("page_offset", "direct map")):
        value = kernel.get(key)
        if value is not None:
            origin = f" ({origins[key]})" if origins.get(key) else ""
            yield name, f"{value:#x}{origin}"


def _remarks(facts: Facts) -> Iterator[tuple[str, str]]:
    for text in facts["notices"]:
        yield "notice", text
    for text in (facts["kernel"] or {}).get("problems") or ():
        yield "notice", f"kernel: {text}"
    for path, reason in facts["not_offered"].items():
        if path == _SELDOM:
            continue
        yield "no view", f"/{path}: {reason}"
