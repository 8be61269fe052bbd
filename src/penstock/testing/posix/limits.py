# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: sizes, namespaces, buffers, lists."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from penstock.testing.posix.calls import getxattr_into, listxattr_into, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

USER = 65534


def _file(root: Path) -> Path:
    path = root / "file"
    path.touch()
    return path


def _names(path: Path, prefix: str = "user.") -> set[str]:
    return {name for name in os.listxattr(path) if name.startswith(prefix)}


@case("xattr")
def buffers_of_values(root: Path) -> None:
    """getxattr with no buffer tells the length; one that is too small is ERANGE."""
    path = _file(root)
    os.setxattr(path, "user.name", b"0123456789")
    equal(getxattr_into(path, "user.name", 0), 10)
    equal(getxattr_into(path, "user.name", 10), 10)
    equal(getxattr_into(path, "user.name", 100), 10)
    fails(errno.ERANGE, getxattr_into, path, "user.name", 9)


@case("xattr")
def buffers_of_lists(root: Path) -> None:
    """listxattr with no buffer tells the length; one that is too small is ERANGE."""
    path = _file(root)
    for number in range(10):
        os.setxattr(path, f"user.number-{number}", b"v")
    length = listxattr_into(path, 0)
    holds(length >= 10 * 14, "room for ten names")
    equal(listxattr_into(path, length), length)
    fails(errno.ERANGE, listxattr_into, path, length - 1)


@case("xattr")
def values_grow_and_shrink(root: Path) -> None:
    """A value that is replaced by longer and shorter ones is always the last."""
    path = _file(root)
    os.setxattr(path, "user.other", b"neighbour")
    for size in (1, 700, 3, 0, 300, 64, 65):
        os.setxattr(path, "user.name", b"v" * size)
        equal(os.getxattr(path, "user.name"), b"v" * size)
    equal(os.getxattr(path, "user.other"), b"neighbour")


@case("xattr")
def names_are_told_apart(root: Path) -> None:
    """Names that differ in case, length or one byte are different attributes; any bytes will do."""
    path = _file(root)
    names = ["user.a", "user.A", "user.aa", "user.a.b", "user. ", "user.é", "user.\udcff", "user.-"]
    for number, name in enumerate(names):
        os.setxattr(path, name, b"%d" % number)
    equal([os.getxattr(path, name) for name in names], [b"%d" % n for n in range(len(names))])
    equal(_names(path), set(names))


@case("xattr")
def many_attributes_come_and_go(root: Path) -> None:
    """Of 40 attributes every other is removed: the rest is listed and has its values."""
    path = _file(root)
    for number in range(40):
        os.setxattr(path, f"user.n{number}", b"%d" % number)
    for number in range(0, 40, 2):
        os.removexattr(path, f"user.n{number}")
    equal(_names(path), {f"user.n{number}" for number in range(1, 40, 2)})
    for number in range(1, 40, 2):
        equal(os.getxattr(path, f"user.n{number}"), b"%d" % number)


@case("xattr")
def empty_and_incomplete_names(root: Path) -> None:
    """A name that is only a namespace, or empty, is refused; a missing one is ENODATA."""
    path = _file(root)
    refused = (errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP)
    fails(refused, os.setxattr, path, "user.", b"v")
    fails(refused, os.setxattr, path, "", b"v")
    fails(errno.ENODATA, os.getxattr, path, "user.missing")
    equal(_names(path), set())


@case("xattr")
def attributes_of_directories(root: Path) -> None:
    """A directory's attributes are its own: what is made in it has none of them, and they stay
    when it moves."""
    place = root / "place"
    place.mkdir()
    os.setxattr(place, "user.name", b"v")
    (place / "below").mkdir()
    (place / "file").touch()
    for name in ("below", "file"):
        equal(_names(place / name), set())
    os.rename(place, root / "moved")
    equal(os.getxattr(root / "moved", "user.name"), b"v")


