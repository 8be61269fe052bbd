# SPDX-License-Identifier: Apache-2.0
"""Locks that are waited for, interrupted, and given up; and who holds which."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from penstock.testing.posix.calls import opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails

READ: Final = fcntl.LOCK_SH | fcntl.LOCK_NB
WRITE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
UNLOCK: Final = fcntl.LOCK_UN
MOMENT: Final = 0.05
"""Seconds after which a signal arrives."""


def _file(root: Path) -> Path:
    path = root / "file"
    path.write_bytes(b"old")
    return path


@case("locks")
def signal_ends_the_wait_for_a_lock(root: Path) -> None:
    """A signal ends the wait for a record lock with EINTR, and nothing of the request is left."""
    path = _file(root)
    with Peer() as peer, Peer() as third, opened(path, os.O_RDWR) as fd:
        other, last = (p.call("open", path, os.O_RDWR) for p in (peer, third))
        fcntl.lockf(fd, WRITE)
        words = ("interrupted", MOMENT, "lock", other, fcntl.LOCK_EX, 0, 0)
        fails(errno.EINTR, peer.call, *words)
        fcntl.lockf(fd, UNLOCK)
        third.call("lock", last, WRITE, 0, 0)


@case("locks")
def signal_ends_the_wait_for_a_flock(root: Path) -> None:
    """A signal ends the wait for a flock with EINTR, and nothing of the request is left."""
    path = _file(root)
    with Peer() as peer, Peer() as third, opened(path, os.O_RDWR) as fd:
        other, last = (p.call("open", path, os.O_RDWR) for p in (peer, third))
        fcntl.flock(fd, WRITE)
        words = ("interrupted", MOMENT, "flock", other, fcntl.LOCK_EX)
        fails(errno.EINTR, peer.call, *words)
        fcntl.flock(fd, UNLOCK)
        third.call("flock", last, WRITE)


@case("locks")
def end_of_the_holder_wakes_who_waits(root: Path) -> None:
    """Who waits for a lock gets it when its holder is killed."""
    path = _file(root)
    with Peer() as holder, Peer() as peer:
        held, other = (p.call("open", path, os.O_RDWR) for p in (holder, peer))
        holder.call("lock", held, WRITE, 0, 0)
        peer.start("lock", other, fcntl.LOCK_EX, 0, 0)
        peer.wait_blocked()
        holder.end()
        peer.answer()


@case("locks")
def closing_wakes_who_waits(root: Path) -> None:
    """Who waits for a lock gets it when its holder closes a descriptor of the file."""
    path = _file(root)
    with Peer() as holder, Peer() as peer:
        held, other = (p.call("open", path, os.O_RDWR) for p in (holder, peer))
        holder.call("lock", held, WRITE, 0, 0)
        peer.start("lock", other, fcntl.LOCK_EX, 0, 0)
        peer.wait_blocked()
        holder.call("close", held)
        peer.answer()
        equal(peer.call("test_lock", other, fcntl.F_WRLCK, 0, 0)[0], fcntl.F_UNLCK)


@case("locks")
def end_of_who_waits_leaves_nothing(root: Path) -> None:
    """The end of a process that waits leaves no lock behind."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, WRITE)
        with Peer() as waiter:
            other = waiter.call("open", path, os.O_RDWR)
            waiter.start("lock", other, fcntl.LOCK_EX, 0, 0)
            waiter.wait_blocked()
        fcntl.lockf(fd, UNLOCK)
        last = peer.call("open", path, os.O_RDWR)
        peer.call("lock", last, WRITE, 0, 0)


@case("locks")
def downgrading_lets_readers_in(root: Path) -> None:
    """Who waits to read gets its lock when the writer makes its own a reader's."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE)
        peer.start("lock", other, fcntl.LOCK_SH, 0, 0)
        peer.wait_blocked()
        fcntl.lockf(fd, READ)
        peer.answer()
        fails(errno.EAGAIN, fcntl.lockf, fd, WRITE)


@case("locks")
def unlocking_a_part_wakes_who_waits_for_it(root: Path) -> None:
    """Who waits for a part of a range gets it when that part is free."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 100, 0)
        peer.start("lock", other, fcntl.LOCK_EX, 10, 50)
        peer.wait_blocked()
        fcntl.lockf(fd, UNLOCK, 10, 50)
        peer.answer()
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 1, 49)


