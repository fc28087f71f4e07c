"""The least damage that still does it, as a file for `tests/fuzz/cases`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz import bases
from tests.fuzz.mutate import Damage, damage_of
from tests.fuzz.worker import Bench, Finding, run_case

CASES = Path(__file__).parent / "cases"
_SMALLEST = 1
"""Bytes of a patch that is not cut further."""


def shrink(case: str) -> int:
    """Shrink one case and write it to `CASES`; 1 when it finds nothing to begin with."""
    name, _, number = case.rpartition(":")
    base = bases.load(name)
    assert base is not None, name
    damage = damage_of(base, int(number))
    found = run_apart(name, int(number), damage)
    if found is None:
        print(f"{case} finds nothing")
        return 1
    signature = found.signature()

    def fails(candidate: Damage) -> bool:
        again = run_apart(name, int(number), candidate)
        return again is not None and again.signature() == signature

    damage = _fewer(_without_cut(damage, fails), fails)
    damage = _shorter(damage, fails)
    path = CASES / f"{name}-{number}.json"
    path.write_text(
        json.dumps(
            {
                "base": name,
                "seed": int(number),
                "found": signature,
                "patches": [(offset, data.hex()) for offset, data in damage.patches],
                "cut": damage.cut,
                "tail": damage.tail.hex(),
            },
            indent=1,
        )
        + "\n"
    )
    print(f"{path}: {len(damage.patches)} patches, {sum(len(data) for _, data in damage.patches)} bytes: {signature}")
    return 0


def load_case(path: Path) -> tuple[str, int, Damage]:
    """Base, seed and damage of a file of `CASES`."""
    told = json.loads(path.read_text())
    patches = [(offset, bytes.fromhex(data)) for offset, data in told["patches"]]
    return told["base"], told["seed"], Damage(patches, told["cut"], bytes.fromhex(told["tail"]))


def run_apart(name: str, seed: int, damage: Damage) -> Finding | None:
    """What comes of it, in a process of its own: it may die, and its limits are lowered."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with TemporaryDirectory(dir="/dev/shm") as folder:
                base = bases.load(name)
                assert base is not None
                finding = run_case(Bench(base, Path(folder)), seed, damage)
                os.write(writer, json.dumps(finding and asdict(finding)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Finding(f"{name}:{seed}", "signal", f"signal {os.WTERMSIG(status)}")
    values = json.loads(text or "null")
    return None if values is None else Finding(**values)


def _without_cut(damage: Damage, fails: Callable[[Damage], bool]) -> Damage:
    for candidate in (Damage(damage.patches, None, b""), Damage(damage.patches, damage.cut, b"")):
        if (damage.cut is not None or damage.tail) and fails(candidate):
            return candidate
    return damage


def _fewer(damage: Damage, fails: Callable[[Damage], bool]) -> Damage:
    """Without every patch that does nothing for it."""
    index = 0
    while index < len(damage.patches):
        candidate = Damage(damage.patches[:index] + damage.patches[index + 1 :], damage.cut, damage.tail)
        if fails(candidate):
            damage = candidate
        else:
            index += 1
    return damage


def _shorter(damage: Damage, fails: Callable[[Damage], bool]) -> Damage:
    """Every patch cut at both ends as far as that goes."""
    for index in range(len(damage.patches)):
        step = len(damage.patches[index][1]) // 2
        while step >= _SMALLEST:
            offset, data = damage.patches[index]
            for smaller in ((offset, data[:-step]), (offset + step, data[step:])):
                patches = [*damage.patches[:index], smaller, *damage.patches[index + 1 :]]
                if smaller[1] and fails(Damage(patches, damage.cut, damage.tail)):
                    damage = Damage(patches, damage.cut, damage.tail)
                    break
            else:
                step //= 2
    return damage
