"""Runs of many workers, and the notes they leave: what was run, what was found."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.corpus import ROOT
from tests.fuzz import bases
from tests.fuzz.worker import Counts, Finding, run_cases

_CHUNK = {False: 500, True: 25}
"""Cases of one process, of small bases and of real dumps."""
_STAGE_BYTES = 512
_KEPT = 5
"""Findings of one signature to write down."""


@dataclass
class Chunk:
    """What one process does."""

    name: str
    first: int
    stop: int


@dataclass
class Tally:
    """What became of all cases so far."""

    runs: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    cpu: Counter[str] = field(default_factory=Counter)
    """Seconds of processor time by base."""
    seconds: float = 0.0
    memory: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(f.kind for f in self.findings)
        return (
            f"{sum(self.runs.values()):,} inputs ({self.refused:,} refused), the dearest {self.seconds:.1f} s and "
            f"{self.memory >> 20} MiB: {', '.join(f'{n} {k}' for k, n in kinds.items()) or 'nothing found'}"
        )


class Campaign:
    """Cases of several bases, on several processors.

    Args:
        names: of the bases; those that are not there are left out.
        folder: for notes: `state.json` has the next number of each base, so that the next run goes on; `log.jsonl`
            what each process did, and `findings` what was found.
        jobs: processes at a time.
        first: number of the first case of a base that was not run yet.
    """

    def __init__(self, names: list[str], folder: Path, jobs: int, first: int = 0) -> None:
        self.folder, self.jobs, self._first = folder, jobs, first
        (folder / "findings").mkdir(parents=True, exist_ok=True)
        self.names = [name for name in names if bases.load(name) is not None]
        self.tally = Tally()
        self._work = Path(mkdtemp(prefix="dumpfs-fuzz-", dir="/dev/shm"))
        self._running: dict[int, tuple[Chunk, int, int]] = {}
        """By process id: what it does, and the descriptors of its stage and result."""
        self._signatures: Counter[str] = Counter()
        self._state = self._load_state()
        self._left: list[Chunk] = []

    def _load_state(self) -> dict[str, int]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def run(self, *, seconds: float | None = None, cases: int | None = None) -> Tally:
        """Run until the time is up, or every base has had so many cases more."""
        until = None if seconds is None else time.monotonic() + seconds
        stop_at = {name: self._state.get(name, self._first) + (cases or 0) for name in self.names}
        try:
            while True:
                while len(self._running) < self.jobs and (chunk := self._next(until, stop_at if cases else None)):
                    self._start(chunk)
                if not self._running:
                    return self.tally
                self._collect()
        finally:
            self._clean()

    def _next(self, until: float | None, stop_at: dict[str, int] | None) -> Chunk | None:
        if until is not None and time.monotonic() >= until:
            return None
        if self._left:
            return self._left.pop()
        names = [n for n in self.names if stop_at is None or self._state.get(n, self._first) < stop_at[n]]
        if not names:
            return None
        name = min(names, key=lambda n: self.tally.cpu[n])
        base = bases.load(name)
        assert base is not None
        first = self._state.get(name, self._first)
        stop = first + _CHUNK[base.seldom]
        if stop_at is not None:
            stop = min(stop, stop_at[name])
        self._state[name] = stop
        self.tally.cpu[name] += 0.001  # two processes begin with two bases
        return Chunk(name, first, stop)

    def _start(self, chunk: Chunk) -> None:
        stage, result = os.memfd_create("stage"), os.memfd_create("result")
        os.ftruncate(stage, _STAGE_BYTES)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _work(chunk, self._work, stage, result)
                code = 0
            finally:
                os._exit(code)
        self._running[pid] = chunk, stage, result

    def _collect(self) -> None:
        pid, status, usage = os.wait4(-1, 0)
        if pid not in self._running:
            return
        chunk, stage, result = self._running.pop(pid)
        seconds = usage.ru_utime + usage.ru_stime
        self.tally.cpu[chunk.name] += seconds
        text = os.pread(result, os.fstat(result).st_size, 0)
        where = os.pread(stage, _STAGE_BYTES, 0).rstrip(b"\0").decode("utf-8", "replace")
        os.close(stage)
        os.close(result)
        if text:
            told = json.loads(text)
        else:
            told = self._of_the_dead(chunk, where, status)
        self._note(chunk, told, seconds)

    def _of_the_dead(self, chunk: Chunk, where: str, status: int) -> dict[str, Any]:
        """A process that ended without a word died of the case it was at; the rest is run by another."""
        number, _, stage = where.partition(" ")
        seed = int(number) if number.isdigit() else chunk.first
        if seed + 1 < chunk.stop:
            self._left.append(Chunk(chunk.name, seed + 1, chunk.stop))
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
        finding = Finding(f"{chunk.name}:{seed}", "signal", how, stage)
        return {"counts": asdict(Counts(seed + 1 - chunk.first)), "findings": [asdict(finding)]}

    def _note(self, chunk: Chunk, told: dict[str, Any], seconds: float) -> None:
        counts, tally = Counts(**told["counts"]), self.tally
        tally.runs[chunk.name] += counts.runs
        tally.refused += counts.refused
        tally.seconds = max(tally.seconds, counts.seconds)
        tally.memory = max(tally.memory, counts.memory)
        for values in told["findings"]:
            finding = Finding(**values)
            tally.findings.append(finding)
            self._write_down(finding)
        row = {"base": chunk.name, "first": chunk.first, **asdict(counts), "cpu": round(seconds, 1)}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({**row, "findings": len(told["findings"]), "commit": _commit()}) + "\n")
        (self.folder / "state.json").write_text(json.dumps(self._state, indent=1))

    def _write_down(self, finding: Finding) -> None:
        signature = finding.signature()
        self._signatures[signature] += 1
        if self._signatures[signature] <= _KEPT:
            path = self.folder / "findings" / f"{finding.case.replace(':', '-')}.json"
            path.write_text(json.dumps({**asdict(finding), "signature": signature, "commit": _commit()}, indent=1))
            print(f"{finding.case}: {signature}", flush=True)

    def _clean(self) -> None:
        for path in self._work.iterdir():
            path.unlink()
        self._work.rmdir()


def _work(chunk: Chunk, folder: Path, stage: int, result: int) -> None:
    """What a process does: `result` gets JSON in the end, `stage` what is being done."""

    def report(seed: int, text: str) -> None:
        os.pwrite(stage, f"{seed} {text}".encode()[: _STAGE_BYTES - 1].ljust(_STAGE_BYTES, b"\0"), 0)

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    counts, findings = run_cases(chunk.name, range(chunk.first, chunk.stop), folder, report)
    os.pwrite(result, json.dumps({"counts": asdict(counts), "findings": [asdict(f) for f in findings]}).encode(), 0)


@cache
def _commit() -> str:
    """What is being tested: what was there when it was imported."""
    done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, check=False)
    return done.stdout.decode().strip()
