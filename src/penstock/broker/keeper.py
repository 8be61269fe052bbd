# SPDX-License-Identifier: Apache-2.0
"""The keeper: a process that ends a mount when the broker cannot do it any more.

When every process of a mount has died without unmounting, the mount stays in the tree and answers
ENOTCONN; the kernel has nothing that would take it away. So the broker forks the keeper first. It
waits for the broker's end, and unless it was dismissed before, it kills the servers, unmounts, and
removes the mount's record and socket.

Invariants
    - It holds a pidfd of the broker, one end of a socket pair, and what it was sent: pidfds of the
      servers and the directory of the record. No descriptor of the connection, so that the kernel
      ends it when the servers have gone.
    - It does not end by the signals that end a broker, and is in a session of its own. If it is
      killed all the same, nothing happens; ``penstock clean`` does its work then.
    - It takes nothing away but the mount that it was told of, wherever that is by now: id and
      connection must agree (mount point and connection, while the id is not known), and nothing
      may lie on top. The mount is never looked into.
    - It needs CAP_SYS_ADMIN to unmount, CAP_DAC_READ_SEARCH to reach a mount point in a directory
      that is closed to others, CAP_KILL for servers of another user. All else is dropped. Ordinary
      users have none of these, and unmount through fusermount3.

Messages to it are JSON objects on a SOCK_SEQPACKET socket; they come from the broker alone, which
is trusted. What the broker had sent when it died is read before anything is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NoReturn, Self

from penstock.abi.capability import Capability
from penstock.sys.capabilities import effective, keep_only, set_name
from penstock.sys.process import wait_pidfd
from penstock.sys.unmount import detach, find_fuse_mount

__all__ = ["NO_MOUNT", "Keeper"]

_log = logging.getLogger(__name__)

NO_MOUNT: Final = -1
"""Stands for the id of a mount that has gone, of which files may be left."""
_NAME: Final = "penstock-keeper"
_IGNORED: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGALRM,
    signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_KEPT: Final = frozenset({Capability.SYS_ADMIN, Capability.DAC_READ_SEARCH, Capability.KILL})
_MAX_MESSAGE: Final = 64 * 1024
_MAX_DESCRIPTORS: Final = 64
"""In one message; the kernel's own limit is 253."""
_TEMPORARY: Final = "/tmp/penstock-"  # noqa: S108 - compared alone
"""How directories of records begin that nobody but us makes; they go with the last record."""
_DISMISS_SECONDS: Final = 2.0
_SERVERS_SECONDS: Final = 0.5


