# SPDX-License-Identifier: Apache-2.0
"""Logging as the commands show it: ``penstock: message`` on stderr, one line per record."""

from __future__ import annotations

import logging

from penstock.cli.streams import say
from penstock.cli.text import printable

__all__ = ["configure_logging", "report", "warn"]


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


def warn(message: str) -> None:
    """One line that the user should see, although the command goes on."""
    say(f"penstock: warning: {printable(message)}")


def report(message: str) -> None:
    """One line on what failed, where the command goes on and fails at its end."""
    say(f"penstock: {printable(message)}")
