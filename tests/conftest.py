"""What all tests share: real dumps, the rule about log warnings, and what a skip means under CI.

Real dumps come from two places. `tests/data` is committed and always there; the larger corpus is optional: a folder
named by DUMPFS_CORPUS, or `../shared/corpus` beside the repository. Compressed files of either are unpacked once,
the corpus into a cache that outlives the run.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.corpus import CORPUS, DATA, unpack
from tests.corpus import find as find_file

CI = bool(os.environ.get("CI"))

settings.register_profile(
    "dumpfs",
    deadline=None,  # two busy cores are no reason to fail
    derandomize=CI,
    max_examples=int(os.environ.get("DUMPFS_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dumpfs")

_skipped_tools: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell without job control; commands under test would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "logs(pattern): warnings that the code under test may log, as a regular expression"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a mount test that is skipped has failed; a skipped comparison with a tool is remembered by name."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value) if call.excinfo else ""
        if item.get_closest_marker("tool"):
            _skipped_tools.append(f"{item.nodeid}: {reason}")
        if CI and item.get_closest_marker("fuse"):
            report.outcome = "failed"
            report.longrepr = f"a mount test may not be skipped under CI: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped_tools:
        terminalreporter.section("comparisons with other tools that were skipped")
        for line in sorted(set(_skipped_tools)):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def no_unexpected_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A warning in dumpfs's log fails the test, unless the test is marked with `logs("pattern")`."""
    yield
    allowed = [marker.args[0] for marker in request.node.iter_markers("logs")]
    unexpected = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name.split(".")[0] == "dumpfs"
        and record.levelname in ("WARNING", "ERROR", "CRITICAL")
        and not any(re.search(pattern, record.getMessage()) for pattern in allowed)
    ]
    assert not unexpected, f"unexpected warnings in the log: {unexpected}"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a file of tests/data by the name it has when unpacked; read-only by agreement."""
    folder: list[Path] = []

    def find(name: str) -> Path:
        plain, packed = DATA / name, DATA / f"{name}.xz"
        if not packed.exists():
            return plain
        if not folder:
            folder.append(tmp_path_factory.mktemp("data"))
        target = folder[0] / name
        if not target.exists():
            unpack(packed, target)
        return target

    return find


@pytest.fixture(scope="session")
def corpus(data: Callable[[str], Path]) -> Callable[[str], Path]:
    """Path of a file of the corpus ('tiny/kdump-kaslr.vmcore'), unpacked; skips the test when it is not there.

    Without a corpus, what `tests/data` has of it serves.
    """

    def find(name: str) -> Path:
        found = find_file(CORPUS, name)
        if found is not None:
            return found
        committed = data(Path(name).name)
        if name.startswith("tiny/") and committed.exists():
            return committed
        pytest.skip(f"needs {name} of the dump corpus; name its folder in DUMPFS_CORPUS")

    return find
