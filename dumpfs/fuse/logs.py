"""Where a mount's messages go: the terminal in the foreground, else syslog (so the journal), or a file."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from io import TextIOWrapper
from typing import Any

from dumpfs.errors import SourceError
from dumpfs.units import one_line

LOGGER = "dumpfs"
_SYSLOG_SOCKET = "/dev/log"
_FORMAT = "%(asctime)s dumpfs[%(process)d]: %(levelname)s: %(message)s"
_INDENT = "    "
"""Before the lines of a traceback, so that none of them looks like the begin of a record."""


class LineFormatter(logging.Formatter):
    """Gives one line for each record, whatever a dump or the name of its file put into it, and tracebacks indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # the name is logging's
        """See `logging.Formatter`."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401  # as logging has it
        """See `logging.Formatter`."""
        return "\n".join(_INDENT + one_line(line) for line in super().formatException(ei).split("\n"))


class OwnFileHandler(logging.FileHandler):
    """Appends to a file that is really there: whoever put a link in its place would have root write elsewhere."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.baseFilename, flags, 0o600)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):  # such as /dev/null
                raise OSError(errno.EINVAL, "is no file to append to", self.baseFilename)
            return open(descriptor, "a", encoding=self.encoding, errors=self.errors)
        except BaseException:
            os.close(descriptor)
            raise


class SyslogHandler(logging.Handler):
    """Sends records to syslog(3), each line of a traceback by itself."""

    def __init__(self) -> None:
        super().__init__()
        import syslog

        self._send = syslog.syslog
        self._priorities = (
            (logging.ERROR, syslog.LOG_ERR),
            (logging.WARNING, syslog.LOG_WARNING),
            (logging.INFO, syslog.LOG_INFO),
            (logging.NOTSET, syslog.LOG_DEBUG),
        )
        syslog.openlog("dumpfs", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        priority = next(value for level, value in self._priorities if record.levelno >= level)
        for line in self.format(record).split("\n"):
            self._send(priority, line)


def _is_news(record: logging.LogRecord) -> bool:
    """False for pyfuse3's complaint that whoever asked did not wait for the answer, which is no error of ours."""
    return "fuse_reply_*" not in str(record.msg)


def can_syslog() -> bool:
    """Whether anybody listens for syslog messages here."""
    return os.path.exists(_SYSLOG_SOCKET)


def set_up(path: str | None, *, foreground: bool, debug: bool = False) -> None:
    """Send the log where it belongs, for this process and those it forks.

    Args:
        path: absolute path of a log file, or None.
        foreground: log to stderr as well.
        debug: log everything.

    Raises:
        SourceError: the file cannot be opened for writing.
    """
    handlers: list[logging.Handler] = []
    if path is not None:
        try:
            handlers.append(OwnFileHandler(path, encoding="utf-8", errors="backslashreplace"))
        except OSError as exc:
            problem = "is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror or str(exc)
            raise SourceError(path, problem, hint="-o log= names a file to append to, or a new one") from exc
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    elif path is None and can_syslog():
        handlers.append(SyslogHandler())
    if not handlers:
        handlers.append(logging.NullHandler())
    logging.raiseExceptions = False  # a full disk under the log file is no reason for tracebacks on stderr
    for handler in handlers:
        handler.setFormatter(LineFormatter(None if isinstance(handler, SyslogHandler) else _FORMAT))
        if not debug:
            handler.addFilter(_is_news)
    for name in (LOGGER, "pyfuse3"):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = False
        logger.setLevel(logging.DEBUG if debug else logging.INFO if name == LOGGER else logging.WARNING)
