# SPDX-License-Identifier: Apache-2.0
"""POSIX access control lists at work: who is let in, and what other calls do to them."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

from penstock.testing.posix.calls import next_tick, opened
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import case, equal, fails, holds

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
ANY = 0xFFFF_FFFF
USER = 65534
OTHER = 65533
OWNER_TAG, USER_TAG, OWN_GROUP_TAG, GROUP_TAG, MASK_TAG, OTHERS_TAG = 1, 2, 4, 8, 16, 32
CREATE = os.O_CREAT | os.O_WRONLY


def acl(
    owner: int,
    group: int,
    others: int,
    *,
    users: dict[int, int] | None = None,
    groups: dict[int, int] | None = None,
    mask: int | None = None,
) -> bytes:
    """An ACL as the kernel writes it down. Users and groups: number → permissions."""
    entries = [(OWNER_TAG, owner, ANY)]
    entries += [(USER_TAG, perm, uid) for uid, perm in (users or {}).items()]
    entries += [(OWN_GROUP_TAG, group, ANY)]
    entries += [(GROUP_TAG, perm, gid) for gid, perm in (groups or {}).items()]
    entries += [(MASK_TAG, mask, ANY)] if mask is not None else []
    entries += [(OTHERS_TAG, others, ANY)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _file(root: Path, value: bytes) -> Path:
    root.chmod(0o755)
    path = root / "file"
    path.write_bytes(b"content")
    os.setxattr(path, ACCESS, value)
    return path


def _bits(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@case("acl", "others")
def named_users_are_let_in(root: Path) -> None:
    """A user whom the ACL names has his entry's rights, whatever others have."""
    path = _file(root, acl(7, 0, 0, users={USER: 4}, mask=7))
    with Peer(user=USER) as peer:
        peer.call("open", path, os.O_RDONLY)
        fails(errno.EACCES, peer.call, "open", path, os.O_WRONLY)
    with Peer(user=OTHER) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)


@case("acl", "others")
def named_users_are_kept_out(root: Path) -> None:
    """A user whom the ACL names with no rights is kept out, though others are let in."""
    path = _file(root, acl(7, 4, 6, users={USER: 0}, mask=7))
    with Peer(user=USER) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)
    with Peer(user=OTHER) as peer:
        peer.call("open", path, os.O_RDWR)


@case("acl", "others")
def named_groups_are_let_in(root: Path) -> None:
    """A member of any group that the ACL names has its rights; one entry has to allow all that is
    asked for."""
    path = _file(root, acl(7, 0, 0, groups={111: 4, 222: 2}, mask=7))
    with Peer(user=USER, groups=(111,)) as peer:
        peer.call("open", path, os.O_RDONLY)
    with Peer(user=USER, groups=(111, 222)) as peer:
        peer.call("open", path, os.O_WRONLY)
        fails(errno.EACCES, peer.call, "open", path, os.O_RDWR)
    with Peer(user=USER) as peer:
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)


@case("acl", "others")
def mask_limits_what_is_named(root: Path) -> None:
    """The mask limits named users and groups, neither the owner nor others."""
    path = _file(root, acl(6, 6, 6, users={USER: 6}, mask=4))
    os.chown(path, OTHER, 0)
    with Peer(user=USER) as peer:
        peer.call("open", path, os.O_RDONLY)
        fails(errno.EACCES, peer.call, "open", path, os.O_WRONLY)
    with Peer(user=OTHER) as peer:
        peer.call("open", path, os.O_RDWR)
    with Peer(user=12345) as peer:
        peer.call("open", path, os.O_RDWR)


@case("acl", "others")
def chmod_takes_rights_of_the_named(root: Path) -> None:
    """chmod of the group's bits changes the mask, and with it what a named user may."""
    path = _file(root, acl(6, 0, 0, users={USER: 6}, mask=6))
    with Peer(user=USER) as peer:
        peer.call("open", path, os.O_RDWR)
        path.chmod(0o600)
        fails(errno.EACCES, peer.call, "open", path, os.O_RDONLY)
        path.chmod(0o660)
        peer.call("open", path, os.O_RDWR)
    equal(os.getxattr(path, ACCESS), acl(6, 0, 0, users={USER: 6}, mask=6))


@case("acl", "others")
def only_the_owner_changes_an_acl(root: Path) -> None:
    """Who may write a file but does not own it changes no ACL: EPERM."""
    path = _file(root, acl(6, 0, 0, users={USER: 6}, mask=6))
    with Peer(user=USER) as peer:
        fails(errno.EPERM, peer.call, "os.removexattr", path, ACCESS)
    holds(os.getxattr(path, ACCESS), "the ACL is there")


