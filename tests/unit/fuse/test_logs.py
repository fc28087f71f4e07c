"""Where messages go."""

from __future__ import annotations

import logging
import os

import pytest

from dumpfs.errors import SourceError
from dumpfs.fuse import logs


@pytest.fixture(autouse=True)
def _restore():
    loggers = [logging.getLogger(name) for name in ("dumpfs", "pyfuse3")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    logging.raiseExceptions = True


def test_file_gets_lines_with_time_process_and_level(tmp_path):
    logs.set_up(str(tmp_path / "log"), foreground=False)
    logging.getLogger("dumpfs").warning("page %#x", 16)
    logging.getLogger("dumpfs").debug("not this")
    text = (tmp_path / "log").read_text()
    assert text.rstrip().endswith("WARNING: page 0x10")
    assert text.count("\n") == 1


def test_file_is_appended_to(tmp_path):
    (tmp_path / "log").write_text("before\n")
    logs.set_up(str(tmp_path / "log"), foreground=False)
    logging.getLogger("dumpfs").error("after")
    assert (tmp_path / "log").read_text().startswith("before\n")


def test_file_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        logs.set_up(str(tmp_path / "no" / "log"), foreground=False)


def test_impatient_readers_are_no_news(tmp_path):
    logs.set_up(str(tmp_path / "log"), foreground=False)
    logging.getLogger("pyfuse3").error("fuse_read(): fuse_reply_* failed with %s", "x")
    logging.getLogger("pyfuse3").error("something else")
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_debug_logs_everything(tmp_path):
    logs.set_up(str(tmp_path / "log"), foreground=False, debug=True)
    logging.getLogger("dumpfs").debug("this")
    logging.getLogger("pyfuse3").error("fuse_read(): fuse_reply_* failed with %s", "x")
    assert (tmp_path / "log").read_text().count("\n") == 2


def test_foreground_logs_to_the_terminal_and_the_file(tmp_path, capsys):
    logs.set_up(str(tmp_path / "log"), foreground=True)
    logging.getLogger("dumpfs").info("both")
    assert "INFO: both" in capsys.readouterr().err
    assert "INFO: both" in (tmp_path / "log").read_text()


def test_syslog_gets_a_priority_and_single_lines(monkeypatch):
    import syslog

    sent = []
    monkeypatch.setattr(syslog, "syslog", lambda *args: sent.append(args))
    monkeypatch.setattr(syslog, "openlog", lambda *args: None)
    monkeypatch.setattr(logs, "can_syslog", lambda: True)
    logs.set_up(None, foreground=False)
    logging.getLogger("dumpfs").warning("one\ntwo\0")
    logging.getLogger("dumpfs").info("three")
    assert sent == [(syslog.LOG_WARNING, r"one\ntwo\x00"), (syslog.LOG_INFO, "three")]


def test_name_of_a_dump_forges_no_line(tmp_path, capsys):
    logs.set_up(str(tmp_path / "log"), foreground=True)
    name = "d\n2026-12-01 00:00:00,000 dumpfs[1]: ERROR: forged \x1b[31m\udcff.kdump"
    try:
        raise ValueError(name)
    except ValueError:
        logging.getLogger("dumpfs").exception("%s is mounted", name)
    for text in ((tmp_path / "log").read_text(), capsys.readouterr().err):
        first, *traceback = text.splitlines()
        shown = r"ERROR: d\n2026-12-01 00:00:00,000 dumpfs[1]: ERROR: forged \x1b[31m\xff.kdump is mounted"
        assert first.endswith(shown)
        assert traceback
        assert all(line.startswith("    ") and line.isprintable() for line in traceback)


def test_syslog_gets_tracebacks_in_lines(monkeypatch):
    import syslog

    sent = []
    monkeypatch.setattr(syslog, "syslog", lambda *args: sent.append(args[1]))
    monkeypatch.setattr(syslog, "openlog", lambda *args: None)
    monkeypatch.setattr(logs, "can_syslog", lambda: True)
    logs.set_up(None, foreground=False)
    try:
        raise ValueError("a\nb\x1b")
    except ValueError:
        logging.getLogger("dumpfs").exception("failed")
    assert sent[0] == "failed"
    assert len(sent) > 2
    assert all(line.isprintable() for line in sent)


def test_new_file_is_its_owners_alone(tmp_path):
    logs.set_up(str(tmp_path / "log"), foreground=False)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_link_is_not_followed_nor_a_pipe_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="is a symbolic link"):
        logs.set_up(str(tmp_path / "link"), foreground=False)
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError):
        logs.set_up(str(tmp_path / "pipe"), foreground=False)


def test_log_may_go_nowhere():
    logs.set_up(os.devnull, foreground=False)
