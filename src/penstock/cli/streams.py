# SPDX-License-Identifier: Apache-2.0
"""The standard streams as they may be: closed, or a pipe whose reader has gone.

Descriptors 0 to 2 that are closed at the start are opened on /dev/null before anything else, since
an image or /dev/fuse that got such a number would be what messages are written into. Which ones
were closed is remembered: a command that exists to print says so instead of printing nowhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from penstock.cli.errors import Failure

__all__ = ["check_output", "discard", "open_streams", "say"]

_NAMES: Final = ("stdin", "stdout", "stderr")
_closed: set[int] = set()


def open_streams() -> None:
    """Open what is closed of the standard streams on /dev/null; for the start of the program."""
    for fd, name in enumerate(_NAMES):
        try:
            os.fstat(fd)
        except OSError:
            _closed.add(fd)
            os.open(os.devnull, os.O_RDWR)  # gets this number, which is the lowest free one
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", encoding="utf-8", closefd=False))


def check_output() -> None:
    """For commands that print.

    Raises:
        Failure: standard output was closed when the program started.
    """
    if 1 in _closed:
        raise Failure("standard output is closed")


def discard(fd: int) -> None:
    """Have what is still to be written to a standard stream go nowhere, as nobody reads it: Python
    flushes at its end, and would complain or change the exit code."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


def say(text: str) -> None:
    """Print a line on stderr. If nobody listens any more, the exit code will have to say it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            discard(2)
