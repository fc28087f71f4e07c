"""The commands that need no mount, on broken dumps: an answer or one line of complaint, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.cli.main import main
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.notes import prstatus, vmcoreinfo_text
from tests.unit.cli.dumps import memory

SPEC = KdumpSpec(
    status=1,
    dump_level=31,
    machine="x86_64",
    release="6.1.0",
    timestamp=1700000000,
    vmcoreinfo=vmcoreinfo_text(),
    notes=prstatus(1, "little"),
)
BUILT = build_kdump(memory(), SPEC)
HEADERS = BUILT.places["descriptors_end"]
VERBS = {
    "info": ["info", "--json"],
    "text": ["info"],
    "check": ["check", "--json", "--jobs", "1"],
    "dmesg": ["dmesg"],
    "cat": ["cat", "--count", "65536"],
}
EXIT_CODES = {0, 1, 3, 4, 6, 8}


class Output(io.TextIOWrapper):
    """A stdout that takes text and bytes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def taken(self) -> bytes:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


def run(arguments: list[str]) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of one command line."""
    out, err = Output(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.taken(), err.getvalue()


def check(data: bytes, verb: str, path: Path) -> None:
    path.write_bytes(data)
    views = ["hmem"] if verb == "cat" else []
    code, out, err = run([*VERBS[verb], str(path), *views])
    assert code in EXIT_CODES
    assert err == "" or err.startswith("dumpfs: ")
    assert len(err.splitlines()) <= 2
    if verb == "info":
        assert err or json.loads(out)["schema"] == 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "dump.kdump"


@pytest.mark.parametrize("verb", VERBS)
@given(offset=st.integers(0, HEADERS - 8), value=st.sampled_from([0, 1, 0x7F, 0xFF]), width=st.sampled_from([1, 4, 8]))
def test_damaged_headers(path: Path, verb: str, offset: int, value: int, width: int) -> None:
    check(BUILT.poked(offset, bytes((value,)) * width), verb, path)


@pytest.mark.parametrize("verb", VERBS)
@given(size=st.integers(0, len(BUILT.data)))
def test_dump_cut_anywhere(path: Path, verb: str, size: int) -> None:
    check(BUILT.data[:size], verb, path)


@pytest.mark.parametrize("verb", ["info", "text"])
@given(text=st.binary(max_size=200))
def test_nonsense_in_vmcoreinfo(path: Path, verb: str, text: bytes) -> None:
    """The notes' own VMCOREINFO, overwritten."""
    at = BUILT.data.index(b"OSRELEASE=")
    check(BUILT.poked(at + 10, text), verb, path)


@given(value=st.text(alphabet="0123456789abcdefx-", max_size=20), key=st.sampled_from(["CRASHTIME", "PAGESIZE"]))
def test_nonsense_in_numbers_of_vmcoreinfo(path: Path, value: str, key: str) -> None:
    spec = KdumpSpec(status=1, machine="x86_64", vmcoreinfo=f"OSRELEASE=6.1\n{key}={value}\n".encode())
    check(build_kdump(memory(), spec).data, "text", path)
