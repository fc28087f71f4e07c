"""Bars of `dumpfs write`: whatever call to the system fails or is its last, and whoever else writes the same file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path

from barlib import DUMPFS, Measured, bar, corpus, run, tool
from bars_writer_lose import NOT_FLAGGED, PREVIOUS, problem
from plainreader import PAGE
from writerlib import same_file, scratch, tiny, words, write

from dumpfs.errors import DumpfsError
from dumpfs.formats import open_image
from dumpfs.units import PageState

_SKIPPED = ("execve", "exit_group", "exit", "---", "+++", "<...")
_MOST = 40
"""Of one call in one process; each is looked at until it does not come any more."""


def calls(options: list[str], folder: Path) -> list[str]:
    """Names of the system calls that a write makes on its files."""
    log = folder / "calls"
    traced(options, folder, log, [])
    names = Counter(line.split()[1].partition("(")[0] for line in log.read_text().splitlines())
    return sorted(name for name in names if name and name not in _SKIPPED and name.isidentifier())


def traced(options: list[str], folder: Path, log: Path, inject: list[str]) -> int:
    """Run a write under strace, which looks at calls on its files only; returns its exit status."""
    target = folder / "dump"
    command = [tool("strace"), "-f", "-P", target, "-P", f"{target}.partial", "-o", log, *inject]
    command += words(DUMPFS, "write", "--message-level", "0", "-f", *options, tiny(), target)
    return run(*map(str, command), timeout=120).returncode


def judge(folder: Path, complete: Path, code: int, *, killed: bool) -> str:
    """What is wrong with what a write that was disturbed left behind, or ''."""
    target, partial = folder / "dump", folder / "dump.partial"
    if target.exists() and same_file(target, complete):
        return "" if code == 0 or killed or not partial.exists() else "complete, and yet something is left"
    if code == 0 and not killed:
        return "exit 0, and DST is not the dump"
    if not target.exists() or target.read_bytes() != PREVIOUS:
        return "DST was touched"
    if not partial.exists() or not partial.stat().st_size:
        return ""
    if partial.stat().st_size < 2 * PAGE:  # not even the headers
        return "" if run(DUMPFS, "info", partial).returncode else "a dump without headers can be opened"
    found = problem(partial, complete)
    if found == NOT_FLAGGED and same_file(partial, complete):
        return ""  # all is there but its name
    if found == "other bitmaps":  # not all written: then nothing may be said to be there, or to be left out on purpose
        told = json.loads(run(DUMPFS, "check", "--json", partial).stdout)
        if not told["complete"] and not told["pages"]["readable"] and not told["pages"]["excluded"]:
            return ""
    return found


def disturb(options: list[str]) -> tuple[int, Counter[str], list[str]]:
    """Fail each call, and kill after each: how many, of which, and what went wrong."""
    done, seen, wrong = 0, Counter(), []
    with scratch() as folder:
        complete = folder / "complete"
        write("-f", *options, tiny(), complete)
        (folder / "dump").write_bytes(PREVIOUS)
        for name in calls(options, folder):
            for how in ("error=EIO", "error=ENOSPC", "signal=SIGKILL"):
                for number in range(1, _MOST):
                    for path in folder.glob("dump*"):
                        path.unlink()
                    (folder / "dump").write_bytes(PREVIOUS)
                    log = folder / "log"
                    inject = ["-e", f"trace={name}", "-e", f"inject={name}:{how}:when={number}"]
                    code = traced(options, folder, log, inject)
                    hit = "INJECTED" in (text := log.read_text()) or (how.startswith("signal") and "SIGKILL" in text)
                    if not hit:
                        break
                    done += 1
                    seen[name] += 1
                    found = judge(folder, complete, code, killed=how.startswith("signal"))
                    if found:
                        wrong.append(f"{' '.join(options)}: {how} at {name} {number}: exit {code}, {found}")
    return done, seen, wrong


@bar(
    "write-system-calls",
    "every system call of write on its files failed (EIO, ENOSPC) and killed at, for -l, -E and uncompressed: DST is"
    " what it was or the whole dump, what is left is right and flagged, no exit 0 without the dump",
)
def system_calls() -> Measured:
    total, seen, wrong = 0, Counter(), []
    for options in (["-l", "-d", "31"], ["-E", "-d", "31"], ["-d", "1"]):
        done, names, problems = disturb(options)
        total, seen, wrong = total + done, seen + names, wrong + problems
    counts = ", ".join(f"{name} {count}" for name, count in seen.most_common())
    return Measured("; ".join(wrong[:4]) or f"{total} disturbances ({counts}): nothing lost", not wrong and total > 100)


_ROUNDS = 100


@bar(
    "write-writers",
    f"two, three and ten writers to one DST, {_ROUNDS} rounds: DST is a whole dump of one that exited 0; without -f"
    " exactly one did",
)
def writers() -> Measured:
    wrong: list[str] = []
    ends: Counter[int] = Counter()
    with scratch() as folder:
        forms = [["-l", "-d", "31"], ["-c", "-d", "31"], ["-d", "31"], ["-E", "-d", "31"]]
        wholes = []
        for number, options in enumerate(forms):
            wholes.append(folder / f"whole{number}")
            write(*options, tiny(), wholes[-1])
        for turn in range(_ROUNDS):
            count = (2, 3, 10)[turn % 3]
            target = folder / "dump"
            force = "-f" if turn % 2 else ""
            started = [
                subprocess.Popen(
                    words(DUMPFS, "write", "--message-level", "0", force, *forms[i % len(forms)], tiny(), target),
                    stderr=subprocess.DEVNULL,
                )
                for i in range(count)
            ]
            codes = [process.wait() for process in started]
            ends.update(codes)
            good = [i for i, code in enumerate(codes) if code == 0]
            if not target.exists() or not good:
                wrong.append(f"round {turn}: {codes}, no dump")
            elif not any(same_file(target, whole) for whole in wholes):
                wrong.append(f"round {turn}: DST is none of the dumps")
            elif not any(same_file(target, wholes[i % len(forms)]) for i in good):
                wrong.append(f"round {turn}: DST is of one that failed")
            if not force and len(good) != 1:
                wrong.append(f"round {turn}: {len(good)} of {count} exited 0")
            if list(folder.glob("dump.partial*")):
                wrong.append(f"round {turn}: something is left")
            for path in folder.glob("dump*"):
                path.unlink()
    counts = ", ".join(f"exit {code}: {number}" for code, number in sorted(ends.items()))
    text = "; ".join(wrong[:4]) or f"{_ROUNDS} rounds ({counts}): one whole dump each time"
    return Measured(text, not wrong)


_FORMS = (["-c"], ["-l"], ["-p"], ["-z"], [], ["-E"], ["-l", "-d", "1"], ["-c", "-d", "1"])
_READ = 1024
_ZEROS = hashlib.blake2b(bytes(PAGE), digest_size=8).digest()
_DAMAGES = ("whole", "cut", "hole", "bad")


def damaged(source: Path, how: str, target: Path) -> None:
    """A copy of a dump, whole, cut at two thirds, with a stretch of zeros amid it, or with single bytes turned over."""
    data = bytearray(source.read_bytes())
    size = len(data)
    if how == "cut":
        del data[2 * size // 3 :]
    elif how == "hole":
        data[size // 2 : size // 2 + size // 20] = bytes(size // 20)
    elif how == "bad":
        for place in range(size // 3, size, size // 37):
            data[place] ^= 0xFF
    target.write_bytes(data)


def pages_of(path: Path) -> dict[int, bytes | None] | None:
    """Hash of each page by number, None for those that are lost or corrupt; None when it cannot be opened."""
    try:
        image = open_image([path])
    except DumpfsError:
        return None
    found: dict[int, bytes | None] = {}
    with contextlib.closing(image):
        for first in range(0, image.meta.max_pfn, _READ):
            data, states = image.read_run(first, min(_READ, image.meta.max_pfn - first))
            for i, state in enumerate(states):
                if state in (PageState.STORED, PageState.PARTIAL):
                    found[first + i] = hashlib.blake2b(data[i * PAGE : (i + 1) * PAGE], digest_size=8).digest()
                elif state in (PageState.LOST, PageState.CORRUPT):
                    found[first + i] = None
    return found


def difference(before: dict[int, bytes | None], after: dict[int, bytes | None] | None, *, elf: bool) -> str:
    """What a written dump has other than its source, or ''.

    An ELF core has the kernel's text in one segment, with zeros for what the source left out of it; and a page that the
    source lost is no memory there.
    """
    if after is None:
        return "cannot be opened"
    lost = [pfn for pfn, page in before.items() if page is not None and after.get(pfn) is None]
    other = [pfn for pfn, page in before.items() if page is not None and after.get(pfn) not in (None, page)]
    made_up = [pfn for pfn, page in before.items() if page is None and after.get(pfn) is not None]
    nothing = (None, _ZEROS) if elf else (None,)
    added = [pfn for pfn, page in after.items() if pfn not in before and page not in nothing]
    names = ("lost", "other", "made up", "added")
    return ", ".join(f"{len(p)} {name}" for name, p in zip(names, (lost, other, made_up, added), strict=True) if p)


@bar("write-readable", "readable(write(x)) == readable(x) over at least 200 sources and forms, damaged ones among them")
def keeps_readable() -> Measured:
    wrong: list[str] = []
    compared = refused = 0
    names = [
        "tiny/mkd-raw-d31.kdump", "tiny/mkd-snappy-d31.kdump", "tiny/mkd-zstd-d31.kdump", "tiny/qemu-kaslr.kdump-lzo",
        "tiny/qemu-kaslr.kdump-zlib", "tiny/mkd-incomplete-zlib-d31.kdump", "tiny/mkd-incomplete-elf-d31.elf",
        "tiny/kdump-kaslr.vmcore",
    ]  # fmt: skip
    with scratch() as folder:
        source, target = folder / "source", folder / "written"
        for name in names:
            for how in _DAMAGES:
                damaged(corpus(name), how, source)
                before = pages_of(source)
                if before is None:
                    refused += 1
                    continue
                for options in _FORMS:
                    target.unlink(missing_ok=True)
                    silent = ("--message-level", "0", "--keep-partial", "-f")
                    code = run(*words(DUMPFS, "write", *silent, *options, source, target)).returncode
                    after = pages_of(target) if target.exists() else None
                    compared += 1
                    found = difference(before, after, elf="-E" in options)
                    if found:
                        wrong.append(f"{name} {how} {' '.join(options)}: exit {code}, {found}")
    text = f"{compared} compared ({refused} sources could not be opened): {'; '.join(wrong[:4]) or 'all the same'}"
    return Measured(text, not wrong and compared >= 200)
