# SPDX-License-Identifier: Apache-2.0
"""A mount: a filesystem, a session, a transport and the kernel's half, put together."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from penstock.broker.attach import (
    detach_newer,
    find_attached,
    max_pages,
    open_connection,
    set_readahead,
)
from penstock.broker.carriers import LENS, Carrier, Window, choose_carrier
from penstock.broker.options import MountOptions
from penstock.datapath import DataPathStatistics, Paths, WholeFiles
from penstock.fs import Operations
from penstock.serve.files import OwnBackings
from penstock.session import Limits, Notifier, Session, SessionStatistics
from penstock.sys.mountinfo import MountInfo, find_mount, resolve_parent
from penstock.sys.unmount import find_fuse_mount, take_away
from penstock.transport import DevFuse

__all__ = ["Mount", "MountStatistics", "mount"]

_log = logging.getLogger(__name__)

_PLACE = "/var/tmp"  # noqa: S108 - to try whether files can be registered at all


@dataclass(frozen=True, slots=True)
class MountStatistics:
    """A snapshot of one mount."""

    mountpoint: str
    how: str
    """How it was mounted: ``fsmount``, ``mount`` or ``fusermount3``."""
    session: SessionStatistics
    datapath: DataPathStatistics
    backing_files: int
    uptime_seconds: float


class Mount:
    """A filesystem that is mounted and served by threads of this process.

    A context manager: leaving it unmounts. Do not use paths below the mount point from this
    process: a request that waits for a thread that waits for the interpreter lock never ends.
    """

    def __init__(
        self,
        mountpoint: str,
        info: MountInfo | None,
        how: str,
        session: Session,
        transport: DevFuse,
        datapaths: Paths,
        backings: OwnBackings,
    ) -> None:
        self.mountpoint = mountpoint if info is None else info.mountpoint
        self.info = info
        """The mount as the kernel lists it."""
        self._how = how
        self._session = session
        self._transport = transport
        self._datapaths = datapaths
        self._backings = backings
        self._started = time.monotonic()
        self._closing = threading.Lock()

    @property
    def connection(self) -> int:
        """Number of the FUSE connection (/sys/fs/fuse/connections/N); 0 if it is not known."""
        return self.info.minor if self.info is not None else 0

    @property
    def notifier(self) -> Notifier:
        """Tells the kernel of changes."""
        return self._session.notifier

    @property
    def mounted(self) -> bool:
        """Whether this mount is still in the mount table, wherever it is by now."""
        info = self.info
        return info is not None and find_fuse_mount(info.mount_id, info.minor) is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the mount has ended, by whomever; whether it has.

        Then everything is closed and ``destroy`` has been called.
        """
        if not self._transport.ended.wait(timeout):
            return False
        with self._closing:
            self._backings.close()
            self._transport.close()
        return True

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount and wait for the end.

        Args:
            lazy: take it out of the tree although it is in use, and end the connection.

        Raises:
            OSError: EBUSY where it is in use and ``lazy`` was not asked for.
        """
        if not self._transport.ended.is_set() and self.info is not None and self.mounted:
            take_away(self.info, lazy=lazy)
        if lazy and not self.wait(1.0):
            self.abort()
        self.wait()

    def close(self) -> None:
        """Unmount; where the mount is in use it is unmounted lazily, and its users get errors."""
        try:
            self.unmount()
        except OSError as error:
            _log.warning("%s: %s; detaching it", self.mountpoint, error.strerror or error)
            self.unmount(lazy=True)

    def abort(self) -> None:
        """End the connection at once; callers in the mount get ECONNABORTED or ENOTCONN."""
        self._transport.stop()

    def statistics(self) -> MountStatistics:
        """A snapshot; from any thread."""
        return MountStatistics(
            self.mountpoint,
            self._how,
            self._session.statistics(),
            self._datapaths.statistics(),
            self._backings.registered,
            time.monotonic() - self._started,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def mount(
    operations: Operations,
    mountpoint: str | os.PathLike[str],
    options: MountOptions = MountOptions(),
    trace: Callable[[str], None] | None = None,
    directory: int | None = None,
) -> Mount:
    """Mount a filesystem; it is usable when this returns.

    Args:
        operations: the filesystem; ``destroy`` is called when the mount ends.
        mountpoint: an existing directory.
        options: see :class:`MountOptions`.
        trace: called with one line for each request, by whichever thread carried it out.
        directory: descriptor of the mount point, where the caller holds it open; it counts then.

    Raises:
        OSError: the mount point cannot be used, or the caller may not mount.
        ValueError: an option is wrong.
    """
    target = resolve_parent(os.fspath(mountpoint))
    with contextlib.ExitStack() as undo:  # also for a signal's exception, at any point
        undo.callback(detach_newer, target, find_mount(target))
        attachment = open_connection(target, options, directory)
        undo.callback(attachment.abandon)
        carrier = _carrier(operations, options, attachment.how)
        backings = OwnBackings(carrier.lens)
        undo.callback(backings.close)
        datapaths = _paths(options.datapath, carrier, backings)
        limits = Limits(
            max_write=options.max_write,
            max_pages=max_pages(options),
            max_stack_depth=carrier.depth,
        )
        transport = DevFuse(
            attachment.fd,
            workers=options.workers,
            poll=options.poll,
            max_write=options.max_write,
            on_splice_refused=datapaths.refuse_splice,
        )
        session = Session(
            operations, sink=transport, datapaths=datapaths, limits=limits, trace=trace
        )
        session.carries = bool(carrier.files)
        backings.start(attachment.fd)
        undo.callback(session.end)
        undo.callback(transport.close)
        transport.attach(session)
        if options.workers > 1:
            operations.before_wait = transport.before_wait
        attachment.create(transport.handshake)
        transport.start()
        info = find_attached(attachment.fd, attachment.attach(), target)
        mounted = Mount(target, info, attachment.how, session, transport, datapaths, backings)
        set_readahead(mounted.connection, options.readahead)
        undo.pop_all()
    return mounted


def _carrier(operations: Operations, options: MountOptions, how: str) -> Carrier:
    """What can carry whole files of this filesystem, if it has any."""
    own, word = operations.whole_files, options.datapath
    if not own:
        return Carrier("", {})
    try:
        if own == LENS:
            image = operations.devices[0]
            window = Window(0, os.lseek(image, 0, os.SEEK_END), operations.block_size)
            return choose_carrier(word, image, window, how, stackable=options.stackable)
        place = os.open(_PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = choose_carrier(word, place, Window(0, 0, 0), how, stackable=options.stackable)
        finally:
            os.close(place)
        return found._replace(own_mount=0)
    except OSError as error:
        raise ValueError(f"datapath={word}: {error.strerror or error}") from error


def _paths(word: str, carrier: Carrier, backings: OwnBackings) -> Paths:
    if not carrier.files:
        return Paths(word, reasons=carrier.reasons)
    files = WholeFiles(
        carrier.files,
        backings,
        everything=word == carrier.files,
        direct=os.O_DIRECT if carrier.files == LENS else 0,
    )
    return Paths(word, files=files, reasons=carrier.reasons)
