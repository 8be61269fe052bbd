# SPDX-License-Identifier: Apache-2.0
"""The backing files of a mount: files that the kernel reads and writes in the server's place.

A server asks for a file of its own to be registered for an inode and gets a number, with which it
answers OPEN. The registry is the broker's, since it takes CAP_SYS_ADMIN and since only the broker
sees all servers of a mount: one inode has one number, whoever asks.

Facts about backing files (fs/fuse/backing.c, passthrough.c)
    - The kernel opens the file anew for each open of the FUSE file: with the flags of whoever opens
      that one, from the path that the registered descriptor has, without a check of permissions.
      So a descriptor is worth more once it is registered than before. What can be read only
      becomes writable, unless the superblock of the mount is read-only; what can only be appended
      to can be overwritten; what was opened with O_PATH can be read and written.
    - All reading and writing is done with the credentials of the thread that registered the file.
      As root's they would leave set-user-ID bits where they are, and spend what is reserved for
      root and what is left of other people's quota.
    - The file must be a regular one (Linux 6.18 sees to it), and on a filesystem that is itself
      stacked on others less deep than was said in INIT.
    - Two numbers for one file count as two files, and an inode can have but one open at a time.

Facts about descriptors of others
    - fstat(2) and close(2) may ask the server of a FUSE filesystem, which need not answer; the
      wait of close can not be interrupted, and a process with a thread in it does not end.
      statx(2) with AT_STATX_DONT_SYNC, fcntl(2) with F_GETFL and /proc/self/fdinfo ask nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import select
import stat
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Self

from penstock.abi.capability import Capability
from penstock.abi.fuse import DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN, BackingMap
from penstock.abi.layout import pack
from penstock.abi.process import NOBODY
from penstock.broker.protocol import ProtocolError
from penstock.sys.capabilities import keep_only, set_name
from penstock.sys.credentials import use_files_as
from penstock.sys.files import kind_and_mount
from penstock.sys.mountinfo import mount_id_of, mounts

__all__ = ["MAX_BACKINGS", "Backings", "BackingsStatistics", "become_nobody"]

MAX_BACKINGS: Final = 4096
"""Backing files of one mount."""
_MAX_UNCLOSED: Final = 256


@dataclass(frozen=True, slots=True)
class BackingsStatistics:
    """A snapshot of the backing files of one mount."""

    refusal: str
    """Why there are none; empty: there can be."""
    registered: int
    """Backing files at present."""
    opened: int
    """How many there were in all."""
    refused: int
    """Registrations that failed."""


class Backings:
    """Registers backing files of one connection. A context manager. For one thread.

    Args:
        device: /dev/fuse of the connection, INIT answered with PASSTHROUGH; stays the caller's.
        superblock_read_only: whether the broker made the superblock read-only, not the mount alone.
        own_mount: the number of a mount of which the servers may read and write whatever they can
            open (a directory that they serve). Nobody gains anything by one of its files being
            registered through a descriptor that can only read, and what executes such a file is
            not in the way of it then (ETXTBSY), as a descriptor that can write would be.
        refusal: why there cannot be any; empty: there can.
        limit: how many there may be.
        here: whether the threads that call this have become nobody (:func:`become_nobody`), so
            that there need not be one that has.
    """

    def __init__(
        self,
        device: int,
        *,
        superblock_read_only: bool,
        own_mount: int = 0,
        refusal: str = "",
        limit: int = MAX_BACKINGS,
        here: bool = False,
    ) -> None:
        self._device = device
        self._read_only = superblock_read_only
        self._own_mount = own_mount
        self._refusal = refusal
        self._limit = limit
        self._ids: dict[int, int] = {}
        self._opened = 0
        self._refused = 0
        self._filesystems = _Filesystems()
        self._registrar = _Here() if here else _Helper("backing files", become_nobody)
        self._closer = _Helper("close")

    def register(self, node: int, fd: int) -> int:
        """The number of an inode's backing file.

        Args:
            node: the inode. Where it has a backing file already, that one's number is given.
            fd: a descriptor that came from a server; closed here, in any case.

        Raises:
            OSError: EOPNOTSUPP (there are none on this mount), ENFILE (too many), EPERM (the
                descriptor may do less than a backing file is asked to), EINVAL (no regular file,
                on a filesystem of FUSE or on one that is not mounted here), ELOOP (on a stacked
                filesystem), and what else the kernel says.
            ProtocolError: too many descriptors have come that cannot be closed.
        """
        known = self._ids.get(node)
        if known is not None:
            self.discard(fd)
            return known
        try:
            self._check(node, fd)
        except OSError:
            self._refused += 1
            self.discard(fd)
            raise
        try:
            return self.add(node, fd)
        finally:
            os.close(fd)  # of a filesystem that waits for nobody

    def known(self, node: int) -> int:
        """The number of an inode's backing file; 0 if it has none."""
        return self._ids.get(node, 0)

    def add(self, node: int, fd: int) -> int:
        """The number of a backing file that the caller answers for.

        Args:
            node: the inode, which has none.
            fd: a descriptor of the caller's own; stays his.

        Raises:
            OSError: ENFILE, EOPNOTSUPP, and what the kernel says.
        """
        try:
            self._check_room()
            number = self._registrar.call(_backing_open, self._device, fd)
        except OSError:
            self._refused += 1
            raise
        self._ids[node] = number
        self._opened += 1
        return number

    def release(self, node: int) -> None:
        """The inode's backing file is not needed any more; what is open of it stays open."""
        number = self._ids.pop(node, None)
        if number is not None:
            with contextlib.suppress(OSError):  # ENODEV: the connection has ended, and they all
                self._registrar.call(_backing_close, self._device, number)

    def discard(self, fd: int) -> None:
        """Close a descriptor that came from a server, without waiting for it.

        Raises:
            ProtocolError: too many have come that cannot be closed.
        """
        self._closer.call_later(os.close, fd)
        if self._closer.waiting > _MAX_UNCLOSED:
            raise ProtocolError("too many descriptors whose closing does not end")

    def close(self) -> None:
        """End what was started here. The backing files end with the connection. Idempotent."""
        self._ids.clear()
        self._refusal = self._refusal or "the mount has ended"
        self._registrar.close()
        self._closer.close()
        self._filesystems.close()

    def statistics(self) -> BackingsStatistics:
        """A snapshot; from any thread."""
        return BackingsStatistics(self._refusal, len(self._ids), self._opened, self._refused)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _check(self, node: int, fd: int) -> None:
        """Raise OSError unless the file may back an inode."""
        self._check_room()
        if node == 0:
            raise OSError(errno.EINVAL, "there is no inode 0")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        access = flags & os.O_ACCMODE
        if flags & os.O_PATH:
            raise OSError(errno.EPERM, "the descriptor can do nothing")
        kind, mount = kind_and_mount(fd)
        mount = mount or _mount_id(fd)
        if mount == self._own_mount and kind == stat.S_IFREG:
            return
        if access == os.O_WRONLY:
            raise OSError(errno.EPERM, "the descriptor cannot read")
        if not self._read_only and (access != os.O_RDWR or flags & os.O_APPEND):
            raise OSError(errno.EPERM, "the descriptor cannot write, and the mount can be written")
        fstype = self._filesystems.type_of(mount)
        if fstype is None:
            raise OSError(errno.EINVAL, "the file's filesystem is not mounted here")
        if fstype.partition(".")[0] in {"fuse", "fuseblk"}:
            raise OSError(errno.EINVAL, "the file's filesystem is itself one of FUSE")
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "the file is not a regular one")

    def _check_room(self) -> None:
        if self._refusal:
            raise OSError(errno.EOPNOTSUPP, self._refusal)
        if len(self._ids) >= self._limit:
            raise OSError(errno.ENFILE, f"{self._limit} backing files, and no more")


