# SPDX-License-Identifier: Apache-2.0
"""How a mount can end, and telling it from what is left of its server."""

from __future__ import annotations

import contextlib
import enum
import signal
from typing import Final, NamedTuple

from penstock.broker.protocol import FailureCode

__all__ = ["End", "Outcome", "ServerFailure", "judge_exit", "oom_kills"]


class End(enum.Enum):
    """Why a mount has ended."""

    CLEAN = "clean"
    """It was unmounted, or asked to end."""
    ERROR = "error"
    """The server ended by itself."""
    CRASHED = "crashed"
    """The server died of a fault of its own."""
    KILLED = "killed"
    """Somebody killed the server."""
    OUT_OF_MEMORY = "out of memory"
    HUNG = "hung"
    """The server did not answer in time."""
    VIOLATION = "violation"
    """The server did what it must not do."""


class Outcome(NamedTuple):
    """The end of a mount, with one line about it."""

    end: End
    text: str


class ServerFailure(Exception):
    """The image is not served. The message is one line, as the server worded it.

    Args:
        message: why.
        code: whose fault it is; None where the server is gone, and ``outcome`` says how.
        outcome: how it ended.
    """

    def __init__(
        self, message: str, code: FailureCode | None = None, outcome: Outcome | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.outcome = outcome


EXIT_OUT_OF_MEMORY: Final = 71
"""With which a server ends that has no memory left to say so."""
_OWN_FAULTS: Final = frozenset(
    {
        signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT,
        signal.SIGTRAP, signal.SIGXCPU, signal.SIGXFSZ,
    }
)  # fmt: skip


def judge_exit(status: int, oom_killed: bool) -> Outcome:
    """What an exit status says about the end of a server that has not said goodbye.

    Args:
        status: as os.waitstatus_to_exitcode gives it: negative for a signal.
        oom_killed: whether the kernel has killed a process for want of memory meanwhile.
    """
    if status == EXIT_OUT_OF_MEMORY:
        return Outcome(End.OUT_OF_MEMORY, "the server has used up the memory that it may have")
    if status >= 0:
        return Outcome(End.ERROR, f"the server ended with exit code {status}")
    number = -status
    name = _signal_name(number)
    if number == signal.SIGSYS:
        text = "the server was ended by its sandbox: it made a system call that it may not make"
        return Outcome(End.VIOLATION, text)
    if number in _OWN_FAULTS:
        return Outcome(End.CRASHED, f"the server crashed ({name})")
    if number == signal.SIGKILL and oom_killed:
        text = "the server was killed by the kernel, which was out of memory"
        return Outcome(End.OUT_OF_MEMORY, text)
    return Outcome(End.KILLED, f"the server was killed ({name})")


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", "rb") as file:
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0
