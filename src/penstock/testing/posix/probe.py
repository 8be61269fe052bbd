# SPDX-License-Identifier: Apache-2.0
"""Which of the needs a filesystem, a mount or a user does not have: each is tried for real.

A probe tries no more than what makes the cases pointless when it fails. A filesystem that has a
thing and has it wrong is for the cases to find.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from penstock.testing.posix import calls
from penstock.testing.posix.calls import opened
from penstock.testing.posix.needs import NEEDS
from penstock.testing.posix.peer import Peer

__all__ = ["probe"]

_NOBODY: Final = 65534
_BLOCK: Final = 1 << 16
_CREATE: Final = os.O_CREAT | os.O_RDWR


def probe(root: Path) -> dict[str, str]:
    """What cases may need and is absent here: keys of ``NEEDS``, and why.

    Args:
        root: a directory on the filesystem, writable; nothing is left in it.
    """
    place = Path(tempfile.mkdtemp(prefix="probe-", dir=root))
    absent: dict[str, str] = {}
    try:
        place.chmod(0o755)
        for need in NEEDS:
            where = place / need
            where.mkdir()
            try:
                _PROBES[need](where)
            except (OSError, AssertionError) as error:
                absent[need] = getattr(error, "strerror", None) or str(error)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return absent


def _require(condition: object, why: str) -> None:
    if not condition:
        raise AssertionError(why)


def _file(place: Path, data: bytes = b"") -> Path:
    path = place / "file"
    path.write_bytes(data)
    return path


def _root(place: Path) -> None:
    _require(os.geteuid() == 0, "not root")
    os.chown(_file(place), 12345, 12345)


def _others(place: Path) -> None:
    _require(os.geteuid() == 0, "not root")
    with Peer(user=_NOBODY) as peer:
        peer.call("listdir", place)


def _devices(place: Path) -> None:
    os.mknod(place / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _attribute(name: str, size: int = 5) -> Callable[[Path], None]:
    return lambda place: os.setxattr(_file(place), name, b"v" * size)


def _acl(place: Path) -> None:
    entries = ((1, 7, 0xFFFF_FFFF), (2, 7, 1), (4, 5, 0xFFFF_FFFF), (16, 7, 0xFFFF_FFFF))
    value = struct.pack("<I", 2)
    for entry in (*entries, (32, 0, 0xFFFF_FFFF)):
        value += struct.pack("<HHI", *entry)
    os.setxattr(_file(place), "system.posix_acl_access", value)


def _tmpfile(place: Path) -> None:
    os.close(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600))


def _whiteout(place: Path) -> None:
    calls.rename2(_file(place), place / "new", calls.WHITEOUT)


def _holes(place: Path) -> None:
    with opened(place / "file", _CREATE) as fd:
        os.ftruncate(fd, 8 * _BLOCK)
        os.pwrite(fd, b"x", 4 * _BLOCK)
        _require(os.lseek(fd, 0, os.SEEK_DATA) == 4 * _BLOCK, "SEEK_DATA sees no holes")
        calls.fallocate(fd, calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE, 0, 8 * _BLOCK)
        calls.fallocate(fd, 0, 0, _BLOCK)


def _fallocate(mode: int) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        with opened(_file(place, b"x" * 8 * _BLOCK), os.O_RDWR) as fd:
            calls.fallocate(fd, mode, _BLOCK, _BLOCK)

    return attempt


def _reflink(place: Path) -> None:
    with (
        opened(_file(place, b"x" * _BLOCK)) as source,
        opened(place / "copy", _CREATE) as target,
    ):
        calls.clone(target, source)


def _space(place: Path) -> None:
    with opened(_file(place), os.O_RDWR) as fd:
        before = os.fstatvfs(fd).f_bfree
        calls.fallocate(fd, 0, 0, 64 * _BLOCK)
        _require(os.fstatvfs(fd).f_bfree < before, "as much is free as before")


def _btime(place: Path) -> None:
    _require(calls.birth_time_ns(place) is not None, "statx gives none")


def _locks(place: Path) -> None:
    path = _file(place)
    with Peer() as peer, opened(path, os.O_RDWR) as fd:
        other = peer.call("open", path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            peer.call("lock", other, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                return
            raise
        _require(condition=False, why="another process does not see them")


def _direct(place: Path) -> None:
    os.close(os.open(_file(place, b"x" * _BLOCK), os.O_RDWR | os.O_DIRECT))


def _without(flag: int, word: str) -> Callable[[Path], None]:
    return lambda place: _require(not os.statvfs(place).f_flag & flag, f"mounted {word}")


def _long_symlinks(place: Path) -> None:
    (place / "link").symlink_to("t" * 4095)


def _dirlinks(place: Path) -> None:
    (place / "below").mkdir()
    _require(os.stat(place).st_nlink == 3, f"st_nlink is {os.stat(place).st_nlink}, not 3")


def _flags(place: Path) -> None:
    with opened(_file(place)) as fd:
        before = calls.inode_flags(fd)
        calls.set_inode_flags(fd, before | calls.FS_APPEND_FL)
        calls.set_inode_flags(fd, before)


def _nanoseconds(place: Path) -> None:
    path = _file(place)
    late, early = 4_102_444_800_000_000_001, -1_500_000_000_000_000_001
    for times in ((1_234_567_891, 1_234_567_891), (late, early)):
        os.utime(path, ns=times)
        status = os.stat(path)
        _require((status.st_atime_ns, status.st_mtime_ns) == times, "times are cut or rounded")


def _handles(place: Path) -> None:
    with opened(place, os.O_DIRECTORY) as fd:
        os.close(calls.open_handle(fd, calls.file_handle(_file(place))))


_PROBES: Final[dict[str, Callable[[Path], None]]] = {
    "root": _root,
    "others": _others,
    "devices": _devices,
    "xattr": _attribute("user.name"),
    "trusted": _attribute("trusted.name"),
    "security": _attribute("security.penstock"),
    "large-xattr": _attribute("user.name", 60_000),
    "acl": _acl,
    "tmpfile": _tmpfile,
    "whiteout": _whiteout,
    "holes": _holes,
    "zero": _fallocate(calls.FALLOC_ZERO_RANGE),
    "collapse": _fallocate(calls.FALLOC_COLLAPSE_RANGE),
    "reflink": _reflink,
    "space": _space,
    "btime": _btime,
    "locks": _locks,
    "direct": _direct,
    "suid": _without(os.ST_NOSUID, "nosuid"),
    "long-symlinks": _long_symlinks,
    "exec": _without(os.ST_NOEXEC, "noexec"),
    "dirlinks": _dirlinks,
    "flags": _flags,
    "nanoseconds": _nanoseconds,
    "handles": _handles,
}