@case("xattr")
def special_files_have_no_user_attributes(root: Path) -> None:
    """user.* of a fifo is EPERM to set, and not there to get."""
    os.mkfifo(root / "fifo")
    fails(errno.EPERM, os.setxattr, root / "fifo", "user.name", b"v")
    fails((errno.ENODATA, errno.EPERM), os.getxattr, root / "fifo", "user.name")


@case("xattr")
def attributes_by_descriptor(root: Path) -> None:
    """fsetxattr, fgetxattr and fremovexattr work on a descriptor that was opened for reading."""
    with opened(_file(root)) as fd:
        os.setxattr(fd, "user.name", b"v", os.XATTR_CREATE)
        equal(os.getxattr(fd, "user.name"), b"v")
        equal(os.getxattr(root / "file", "user.name"), b"v")
        os.removexattr(fd, "user.name")
        fails(errno.ENODATA, os.getxattr, fd, "user.name")


@case("xattr", "others")
def user_attributes_follow_the_mode(root: Path) -> None:
    """user.* is read and written by whom the mode lets read and write the content: EACCES."""
    root.chmod(0o755)
    path = _file(root)
    os.setxattr(path, "user.name", b"v")
    with Peer(user=USER) as peer:
        path.chmod(0o644)
        equal(len(peer.call("os.listxattr", path)) > 0, True)
        fails(errno.EACCES, peer.call, "os.removexattr", path, "user.name")
        path.chmod(0o600)
        fails(errno.EACCES, peer.call, "os.removexattr", path, "user.name")
        path.chmod(0o666)
        peer.call("os.removexattr", path, "user.name")


@case("trusted", "others")
def trusted_attributes_are_roots(root: Path) -> None:
    """trusted.* is removed by nobody but root, and not there for others."""
    root.chmod(0o755)
    path = _file(root)
    path.chmod(0o666)
    os.setxattr(path, "trusted.name", b"v")
    with Peer(user=USER) as peer:
        fails(errno.ENODATA, peer.call, "os.getxattr", path, "trusted.name")
        fails(errno.EPERM, peer.call, "os.removexattr", path, "trusted.name")
    holds("trusted.name" in os.listxattr(path), "root sees it")


@case("security", "root")
def security_attributes(root: Path) -> None:
    """security.* is kept, listed and removed for root."""
    path = _file(root)
    os.setxattr(path, "security.penstock", b"label\0")
    equal(os.getxattr(path, "security.penstock"), b"label\0")
    holds("security.penstock" in os.listxattr(path), "listed")
    os.removexattr(path, "security.penstock")
    fails(errno.ENODATA, os.getxattr, path, "security.penstock")


@case("large-xattr")
def large_values(root: Path) -> None:
    """A value of 60,000 bytes is kept and replaced; nothing above 65,536 is."""
    path = _file(root)
    value = bytes(range(250)) * 240
    os.setxattr(path, "user.large", value)
    holds(os.getxattr(path, "user.large") == value, "the same bytes")
    os.setxattr(path, "user.large", value[::-1])
    holds(os.getxattr(path, "user.large") == value[::-1], "the other bytes")
    fails(errno.E2BIG, os.setxattr, path, "user.large", bytes(65537))


@case("xattr")
def failed_setting_leaves_the_value(root: Path) -> None:
    """Where XATTR_CREATE or the size is refused, the value stays as it was."""
    path = _file(root)
    os.setxattr(path, "user.name", b"old")
    fails(errno.EEXIST, os.setxattr, path, "user.name", b"new", os.XATTR_CREATE)
    fails(errno.E2BIG, os.setxattr, path, "user.name", bytes(65537))
    equal(os.getxattr(path, "user.name"), b"old")


@case("xattr")
def new_file_of_the_name_has_none(root: Path) -> None:
    """A file that is made where one with attributes was removed has none."""
    path = _file(root)
    os.setxattr(path, "user.name", b"v")
    path.unlink()
    path.touch()
    equal(_names(path), set())
