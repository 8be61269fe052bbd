# SPDX-License-Identifier: Apache-2.0
"""Modes, owners, times, and who is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from penstock.testing.posix.calls import birth_time_ns, next_tick, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

NOBODY = 65534


def _chmod(path: Path, mode: int) -> None:
    os.chmod(path, mode)


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@case()
def chmod_keeps_all_bits(root: Path) -> None:
    """chmod sets all twelve bits, by name and by descriptor, and changes ctime alone."""
    path = root / "file"
    path.touch()
    os.utime(path, ns=(10**9, 10**9))
    for mode in (0, 0o777, 0o4711, 0o2711, 0o1777, 0o644):
        os.chmod(path, mode)
        equal(_mode(path), mode)
    with opened(path) as fd:
        os.fchmod(fd, 0o600)
    equal(_mode(path), 0o600)
    equal(os.stat(path).st_mtime_ns, 10**9)


@case()
def umask_is_applied(root: Path) -> None:
    """The umask takes bits from files, directories and fifos, not from symlinks."""
    before = os.umask(0o027)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(root / "directory", 0o777)
        os.mkfifo(root / "fifo", 0o666)
        os.symlink("x", root / "link")
    finally:
        os.umask(before)
    modes = [_mode(root / name) for name in ("file", "directory", "fifo", "link")]
    equal(modes, [0o640, 0o750, 0o640, 0o777])


@case()
def mode_zero_of_creation_still_writes(root: Path) -> None:
    """The descriptor of a file created with mode 0 can be written."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR, 0) as fd:
        equal(os.write(fd, b"x"), 1)
    equal(_mode(root / "file"), 0)


@case("root")
def chown_changes_owner_and_group(root: Path) -> None:
    """chown sets either or both; lchown the symlink's own."""
    path = root / "file"
    path.touch()
    (root / "link").symlink_to("file")
    os.chown(path, 1234, -1)
    os.chown(path, -1, 5678)
    equal((os.stat(path).st_uid, os.stat(path).st_gid), (1234, 5678))
    os.chown(root / "link", 1, 2, follow_symlinks=False)
    equal((os.lstat(root / "link").st_uid, os.stat(path).st_uid), (1, 1234))
    os.chown(path, 4_000_000_000, 4_000_000_001)
    equal((os.stat(path).st_uid, os.stat(path).st_gid), (4_000_000_000, 4_000_000_001))


@case("root")
def chown_drops_set_id_bits(root: Path) -> None:
    """chown drops set-user-ID and executable set-group-ID of files, by root too; not of
    directories."""
    path = root / "file"
    path.touch()
    _chmod(path, 0o6755)
    os.chown(path, 1234, 1234)
    equal(_mode(path), 0o755)
    (root / "directory").mkdir()
    _chmod(root / "directory", 0o6755)
    os.chown(root / "directory", 1234, 1234)
    equal(_mode(root / "directory"), 0o6755)


@case("others")
def writing_by_others_drops_set_id_bits(root: Path) -> None:
    """Writing and truncating by an ordinary user drop set-user-ID and executable set-group-ID."""
    for name, act in (("written", ("write", "x", 0)), ("cut", ())):
        path = root / name
        path.write_bytes(b"content")
        _chmod(path, 0o6777)
        with Peer(user=NOBODY) as peer:
            if act:
                fd = peer.call("open", path, os.O_WRONLY)
                peer.call("write", fd, "x", 0)
            else:
                peer.call("truncate", path, 2)
        equal(_mode(path), 0o777, name)


@case("root")
def writing_by_root_keeps_set_id_bits(root: Path) -> None:
    """Root's writing and truncating leave the bits."""
    path = root / "file"
    path.write_bytes(b"content")
    _chmod(path, 0o6777)
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
        os.ftruncate(fd, 2)
    equal(_mode(path), 0o6777)


@case("others")
def permissions_keep_others_out(root: Path) -> None:
    """What the mode does not allow is EACCES for another user; changing what is not his, EPERM."""
    _chmod(root, 0o755)
    path = root / "file"
    path.write_bytes(b"secret")
    _chmod(path, 0o600)
    (root / "closed").mkdir(mode=0o700)
    with Peer(user=NOBODY) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)
        fails(errno.EACCES, peer.call, "truncate", path, 0)
        fails(errno.EPERM, peer.call, "chmod", path, 0o777)
        fails(errno.EACCES, peer.call, "unlink", path)
        fails(errno.EACCES, peer.call, "open", root / "new", os.O_CREAT | os.O_WRONLY)
        fails(errno.EACCES, peer.call, "listdir", root / "closed")
        _chmod(path, 0o604)
        fd = peer.call("open", path, os.O_RDONLY)
        equal(peer.call("read", fd, 10, 0), "secret")
        fails(errno.EACCES, peer.call, "open", path, os.O_RDWR)