@case("acl", "others")
def directories_have_acls(root: Path) -> None:
    """An ACL of a directory says who may search and change it."""
    place = root / "place"
    root.chmod(0o755)
    place.mkdir()
    os.setxattr(place, ACCESS, acl(7, 0, 0, users={USER: 7, OTHER: 5}, mask=7))
    with Peer(user=USER) as peer:
        peer.call("open", place / "file", CREATE)
    with Peer(user=OTHER) as peer:
        equal(peer.call("listdir", place), ["file"])
        fails(errno.EACCES, peer.call, "unlink", place / "file")


@case("acl", "others")
def inherited_acl_lets_in(root: Path) -> None:
    """What is made in a directory with a default ACL lets in whom that names, without a chmod."""
    root.chmod(0o755)
    os.setxattr(root, DEFAULT, acl(7, 0, 0, users={USER: 6}, mask=7))
    (root / "file").write_bytes(b"content")
    equal(_bits(root / "file"), 0o660)
    with Peer(user=USER) as peer:
        fd = peer.call("open", root / "file", os.O_RDWR)
        equal(peer.call("read", fd, 10, 0), "content")
    with Peer(user=OTHER) as peer:
        fails(errno.EACCES, peer.call, "open", root / "file", os.O_RDONLY)


@case("acl")
def default_acl_goes_down_the_tree(root: Path) -> None:
    """Directories made in a directory with a default ACL have it as well, level by level."""
    value = acl(7, 5, 0, users={1234: 7}, mask=7)
    os.setxattr(root, DEFAULT, value)
    (root / "a" / "b" / "c").mkdir(parents=True)
    equal(os.getxattr(root / "a" / "b" / "c", DEFAULT), value)


@case("acl")
def inheritance_of_fifos_and_symlinks(root: Path) -> None:
    """A fifo inherits a default ACL, a symlink does not."""
    os.setxattr(root, DEFAULT, acl(7, 5, 0, users={1234: 7}, mask=7))
    os.mkfifo(root / "fifo", 0o660)
    (root / "link").symlink_to("fifo")
    equal(os.getxattr(root / "fifo", ACCESS), acl(6, 5, 0, users={1234: 7}, mask=6))
    names = os.listxattr(root / "link", follow_symlinks=False)
    equal([name for name in names if "acl" in name], [])


@case("acl", "tmpfile")
def inheritance_of_tmpfile(root: Path) -> None:
    """A file made by O_TMPFILE inherits the default ACL of its directory."""
    os.setxattr(root, DEFAULT, acl(7, 5, 0, users={1234: 7}, mask=7))
    with opened(root, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        equal(os.getxattr(fd, ACCESS), acl(6, 5, 0, users={1234: 7}, mask=0))


@case("acl")
def moving_inherits_nothing(root: Path) -> None:
    """rename and link into a directory with a default ACL leave the file's own permissions."""
    (root / "place").mkdir()
    os.setxattr(root / "place", DEFAULT, acl(7, 5, 0, users={1234: 7}, mask=7))
    for name in ("one", "two"):
        (root / name).touch()
        (root / name).chmod(0o640)
    os.rename(root / "one", root / "place" / "one")
    os.link(root / "two", root / "place" / "two")
    for name in ("one", "two"):
        fails(errno.ENODATA, os.getxattr, root / "place" / name, ACCESS)
        equal(_bits(root / "place" / name), 0o640)


@case("acl")
def acls_are_listed(root: Path) -> None:
    """An ACL is in the list of attributes while it is there, by its name."""
    value = acl(7, 5, 0, users={1234: 7}, mask=7)
    (root / "place").mkdir()
    for name in (ACCESS, DEFAULT):
        holds(name not in os.listxattr(root / "place"), "not listed before")
        os.setxattr(root / "place", name, value)
        holds(name in os.listxattr(root / "place"), "listed")
        os.removexattr(root / "place", name)
        holds(name not in os.listxattr(root / "place"), "not listed after")


@case("acl")
def acl_with_many_entries(root: Path) -> None:
    """An ACL of 20 users and 10 groups is kept as it is."""
    users = {1000 + number: number % 8 for number in range(20)}
    groups = {2000 + number: number % 8 for number in range(10)}
    value = acl(7, 5, 1, users=users, groups=groups, mask=7)
    path = _file(root, value)
    equal(os.getxattr(path, ACCESS), value)
    equal(_bits(path), 0o771)


@case("acl")
def acl_moves_ctime_and_keeps_other_bits(root: Path) -> None:
    """Setting an ACL moves ctime, and keeps set-user-ID and sticky bits."""
    path = root / "file"
    path.touch()
    path.chmod(0o5755)
    before = os.stat(path).st_ctime_ns
    next_tick(root)
    os.setxattr(path, ACCESS, acl(7, 5, 0, users={1234: 7}, mask=5))
    equal(_bits(path), 0o5750)
    holds(os.stat(path).st_ctime_ns > before, "a later ctime")
