"""pyfuse3 is loaded without trio, unless it needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from dumpfs.fuse.binding import load_pyfuse3
load_pyfuse3()
import pyfuse3
print(sorted(name for name in ("trio", "importlib.metadata") if name in sys.modules), {more})
"""


def load(more: str = "None", before: tuple[str, ...] = ()) -> str:
    program = PROGRAM.format(path=[*before, *sys.path], more=more)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pyfuse3_is_loaded_without_trio():
    assert load("hasattr(pyfuse3, 'main')") == "[] True"


@pytest.mark.parametrize(
    ("source", "loaded"),
    [
        ("import trio\nfound = trio.Lock", "['trio']"),
        ("from trio import Lock as found", "['trio']"),
        ("from trio.lowlevel import wait_readable as found", "['trio']"),
        ("import trio\nclass found(trio.abc.AsyncResource): pass", "['trio']"),
        ("from importlib.metadata import distributions as found", "['importlib.metadata']"),
        ("import trio\ndef found(): return trio.Lock()", "[]"),
    ],
)
def test_one_that_needs_them_while_it_is_loaded_has_them(tmp_path, source, loaded):
    (tmp_path / "pyfuse3.py").write_text(source)
    assert load("callable(pyfuse3.found)", (str(tmp_path),)) in (
        f"{loaded} True",
        "['importlib.metadata', 'trio'] True",
    )