def _mount_id(fd: int) -> int:
    """The mount that an open file was found in.

    Raises:
        OSError: EINVAL: /proc does not say.
    """
    number = mount_id_of(fd)
    if not number:
        raise OSError(errno.EINVAL, "the file's mount is not known")
    return number


class _Filesystems:
    """Which filesystem a mount is of, by the mount's number.

    The table of mounts is read again only when the kernel says that it has changed. A mount whose
    number is looked up cannot end and leave its number to another meanwhile: the descriptor that
    it was learnt from holds it.
    """

    def __init__(self) -> None:
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._changes = select.poll()
        self._changes.register(self._table, select.POLLPRI)
        self._types: dict[int, str] | None = None

    def type_of(self, mount_id: int) -> str | None:
        """The type, as mount(8) calls it; None if there is no such mount here."""
        if self._changes.poll(0) or self._types is None:
            self._types = {entry.mount_id: entry.fstype for entry in mounts()}
        return self._types.get(mount_id)

    def close(self) -> None:
        if self._table >= 0:
            os.close(self._table)
            self._table = -1


class _Here:
    """Makes calls in the thread that asks for them."""

    def call(self, function: Callable[..., int], *args: int) -> int:
        return function(*args)

    def close(self) -> None:
        pass


class _Helper:
    """A thread that makes calls one after the other, started with the first.

    Args:
        name: of the thread.
        prepare: called in the thread before anything else; what it raises, each call raises.
    """

    def __init__(self, name: str, prepare: Callable[[], None] | None = None) -> None:
        self._name = name
        self._prepare = prepare
        self._jobs: queue.SimpleQueue[tuple[Future[int | None], Callable[[], int | None]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return self._jobs.qsize()

    def call(self, function: Callable[..., int], *args: int) -> int:
        """Make a call and wait for it; its result, or what it raises."""
        return self._submit(function, *args).result() or 0

    def call_later(self, function: Callable[..., None], *args: int) -> None:
        """Have a call made."""
        self._submit(function, *args)

    def _submit(self, function: Callable[..., int | None], *args: int) -> Future[int | None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        done: Future[int | None] = Future()
        self._jobs.put((done, lambda: function(*args)))
        return done

    def _run(self) -> None:
        refusal: OSError | None = None
        with contextlib.suppress(OSError):
            set_name(self._name)
        try:
            if self._prepare is not None:
                self._prepare()
        except OSError as error:
            refusal = error
        while (job := self._jobs.get()) is not None:
            done, function = job
            try:
                if refusal is not None:
                    raise refusal
                done.set_result(function())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
                done.set_exception(error)

    def close(self) -> None:
        """Have the thread end after what was asked of it; not waited for. Idempotent."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None


def become_nobody(*also: Capability) -> None:
    """Leave the calling thread with nobody's identity and the one right that registering takes.

    Args:
        also: other rights to keep. Whatever is registered is then read and written with them.
    """
    use_files_as(NOBODY, NOBODY)
    keep_only((Capability.SYS_ADMIN, *also))


# With a buffer that can change ioctl returns what the system call does, not the buffer.


def _backing_open(device: int, fd: int) -> int:
    return int(fcntl.ioctl(device, DEV_IOC_BACKING_OPEN, bytearray(pack(BackingMap(fd, 0, 0)))))


def _backing_close(device: int, number: int) -> int:
    return int(fcntl.ioctl(device, DEV_IOC_BACKING_CLOSE, bytearray(struct.pack("=I", number))))
