# SPDX-License-Identifier: Apache-2.0
"""Logging as the commands show it: ``penstock: message`` on stderr, one line per record."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import Final

from penstock.cli.messages import report, warn
from penstock.cli.streams import say
from penstock.cli.text import printable

__all__ = ["configure_logging", "log_to_syslog", "report", "warn"]

_DAEMON: Final = 3 << 3
_ERROR: Final = 3
_WARNING: Final = 4
_MAX_LINE: Final = 2048


class _Formatter(logging.Formatter):
    """One line per record; where an exception was raised only when debugging."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        text = f"penstock: {printable(record.getMessage())}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {printable(str(error))}"
            if self._debug:
                text += "\n" + self.formatException(record.exc_info)
        return text


class _Lines(logging.Handler):
    """Prints records on what is stderr at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def configure_logging(*, debug: bool = False) -> None:
    """Send log records to stderr: warnings and errors, with ``debug`` everything."""
    handler = _Lines()
    handler.setFormatter(_Formatter(debug=debug))
    logger = logging.getLogger("penstock")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)


class _Syslog(logging.Handler):
    """Sends records to the system's log. A log that cannot take one loses it: a filesystem must not
    wait for its log, which may itself wait for the filesystem."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        severity = _ERROR if record.levelno >= logging.ERROR else _WARNING
        text = printable(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {printable(repr(record.exc_info[1]))}"
        line = f"<{_DAEMON | severity}>penstock[{os.getpid()}]: {text}"
        with contextlib.suppress(OSError):
            self._socket.sendto(os.fsencode(line)[:_MAX_LINE], self._path)

    def close(self) -> None:
        self._socket.close()
        super().close()


def log_to_syslog(path: str = "/dev/log") -> None:
    """Send warnings and errors to the system's log too, where there is one; for a daemon, whose
    stderr nobody reads."""
    if os.path.exists(path):
        with contextlib.suppress(OSError):
            logging.getLogger("penstock").addHandler(_Syslog(path))
