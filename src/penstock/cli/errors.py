# SPDX-License-Identifier: Apache-2.0
"""How a command fails: one line on stderr and one of mount(8)'s exit codes."""

from __future__ import annotations

import enum
import os
from typing import Self

from penstock.sys.reasons import explain

__all__ = ["ExitCode", "Failure", "explain", "lack", "where"]


class ExitCode(enum.IntEnum):
    """Exit codes of every command, those of mount(8). Each has its meaning for users beside it."""

    def __new__(cls, value: int, meaning: str) -> Self:
        """A member: its number and, as ``meaning``, what help and manual say of it."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    meaning: str

    OK = 0, "success"
    USAGE = 1, "wrong usage, or the caller may not do this at all"
    SYSTEM = 2, "system error: what was asked for could not be read or answered"
    CRASHED = 4, "the server crashed, or did what it must not do"
    MOUNT = 32, "mounting or unmounting failed"
    OUT_OF_MEMORY = 71, "the server ran out of memory"
    HUNG = 124, "the server did not answer in time"
    INTERRUPTED = 130, "interrupted by SIGINT"
    KILLED = 137, "the server was killed"
    UNREAD = 141, "output not read, as of a command that SIGPIPE ended"


class Failure(Exception):
    """A command cannot go on.

    Args:
        message: what, where and why, in one line; without the program's name.
        code: the exit code.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.SYSTEM) -> None:
        super().__init__(message)
        self.code = code


def where(error: BaseException) -> str:
    """The path that an exception names, as the beginning of a line; empty if it names none."""
    filename = getattr(error, "filename", None)
    return "" if filename is None else f"{os.fsdecode(filename)}: "


def lack(error: BaseException) -> str | None:
    """Which limit of memory or threads was met, if that is what an exception says."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "out of memory or threads (ulimit -v, ulimit -u): cannot start another thread"
    return None
