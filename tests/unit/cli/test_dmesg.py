"""`dumpfs dmesg`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dumpfs.cli.main import main
from tests.unit.cli.dumps import write_kdump


def test_log_is_printed_byte_for_byte(data, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["dmesg", str(data("mkd-raw-d31.kdump"))]) == 0
    out, err = capfdbinary.readouterr()
    assert out == data("mkd.log.expected").read_bytes()
    assert err == b""


def test_caller_ids_on_demand(data, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dmesg", "--caller", str(data("mkd-raw-d31.kdump"))]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(re.match(r"\[ *5\.\d+\]\[ *T1\] sysrq: Trigger a crash", line) for line in lines), lines[-30:]


def test_option_does_what_the_flag_does(data, capfd: pytest.CaptureFixture[str]) -> None:
    dump = str(data("mkd-raw-d31.kdump"))
    main(["dmesg", "--caller", "--device", dump])
    flags = capfd.readouterr().out
    main(["dmesg", "-o", "caller,device", dump])
    assert capfd.readouterr().out == flags


def test_log_in_lost_pages_is_an_error(data, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dmesg", str(data("mkd-incomplete-zlib-d31.kdump"))]) == 4
    assert capfd.readouterr().err == "dumpfs: page 0x1c36 is lost (its descriptor was never written)\n"


def test_dump_of_an_unknown_kernel_has_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dmesg", write_kdump(tmp_path / "dump.kdump")]) == 6
    assert capfd.readouterr().err.startswith("dumpfs: dmesg: the dump has no VMCOREINFO")