@case("others")
def sticky_directory_protects_names(root: Path) -> None:
    """In a sticky directory that all may write to, nobody removes what is another's."""
    _chmod(root, 0o1777)
    (root / "roots").touch()
    with Peer(user=NOBODY) as peer:
        fails(errno.EPERM, peer.call, "unlink", root / "roots")
        peer.call("open", root / "own", os.O_CREAT | os.O_WRONLY)
        equal(os.stat(root / "own").st_uid, NOBODY)
        peer.call("unlink", root / "own")


@case()
def times_are_kept_to_the_nanosecond(root: Path) -> None:
    """utimensat keeps nanoseconds, times before 1970 and after 2038, of files and symlinks."""
    path = root / "file"
    path.touch()
    (root / "link").symlink_to("file")
    for atime, mtime in (
        (1_234_567_890_123_456_789, 987_654_321_987_654_321),
        (-1, -1_500_000_000_000_000_001),
        (4_102_444_800_000_000_001, 7_258_118_400_999_999_999),
        (0, 0),
    ):
        for each, follow in ((path, True), (root / "link", False)):
            os.utime(each, ns=(atime, mtime), follow_symlinks=follow)
            status = os.lstat(each)
            equal((status.st_atime_ns, status.st_mtime_ns), (atime, mtime))


@case()
def time_now(root: Path) -> None:
    """utimensat without times sets both to about the present; ctime follows every change."""
    path = root / "file"
    path.touch()
    os.utime(path, ns=(10**9, 10**9))
    old = os.stat(path)
    os.utime(path)
    new = os.stat(path)
    holds(new.st_mtime_ns > 1_500_000_000 * 10**9, "mtime is the present")
    holds(new.st_atime_ns > 1_500_000_000 * 10**9, "atime is the present")
    holds(new.st_ctime_ns >= old.st_ctime_ns, "ctime goes forward")


@case()
def new_file_has_the_present_time(root: Path) -> None:
    """atime, mtime and ctime of a new file are one moment, not before its directory's last."""
    (root / "first").touch()
    (root / "second").mkdir()
    for name in ("first", "second"):
        status = os.stat(root / name)
        holds(abs(status.st_mtime_ns - status.st_ctime_ns) < 10**9, "mtime and ctime agree")
        holds(abs(status.st_atime_ns - status.st_ctime_ns) < 10**9, "atime and ctime agree")
    holds(os.stat(root / "second").st_ctime_ns >= os.stat(root / "first").st_ctime_ns, "in order")


@case()
def changes_move_ctime(root: Path) -> None:
    """chmod, utime, link and rename move ctime forward."""
    path = root / "file"
    path.touch()
    changes: tuple[Callable[[], None], ...] = (
        lambda: _chmod(path, 0o600),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: os.link(path, root / "link"),
        lambda: os.unlink(root / "link"),
    )
    for change in changes:
        before = os.stat(path).st_ctime_ns
        next_tick(root)
        change()
        holds(os.stat(path).st_ctime_ns > before, "a later ctime")


@case("btime")
def birth_time_stays(root: Path) -> None:
    """The time of birth is that of creation and no change moves it."""
    path = root / "file"
    path.touch()
    born = birth_time_ns(path)
    holds(born is not None, "a time of birth")
    equal(born, os.stat(path).st_ctime_ns)
    path.write_bytes(b"x")
    _chmod(path, 0o600)
    os.utime(path, ns=(1, 1))
    os.rename(path, root / "moved")
    equal(birth_time_ns(root / "moved"), born)


@case()
def inode_numbers_are_stable(root: Path) -> None:
    """Each file has a number of its own that no change moves; all are on one device."""
    names = [f"file-{number}" for number in range(50)]
    for name in names:
        (root / name).touch()
    before = {name: os.stat(root / name).st_ino for name in names}
    equal(len(set(before.values())), 50)
    for name in names:
        (root / name).write_bytes(b"x")
        os.chmod(root / name, 0o600)
    equal({name: os.stat(root / name).st_ino for name in names}, before)
    equal({os.stat(root / name).st_dev for name in names}, {os.stat(root).st_dev})


@case()
def fstat_agrees_with_stat(root: Path) -> None:
    """fstat of a descriptor and stat of its name say the same."""
    (root / "file").write_bytes(b"x" * 5000)
    with opened(root / "file") as fd:
        equal(os.fstat(fd), os.stat(root / "file"))
    with opened(root, os.O_DIRECTORY) as fd:
        equal(os.fstat(fd), os.stat(root))


@case()
def access_asks_the_mode(root: Path) -> None:
    """access: execution needs one execute bit, even for root; a missing file is refused."""
    path = root / "file"
    path.touch()
    _chmod(path, 0o644)
    holds(not os.access(path, os.X_OK), "not executable")
    _chmod(path, 0o755)
    holds(os.access(path, os.R_OK | os.W_OK | os.X_OK), "all allowed")
    holds(not os.access(root / "missing", os.F_OK), "nothing there")
