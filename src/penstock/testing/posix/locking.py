# SPDX-License-Identifier: Apache-2.0
"""Advisory locks between processes and descriptors: fcntl(2), OFD locks, flock(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails

READ: Final = fcntl.LOCK_SH | fcntl.LOCK_NB
WRITE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
UNLOCK: Final = fcntl.LOCK_UN
_FLOCK: Final = "hhqqi0q"
_OFD_SETLK: Final = 37
_OFD_SETLKW: Final = 38


def _file(root: Path) -> Path:
    path = root / "file"
    path.write_bytes(b"old")
    return path


def _ofd(fd: int, kind: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None:
    """An OFD lock."""
    fcntl.fcntl(
        fd,
        _OFD_SETLKW if wait else _OFD_SETLK,
        struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0),
    )


@case("locks")
def writers_exclude(root: Path) -> None:
    """A write lock excludes another process's read and write locks; unlocking lets them in."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 0, 0)
        fails(errno.EAGAIN, peer.call, "lock", other, READ, 0, 0)
        fcntl.lockf(fd, UNLOCK)
        peer.call("lock", other, WRITE, 0, 0)


@case("locks")
def readers_share(root: Path) -> None:
    """Read locks go together and exclude writers."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, READ)
        peer.call("lock", other, READ, 0, 0)
        fails(errno.EAGAIN, fcntl.lockf, fd, WRITE)
        peer.call("lock", other, UNLOCK, 0, 0)
        fcntl.lockf(fd, WRITE)


@case("locks")
def ranges_are_independent(root: Path) -> None:
    """Locks of ranges that do not meet go together; neighbours do not meet."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 10, 10)
        peer.call("lock", other, WRITE, 10, 0)
        peer.call("lock", other, WRITE, 0, 20)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 1, 19)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 0, 0)


@case("locks")
def unlocking_splits(root: Path) -> None:
    """Unlocking the middle of a range leaves its two ends locked."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 30, 0)
        fcntl.lockf(fd, UNLOCK, 10, 10)
        peer.call("lock", other, WRITE, 10, 10)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 1, 9)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 1, 20)


@case("locks")
def conversion_in_place(root: Path) -> None:
    """A process changes its own lock: a part to read, and back."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 30, 0)
        fcntl.lockf(fd, READ, 10, 10)
        peer.call("lock", other, READ, 10, 10)
        fails(errno.EAGAIN, peer.call, "lock", other, READ, 10, 5)
        fails(errno.EAGAIN, fcntl.lockf, fd, WRITE, 30, 0)


@case("locks")
def who_holds_it(root: Path) -> None:
    """F_GETLK tells the range, kind and process in the way, or F_UNLCK."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 20, 100)
        found = peer.call("test_lock", other, fcntl.F_RDLCK, 0, 0)
        equal(found, [fcntl.F_WRLCK, 100, 20, os.getpid()])
        equal(peer.call("test_lock", other, fcntl.F_WRLCK, 0, 100)[0], fcntl.F_UNLCK)


@case("locks")
def closing_drops_locks(root: Path) -> None:
    """Closing any descriptor of the file drops all of the process's locks on it."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE)
        os.close(os.open(path, os.O_RDONLY))
        peer.call("lock", other, WRITE, 0, 0)


@case("locks")
def exiting_drops_locks(root: Path) -> None:
    """The end of a process drops its locks and flocks."""
    path = _file(root)
    with opened(path, os.O_RDWR) as fd:
        with Peer() as peer:
            other = peer.call("open", path, os.O_RDWR)
            peer.call("lock", other, WRITE, 0, 0)
            peer.call("flock", other, WRITE)
            fails(errno.EAGAIN, fcntl.lockf, fd, WRITE)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_EX)