@case("locks")
def flock_changes_its_kind(root: Path) -> None:
    """flock changes between shared and exclusive where nobody is in the way."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.flock(fd, READ)
        fcntl.flock(fd, WRITE)
        fails(errno.EAGAIN, peer.call, "flock", other, READ)
        fcntl.flock(fd, READ)
        peer.call("flock", other, READ)


@case("locks")
def ofd_locks_between_processes(root: Path) -> None:
    """OFD locks of a description exclude those and the record locks of other processes, by
    ranges."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        peer.call("ofd_lock", other, fcntl.F_WRLCK, 0, 10)
        fails(errno.EAGAIN, fcntl.lockf, fd, WRITE, 1, 9)
        fcntl.lockf(fd, WRITE, 1, 10)
        fails(errno.EAGAIN, peer.call, "ofd_lock", other, fcntl.F_RDLCK, 10, 1)
        peer.call("close", other)
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)


@case("locks")
def locks_to_the_end_of_the_file(root: Path) -> None:
    """A lock of length 0 reaches as far as a file can grow; one before it does not."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, WRITE, 0, 100)
        fails(errno.EAGAIN, peer.call, "lock", other, WRITE, 1, 1 << 60)
        equal(peer.call("test_lock", other, fcntl.F_WRLCK, 1 << 40, 5)[1:3], [100, 0])
        peer.call("lock", other, WRITE, 100, 0)


@case("locks")
def locks_are_the_files_not_the_names(root: Path) -> None:
    """A lock is seen through another name of the file, after a rename, and when all names are
    gone."""
    path = _file(root)
    os.link(path, root / "other")
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", root / "other", os.O_RDWR)
        fcntl.lockf(fd, WRITE)
        fails(errno.EAGAIN, peer.call, "lock", other, READ, 0, 0)
        os.rename(path, root / "moved")
        fails(errno.EAGAIN, peer.call, "lock", other, READ, 0, 0)
        (root / "moved").unlink()
        (root / "other").unlink()
        fails(errno.EAGAIN, peer.call, "lock", other, READ, 0, 0)


@case("locks")
def new_file_of_the_same_name_is_not_locked(root: Path) -> None:
    """A lock stays with its file: a new one under the name is free."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, WRITE)
        path.unlink()
        path.write_bytes(b"new")
        other = peer.call("open", path, os.O_RDWR)
        peer.call("lock", other, WRITE, 0, 0)


@case("locks")
def many_locks_of_two_processes(root: Path) -> None:
    """Two processes lock every other byte of a file, and each finds the other's."""
    path = _file(root)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        for offset in range(0, 60, 2):
            fcntl.lockf(fd, WRITE, 1, offset)
            peer.call("lock", other, WRITE, 1, offset + 1)
        for offset in range(0, 60, 10):
            fails(errno.EAGAIN, fcntl.lockf, fd, WRITE, 1, offset + 1)
            fails(errno.EAGAIN, peer.call, "lock", other, READ, 1, offset)
        fcntl.lockf(fd, UNLOCK)
        peer.call("lock", other, WRITE, 0, 0)


@case("locks")
def flocks_of_a_child(root: Path) -> None:
    """A flock is the open file's: a process that has inherited it holds it on when the first has
    closed its descriptor."""
    path = _file(root)
    with opened(path, os.O_RDWR) as late:
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, WRITE)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        try:
            os.close(fd)
            fails(errno.EAGAIN, fcntl.flock, late, WRITE)
        finally:
            os.close(writer)
            os.waitpid(child, 0)
        fcntl.flock(late, fcntl.LOCK_EX)
