# SPDX-License-Identifier: Apache-2.0
"""The opener: a process that opens files by handle for a mirror's server, beneath its directory.

open_by_handle_at(2) takes CAP_DAC_READ_SEARCH, and whoever may make the call with it can open any
file of the filesystem, by a handle of his own making. So the server may not; it sends the handle
here, and gets a descriptor back. It needs one only where a name does not lead to a file any more.

Facts about handles (fs/fhandle.c, security/landlock/fs.c; tried on Linux 6.18)
    - With O_PATH nothing but the capability is asked for, and modes and owners can then be changed
      through the descriptor: Landlock looks at neither.
    - What is opened through a detached mount, but lies outside of it, Landlock takes for something
      that was moved out of the mount, and grants what holds for the mount's root.
    - The kernel opens a handle that is marked as connectable (0x1_0000 of its type) only if the
      file lies beneath the directory of the descriptor that it is opened with: ESTALE otherwise,
      whatever else is in the handle.

Invariants
    - It holds the directory and one end of a socket pair, nothing else; of the capabilities that
      one; and it ends with the server's end of the socket, or with the broker.
    - A request is flags and a handle, at most :data:`LONGEST` bytes; only connectable handles are
      opened, no flag makes or truncates anything, and nothing is waited for (O_NONBLOCK).

A request is u32 flags and ``struct file_handle`` (u32 bytes, s32 type, bytes); the answer is a u32,
an errno or 0, with a descriptor if it is 0.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import socket
import struct
from typing import Final, NoReturn, Self

from penstock.abi.capability import Capability
from penstock.sys.capabilities import (
    effective,
    keep_only,
    no_new_privs,
    set_dumpable,
    set_name,
    set_parent_death_signal,
)
from penstock.sys.handles import open_handle
from penstock.sys.process import wait_pidfd

__all__ = ["ANSWER", "FLAGS", "LONGEST", "Opener"]

LONGEST: Final = 4 + 8 + 128
ANSWER: Final = struct.Struct("=I")
FLAGS: Final = struct.Struct("=I")
_HEAD: Final = struct.Struct("=IIi")
_CONNECTABLE: Final = 0x1_0000
_MAY: Final = (
    os.O_ACCMODE | os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    | os.O_APPEND | os.O_DIRECT | os.O_SYNC | os.O_NOATIME | 0o100000
)  # fmt: skip
"""0o100000 is O_LARGEFILE, which Python's os calls 0 where it is the default."""
_NAME: Final = "penstock-opener"
_EXIT_SECONDS: Final = 2.0
_ENDING: Final = frozenset({signal.SIGKILL, signal.SIGSTOP})


class Opener:
    """The broker's hold on it; made by :meth:`start`. A context manager."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def start(cls, directory: int, channel: socket.socket) -> Self:
        """Fork it. Call it before there are threads.

        Args:
            directory: what it opens files beneath; stays the caller's.
            channel: its end of a SOCK_SEQPACKET pair; owned from here on.

        Raises:
            OSError: EAGAIN, ENOMEM.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _run(directory, channel.fileno())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            channel.close()
        return cls(pid)

    def close(self) -> None:
        """End it. Idempotent."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        wait_pidfd(self.pidfd, _EXIT_SECONDS)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        os.close(self.pidfd)
        self.pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _run(directory: int, channel: int) -> NoReturn:
    """What the child does. Nothing of the broker's code runs in it again."""
    try:
        gc.disable()  # objects of the broker must not close numbers that mean something else here
        directory, sock = _settle(directory, channel)
        while answer(directory, sock):
            pass
    finally:
        os._exit(0)


def _settle(directory: int, channel: int) -> tuple[int, socket.socket]:
    """Become a process of its own."""
    for number in signal.valid_signals() - _ENDING:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)  # what ends the broker ends it, a moment later
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    set_name(_NAME)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    held = (null, null, null, directory, channel)
    wanted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5) for fd in held]
    for place, fd in enumerate(wanted):
        os.dup2(fd, place, inheritable=False)
    os.closerange(5, max(*wanted, 1 << 16) + 1)
    keep_only({Capability.DAC_READ_SEARCH} & effective())
    no_new_privs()
    set_dumpable(dumpable=False)
    set_parent_death_signal(signal.SIGKILL)
    return 3, socket.socket(fileno=4)


def answer(directory: int, sock: socket.socket) -> bool:
    """Answer one request; False: nobody is there any more.

    Args:
        directory: what files are opened beneath.
        sock: where requests come from.
    """
    packet, _, flags, _ = sock.recvmsg(LONGEST + 1)
    if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        return False
    try:
        fd = _open(directory, packet)
    except OSError as error:
        sock.send(ANSWER.pack(error.errno or errno.EIO))
        return True
    try:
        socket.send_fds(sock, [ANSWER.pack(0)], [fd])
    finally:
        os.close(fd)
    return True


def _open(directory: int, packet: bytes) -> int:
    if not _HEAD.size <= len(packet) <= LONGEST:
        raise OSError(errno.EINVAL, "a request of the wrong length")
    flags, length, kind = _HEAD.unpack_from(packet)
    if length != len(packet) - _HEAD.size or flags & ~_MAY:
        raise OSError(errno.EINVAL, "no request")
    if not kind & _CONNECTABLE:
        raise OSError(errno.ESTALE, "the handle does not say where the file lies")
    flags |= os.O_CLOEXEC | (0 if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY)
    return open_handle(directory, packet[FLAGS.size :], flags)
