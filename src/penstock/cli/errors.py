# SPDX-License-Identifier: Apache-2.0
"""How a command fails: one line on stderr and one of mount(8)'s exit codes."""

from __future__ import annotations

import enum
import errno
import os
from typing import Self

__all__ = ["ExitCode", "Failure", "explain", "where"]


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
    MOUNT = 32, "mounting or unmounting failed"
    INTERRUPTED = 130, "interrupted by SIGINT"
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


_WORDS = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "is a directory",
    errno.ELOOP: "too many symbolic links",
    errno.ENOMEDIUM: "no medium in the drive",
    126: "encrypted, and the key is not there",  # ENOKEY
}


def explain(error: BaseException) -> str:
    """The reason in an exception, in one line and without its path or number."""
    if isinstance(error, OSError) and error.errno is not None:
        usual = os.strerror(error.errno)
        said = error.strerror or usual
        text = _WORDS.get(error.errno, said) if said == usual else said
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def where(error: BaseException) -> str:
    """The path that an exception names, as the beginning of a line; empty if it names none."""
    filename = getattr(error, "filename", None)
    return "" if filename is None else f"{os.fsdecode(filename)}: "
