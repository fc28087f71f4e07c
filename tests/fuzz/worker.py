"""Many cases in one process, each measured: processor time, memory, descriptors that stay open."""

from __future__ import annotations

import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dumpfs.fuse.process import limit_memory
from tests.fuzz.bases import Base, load
from tests.fuzz.drive import SANITIZED, Outcome, drive
from tests.fuzz.mutate import Damage, damage_of

CPU_SECONDS = 100.0 if SANITIZED else 10.0
"""Processor time that one case may take."""
MEMORY = 512 << 20
"""Bytes that one case may add to what the process has."""
_WALL_SECONDS = 300
"""A case that waits for ever takes no processor time; this machine may be very busy."""
_GRACE = 5
"""Seconds of processor time after which the system ends a case that our own signal did not."""


class TooLong(BaseException):
    """A case has used up its processor time; not an `Exception`, so that nothing keeps it from being seen."""


@dataclass
class Finding:
    """A case that ended as none may."""

    case: str
    kind: str
    """traceback, problem, seconds, memory, memory error, descriptors, signal."""
    what: str
    stage: str = ""
    seconds: float = 0.0
    memory: int = 0

    def signature(self) -> str:
        """What findings of one cause have in common."""
        lines = [line.strip() for line in self.what.splitlines() if line.strip()]
        places = [line for line in lines if line.startswith("File ") and "/dumpfs/" in line]
        last = "".join(c for c in (lines[-1] if lines else "") if not c.isdigit())[:80]
        return f"{self.kind} | {last} | {places[-1].rpartition('/')[2] if places else self.stage.split('/')[0]}"


class Bench:
    """A file that is damaged, looked at and mended again.

    Args:
        base: what it is otherwise.
        folder: where it lies; in memory, as nothing of it is to last.
    """

    def __init__(self, base: Base, folder: Path) -> None:
        self.base = base
        self.path = folder / f"{base.name}.{os.getpid()}"
        self.path.write_bytes(base.data)

    def apply(self, damage: Damage) -> None:
        """Damage the file."""
        with self.path.open("r+b") as file:
            for offset, data in damage.patches:
                file.seek(offset)
                file.write(data)
            if damage.cut is not None:
                file.truncate(damage.cut)
            if damage.tail:
                file.seek(0, os.SEEK_END)
                file.write(damage.tail)

    def mend(self, damage: Damage) -> None:
        """Undo `apply`."""
        data = self.base.data
        with self.path.open("r+b") as file:
            if damage.cut is not None:
                file.seek(damage.cut)
                file.write(data[damage.cut :])
            file.truncate(len(data))
            for offset, patch in damage.patches:
                file.seek(offset)
                file.write(data[offset : offset + len(patch)])

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


@dataclass
class Counts:
    """What many cases came to."""

    runs: int = 0
    refused: int = 0
    seconds: float = 0.0
    """Of processor time, of the dearest."""
    memory: int = 0
    """Bytes, of the dearest."""


def run_cases(
    name: str, seeds: range, folder: Path, report: Callable[[int, str], None]
) -> tuple[Counts, list[Finding]]:
    """Run cases of one base in this process, which has to be one of its own: its limits are lowered.

    Args:
        name: of the base.
        seeds: numbers of the cases.
        folder: for the damaged file; in memory.
        report: told of each case's number and what is done with it.
    """
    base = load(name)
    assert base is not None, name
    bench = Bench(base, folder)
    limit_process()
    counts = Counts()
    findings: list[Finding] = []
    try:
        for seed in seeds:
            run = _Run(bench, seed, damage_of(base, seed), report)
            finding = run.measured()
            if finding is not None:
                findings.append(finding)
            counts.runs += 1
            counts.refused += run.outcome.refused
            counts.seconds = max(counts.seconds, run.seconds)
            counts.memory = max(counts.memory, run.memory)
    finally:
        bench.close()
    return counts, findings


def run_case(bench: Bench, seed: int, damage: Damage) -> Finding | None:
    """Run one case with this damage; else like `run_cases`."""
    limit_process()
    try:
        return _Run(bench, seed, damage, lambda seed, text: None).measured()
    finally:
        bench.close()


class _Run:
    def __init__(self, bench: Bench, seed: int, damage: Damage, report: Callable[[int, str], None]) -> None:
        self.bench, self.seed, self.damage, self.report = bench, seed, damage, report
        self.outcome = Outcome("none")
        self.seconds, self.memory = 0.0, 0

    def measured(self) -> Finding | None:
        self.bench.apply(self.damage)
        _forget_peak()
        before, open_before = _resident(), _descriptors()
        started = time.process_time()
        kind, what = self._outcome()
        self.seconds = time.process_time() - started
        self.memory = max(_peak() - before, 0)
        self.bench.mend(self.damage)
        if not kind and self.memory > MEMORY and not SANITIZED:
            kind, what = "memory", f"{self.memory >> 20} MiB"
        if not kind and _descriptors() > open_before:  # fewer: garbage of whoever forked us was collected
            kind, what = "descriptors", f"{_descriptors() - open_before} stay open"
        if not kind and self.outcome.problems:
            kind, what = "problem", "; ".join(self.outcome.problems[:5])
        if not kind:
            return None
        case = f"{self.bench.base.name}:{self.seed}"
        return Finding(case, kind, what, f"{self.outcome.drive} {self.outcome.stage}", self.seconds, self.memory)

    def tell(self, text: str) -> None:
        """Say what is being done."""
        self.report(self.seed, text)

    def _outcome(self) -> tuple[str, str]:
        """Kind and text of what went wrong, or two empty strings."""
        base = self.bench.base
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + CPU_SECONDS + _GRACE) + 1, hard))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(_WALL_SECONDS)
        try:
            self.outcome = Outcome("opening")
            drive(self.bench.path, base.name, self.seed, self.outcome, seldom=base.seldom, report=self.tell)
        except TooLong:
            return "seconds", traceback.format_exc(limit=-12)
        except MemoryError:
            return "memory error", traceback.format_exc(limit=-12)
        except Exception:  # noqa: BLE001  # what is looked for
            return "traceback", traceback.format_exc(limit=-12)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        return "", ""


def _time_is_up(number: int, frame: FrameType | None) -> None:
    raise TooLong(signal.Signals(number).name)


def limit_process() -> None:
    """Have a case that takes too much fail: memory by the system, time by our own signals."""
    signal.signal(signal.SIGPROF, _time_is_up)
    signal.signal(signal.SIGALRM, _time_is_up)
    if not SANITIZED:  # they map terabytes
        limit_memory(2 * MEMORY)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def _resident() -> int:
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:")


def _forget_peak() -> None:
    """Have the system count the peak of resident memory anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
