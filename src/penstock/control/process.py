# SPDX-License-Identifier: Apache-2.0
"""The processes that records name: whose they are, and signals that reach no other.

Whoever owns a directory writes into its records what he likes, also the number and start time of
somebody else's process. So a process counts as a mount's only if it belongs to the owner of the
record, and a signal goes through a pidfd that was open before that was looked at.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.sys.process import process_start_time, process_state, wait_pidfd

__all__ = [
    "RecordedProcess",
    "open_process",
    "pid_namespace",
    "process_owner",
]


class RecordedProcess:
    """A process that is known to be its owner's; nothing here reaches another one.

    Args:
        pid: its number.
        pidfd: a descriptor of it, not closed here.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pid = pid
        self._pidfd = pidfd

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it."""
        return process_state(self._pid) == "T" and not self.wait(0.0)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended, or does within ``timeout`` seconds."""
        return wait_pidfd(self._pidfd, timeout)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended.

        Raises:
            OSError: EPERM.
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return


@contextmanager
def open_process(pid: int, start_time: int, uid: int) -> Iterator[RecordedProcess | None]:
    """The process of user ``uid`` that was started at ``start_time``; None if there is none.

    Raises:
        OSError: there is no descriptor for it.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.ESRCH, errno.EINVAL}:
            raise
        yield None
        return
    try:
        # If the number has gone to another process meanwhile, that one is looked at, but what the
        # descriptor stands for has ended and takes no signals.
        same = process_start_time(pid) == start_time and process_owner(pid) == uid
        yield RecordedProcess(pid, pidfd) if same else None
    finally:
        os.close(pidfd)


def process_owner(pid: int) -> int | None:
    """Whose process it is: real and effective user; None if those differ, or it has ended.

    The owner of /proc/PID says less: that is root for every process that may not be dumped.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read(4096).split(b"\n")
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"Uid":
            real, effective = value.split()[:2]
            return int(real) if real == effective else None
    return None


def pid_namespace() -> int:
    """The number of the pid namespace of this process; 0 if it cannot be told."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