@case("locks")
def waiting_for_a_lock(root: Path) -> None:
    """Who waits for a lock gets it when it is free, and sees what was written under it."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 0, 0)
        peer.start("lock", other, fcntl.LOCK_EX, 0, 0)
        peer.start("read", other, 3, 0)
        peer.wait_blocked()
        os.pwrite(fd, b"new", 0)
        fcntl.lockf(fd, UNLOCK)
        peer.answer()
        equal(peer.answer(), "new")


@case("locks")
def deadlock_is_found(root: Path) -> None:
    """Two processes that would wait for each other: one gets EDEADLK."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 1, 0)
        peer.call("lock", other, WRITE, 1, 1)
        peer.start("lock", other, fcntl.LOCK_EX, 1, 0)
        peer.start("lock", other, UNLOCK, 1, 1)
        peer.wait_blocked()
        first: int | None = None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
        except OSError as error:
            first = error.errno
            fcntl.lockf(fd, UNLOCK, 1, 0)
        second: int | None = None
        try:
            peer.answer()
        except OSError as error:
            second = error.errno
        equal(sorted(filter(None, (first, second))), [errno.EDEADLK])


@case("locks")
def descriptions_exclude_each_other(root: Path) -> None:
    """OFD locks are of the open file description: two in one process exclude each other, and the
    last close drops them."""
    path = _file(root)
    with opened(path, os.O_RDWR) as one:
        two = os.open(path, os.O_RDWR)
        try:
            _ofd(two, fcntl.F_WRLCK)
            fails(errno.EAGAIN, _ofd, one, fcntl.F_RDLCK)
            os.close(os.dup(two))
            fails(errno.EAGAIN, _ofd, one, fcntl.F_RDLCK)
        finally:
            os.close(two)
        # A filesystem may hear of the last close after close has returned.
        _ofd(one, fcntl.F_WRLCK, wait=True)


@case("locks")
def flock_excludes(root: Path) -> None:
    """flock: shared goes with shared, exclusive with none, between processes and descriptions."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.flock(one, READ)
        fcntl.flock(two, READ)
        peer.call("flock", other, READ)
        fails(errno.EAGAIN, fcntl.flock, one, WRITE)
        fcntl.flock(two, UNLOCK)
        peer.call("flock", other, UNLOCK)
        fcntl.flock(one, WRITE)
        fails(errno.EAGAIN, peer.call, "flock", other, READ)


@case("locks")
def flock_is_shared_by_dup(root: Path) -> None:
    """A duplicate is the same flock; the last close of the description drops it."""
    path = _file(root)
    with opened(path, os.O_RDWR) as other:
        fd = os.open(path, os.O_RDWR)
        copy = os.dup(fd)
        fcntl.flock(fd, WRITE)
        fcntl.flock(copy, WRITE)
        os.close(fd)
        fails(errno.EAGAIN, fcntl.flock, other, WRITE)
        os.close(copy)
        fcntl.flock(other, fcntl.LOCK_EX)


@case("locks")
def waiting_for_a_flock(root: Path) -> None:
    """Who waits for a flock gets it when it is free."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.flock(fd, WRITE)
        fails(errno.EAGAIN, peer.call, "flock", other, WRITE)
        peer.start("flock", other, fcntl.LOCK_EX)
        peer.start("read", other, 3, 0)
        peer.wait_blocked()
        os.pwrite(fd, b"new", 0)
        fcntl.flock(fd, UNLOCK)
        peer.answer()
        equal(peer.answer(), "new")


@case("locks")
def flock_and_fcntl_do_not_meet(root: Path) -> None:
    """The two kinds of locks know nothing of each other."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.flock(fd, WRITE)
        peer.call("lock", other, WRITE, 0, 0)


@case("locks")
def lock_needs_the_access_mode(root: Path) -> None:
    """A write lock needs a descriptor open for writing, a read lock one open for reading."""
    path = _file(root)
    with opened(path, os.O_RDONLY) as fd:
        fails(errno.EBADF, fcntl.lockf, fd, WRITE)
        fcntl.lockf(fd, READ)
    with opened(path, os.O_WRONLY) as fd:
        fails(errno.EBADF, fcntl.lockf, fd, READ)
        fcntl.lockf(fd, WRITE)