class Keeper:
    """The broker's hold on its keeper; made by :meth:`start`.

    A context manager: leaving it dismisses the keeper. So it surrounds the whole life of the mount,
    its ending included.
    """

    def __init__(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._channel = channel

    @classmethod
    def start(cls) -> Self:
        """Fork the keeper of this process.

        Call it before there are threads, and before there are descriptors that matter.

        Raises:
            OSError: EAGAIN, ENOMEM, EMFILE.
        """
        broker = os.pidfd_open(os.getpid())
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(broker)
            raise
        # A signal that comes early must find the keeper as deaf as one that comes late.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            pid = os.fork()
            if pid == 0:
                _run(broker, theirs.fileno(), before)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(broker)
            theirs.close()
        ours.setblocking(False)
        return cls(pid, os.pidfd_open(pid), ours)

    @property
    def alive(self) -> bool:
        """Whether it is there; not after :meth:`dismiss`."""
        return self._pidfd >= 0 and not wait_pidfd(self._pidfd, 0.0)

    def servers(self, pidfds: Sequence[int]) -> None:
        """Processes to kill when the broker dies, in addition to those named before.

        Args:
            pidfds: they stay the caller's.
        """
        for start in range(0, len(pidfds), _MAX_DESCRIPTORS):
            self._send({"kind": "servers"}, pidfds[start : start + _MAX_DESCRIPTORS])

    def watch(
        self,
        *,
        mount_id: int,
        mountpoint: str,
        connection: int,
        files: Sequence[str] = (),
        crash: Literal["umount", "keep"] = "umount",
        servers: Sequence[int] = (),
    ) -> None:
        """Say what to do when the broker dies; the latest call holds.

        Args:
            mount_id: as in mountinfo; 0 while it is not known: any mount of the connection at the
                mount point; :data:`NO_MOUNT` when it has gone.
            mountpoint: as in mountinfo.
            connection: minor device number of the mount.
            files: paths of the mount's record and socket, all in one directory, to be removed.
            crash: ``keep`` leaves the mount and its files; its users get ENOTCONN.
            servers: as for :meth:`servers`.

        Raises:
            OSError: the directory of the files cannot be opened.
            ValueError: the files are not in one directory.
        """
        self.servers(servers)
        directories = {os.path.dirname(path) for path in files}
        if len(directories) > 1:
            raise ValueError("the files must be in one directory")
        message = {
            "kind": "watch",
            "mount_id": mount_id,
            "mountpoint": mountpoint,
            "connection": connection,
            "directory": next(iter(directories), ""),
            "names": [os.path.basename(path) for path in files],
            "crash": crash,
        }
        with contextlib.ExitStack() as stack:
            descriptors = []
            for path in directories:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptors.append(os.open(path, flags))
                stack.callback(os.close, descriptors[-1])
            self._send(message, descriptors)

    def dismiss(self) -> None:
        """Have the keeper end without doing anything, and wait for that. May be called again."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(OSError):  # it was killed, and is not needed any more
            self._tell({"kind": "dismiss"})
        self._channel.close()
        if not wait_pidfd(self._pidfd, _DISMISS_SECONDS):  # stopped by somebody, perhaps
            _kill(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # whoever waits for all children has seen it
            os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if self._pidfd < 0:
            raise ValueError("the keeper was dismissed")
        try:
            self._tell(message, descriptors)
        except OSError as error:
            _log.warning("the keeper (process %d) cannot be told anything: %s", self.pid, error)

    def _tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self._channel, [json.dumps(message).encode("ascii")], descriptors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.dismiss()


# The keeper's side


def _run(broker: int, channel: int, mask: Iterable[int]) -> NoReturn:
    """What the child does. Nothing of the broker's code runs in it again."""
    try:
        # Objects of the broker must not close numbers that mean something else here.
        gc.disable()
        _Watch(*_settle(broker, channel, mask)).run()
    finally:
        os._exit(0)


def _settle(broker: int, channel: int, mask: Iterable[int]) -> tuple[int, int]:
    """Become a process of its own; the descriptors of the broker and of the channel."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.setsid()
    os.chdir("/")
    set_name(_NAME)
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (broker, channel)]
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.set_inheritable(null, True)  # where it is one of those three
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
    keep_only(_KEPT & effective())
    return kept[0], kept[1]


class _Watch:
    """The keeper itself.

    Args:
        broker: pidfd.
        channel: where the broker's messages come from.
    """

    def __init__(self, broker: int, channel: int) -> None:
        self._broker = broker
        self._channel = socket.socket(fileno=channel)
        self._servers: list[int] = []
        self._directory = -1
        self._task: dict[str, Any] = {}

    def run(self) -> None:
        """Wait until the broker has died or dismisses this process."""
        poller = select.poll()
        poller.register(self._broker, select.POLLIN)
        poller.register(self._channel, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._channel.fileno() in ready:
                message = self._receive()
                if message.get("kind") == "dismiss":
                    return
                if message:
                    continue  # the broker's end is looked at once all it has said was read
                poller.unregister(self._channel)
            if self._broker in ready:
                self._end()
                return

    def _receive(self) -> dict[str, Any]:
        """One message, carried out; empty when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, _MAX_DESCRIPTORS)
        message: dict[str, Any] = json.loads(data) if data else {}
        if message.get("kind") == "servers":
            self._servers += descriptors
        elif message.get("kind") == "watch":
            self._task = message
            if self._directory >= 0:
                os.close(self._directory)
            self._directory = descriptors[0] if descriptors else -1
        return message

    def _end(self) -> None:
        """The broker has died."""
        for pidfd in self._servers:
            _kill(pidfd)
        deadline = time.monotonic() + _SERVERS_SECONDS
        for pidfd in self._servers:
            wait_pidfd(pidfd, deadline - time.monotonic())
        task = self._task
        if not task or task["crash"] == "keep":
            return
        gone = False
        with contextlib.suppress(OSError):
            gone = detach(task["mount_id"], task["connection"], task["mountpoint"])
        # What is still mounted needs its record: that is how it is found again.
        if gone or not self._is_mounted():
            self._remove_files()

    def _is_mounted(self) -> bool:
        """Whether the broker's mount is still there, perhaps moved. The number of its connection
        may be another mount's by now; one whose id is not known yet cannot have been moved."""
        mount_id, mountpoint = self._task["mount_id"], self._task["mountpoint"]
        entry = find_fuse_mount(mount_id, self._task["connection"])
        return entry is not None and (mount_id != 0 or entry.mountpoint == mountpoint)

    def _remove_files(self) -> None:
        for name in self._task["names"]:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._directory)
        directory: str = self._task["directory"]
        if directory.startswith(_TEMPORARY) and directory.count("/") == 2:
            with contextlib.suppress(OSError):  # others may have theirs there
                os.rmdir(directory)


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or may not be killed by this user
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
