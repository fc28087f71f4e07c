"""A little of the campaign each time, and everything that it has found so far."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz import bases
from tests.fuzz.campaign import Campaign
from tests.fuzz.shrink import CASES, load_case, run_apart

SMALL = int(os.environ.get("DUMPFS_FUZZ_CASES", "150"))
"""Inputs for each small base; real dumps get a tenth, and those of the corpus none."""
_BASES = [name for name in bases.names() if not name.startswith("corpus-")]
_FIRST = int(os.environ.get("DUMPFS_FUZZ_FIRST", "0"))
"""Number of the first; always the same inputs, for whoever runs the tests wants to know of a change, not of luck."""


@pytest.mark.slow
@pytest.mark.parametrize("name", _BASES)
def test_damaged_dumps_are_refused_or_read_sanely(tmp_path: Path, name: str) -> None:
    base = bases.load(name)
    assert base is not None
    campaign = Campaign([name], tmp_path, jobs=2, first=_FIRST)
    tally = campaign.run(cases=SMALL // 10 if base.seldom else SMALL)
    assert not tally.findings, "\n".join(f"{f.case}: {f.kind} at {f.stage}\n{f.what}" for f in tally.findings)


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_found_stays_mended(path: Path) -> None:
    name, seed, damage = load_case(path)
    if bases.load(name) is None:
        pytest.skip(f"needs the dump of {name}; name the corpus in DUMPFS_CORPUS")
    finding = run_apart(name, seed, damage)
    assert finding is None, f"{finding.kind} at {finding.stage}\n{finding.what}"
