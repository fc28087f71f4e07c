"""When the code in C is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dumpfs.native import AVAILABLE

needs_native = pytest.mark.skipif(not AVAILABLE, reason="the C code is not in use")


def said(program: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PATH = f"import sys; sys.path[:0] = {sys.path!r}; "


@needs_native
def test_it_is_used_unless_told_otherwise():
    ask = PATH + "from dumpfs.native import AVAILABLE; print(AVAILABLE)"
    assert said(ask) == "True"
    assert said(ask, DUMPFS_NATIVE="0") == "False"


@needs_native
@pytest.mark.parametrize("change", ["del loops.VERSION", "loops.VERSION = 0"])
def test_one_that_was_compiled_from_other_sources_is_not_used(change):
    load = "import importlib.util, dumpfs.native; spec = importlib.util.find_spec('dumpfs.native.loops')"
    again = f"from dumpfs.native import loops; {change}; import importlib; importlib.reload(dumpfs.native)"
    assert said(PATH + f"{load}; {again}; print(dumpfs.native.AVAILABLE)") == "False"
