# SPDX-License-Identifier: Apache-2.0
"""Extended attributes and POSIX access control lists."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.registry import case, equal, fails, holds

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
_ANY = 0xFFFF_FFFF


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL of (tag, permissions, id). Tags: owner 1, user 2, group 4, mask 16, others 32."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _extended(mask: int = 7) -> bytes:
    """Owner rwx, user 1234 rwx, group r-x, the mask, others none."""
    return _acl((1, 7, _ANY), (2, 7, 1234), (4, 5, _ANY), (16, mask, _ANY), (32, 0, _ANY))


@case("xattr")
def attributes_are_kept(root: Path) -> None:
    """Values of any bytes, empty ones too, are kept on files and directories and replaced."""
    (root / "file").touch()
    for path in (root / "file", root):
        for value in (b"", b"v", bytes(range(256)), b"x" * 800):
            os.setxattr(path, "user.name", value)
            equal(os.getxattr(path, "user.name"), value)


@case("xattr")
def attributes_are_listed(root: Path) -> None:
    """listxattr lists exactly the names that are set, by name and by descriptor."""
    (root / "file").touch()
    names = {f"user.name-{number}" for number in range(30)}
    for name in names:
        os.setxattr(root / "file", name, b"v")
    equal({n for n in os.listxattr(root / "file") if n.startswith("user.")}, names)
    with opened(root / "file") as fd:
        equal({n for n in os.listxattr(fd) if n.startswith("user.")}, names)


@case("xattr")
def attributes_are_removed(root: Path) -> None:
    """What is removed, or never was, is ENODATA."""
    (root / "file").touch()
    os.setxattr(root / "file", "user.name", b"v")
    os.removexattr(root / "file", "user.name")
    fails(errno.ENODATA, os.getxattr, root / "file", "user.name")
    fails(errno.ENODATA, os.removexattr, root / "file", "user.name")
    holds("user.name" not in os.listxattr(root / "file"), "not listed")


@case("xattr")
def creating_and_replacing(root: Path) -> None:
    """XATTR_CREATE is EEXIST where it is, XATTR_REPLACE ENODATA where it is not."""
    (root / "file").touch()
    path = root / "file"
    fails(errno.ENODATA, os.setxattr, path, "user.name", b"v", os.XATTR_REPLACE)
    os.setxattr(path, "user.name", b"v", os.XATTR_CREATE)
    fails(errno.EEXIST, os.setxattr, path, "user.name", b"w", os.XATTR_CREATE)
    os.setxattr(path, "user.name", b"x", os.XATTR_REPLACE)
    equal(os.getxattr(path, "user.name"), b"x")


@case("xattr")
def attribute_limits(root: Path) -> None:
    """A name of 255 bytes works, of 256 is ERANGE; a value over 64 KiB is E2BIG."""
    (root / "file").touch()
    os.setxattr(root / "file", "user." + "n" * 250, b"v")
    fails(errno.ERANGE, os.setxattr, root / "file", "user." + "n" * 251, b"v")
    fails(errno.E2BIG, os.setxattr, root / "file", "user.name", b"x" * 65537)


@case("xattr")
def unknown_namespace(root: Path) -> None:
    """A name without a known prefix is EOPNOTSUPP."""
    (root / "file").touch()
    fails(errno.EOPNOTSUPP, os.setxattr, root / "file", "nowhere.name", b"v")
    fails(errno.EOPNOTSUPP, os.setxattr, root / "file", "name", b"v")


@case("xattr")
def symlinks_have_no_user_attributes(root: Path) -> None:
    """user.* is for files and directories; through a symlink it is its target's."""
    (root / "file").touch()
    (root / "link").symlink_to("file")
    link = root / "link"
    fails(errno.EPERM, os.setxattr, link, "user.name", b"v", follow_symlinks=False)
    os.setxattr(link, "user.name", b"v")
    equal(os.getxattr(root / "file", "user.name"), b"v")


@case("xattr", "root", "trusted")
def trusted_attributes(root: Path) -> None:
    """trusted.* is kept for root, on symlinks too."""
    (root / "link").symlink_to("nowhere")
    os.setxattr(root / "link", "trusted.name", b"v", follow_symlinks=False)
    equal(os.getxattr(root / "link", "trusted.name", follow_symlinks=False), b"v")


@case("xattr")
def attributes_follow_the_file(root: Path) -> None:
    """Attributes belong to the inode: links share them, a rename keeps them."""
    (root / "file").touch()
    os.setxattr(root / "file", "user.name", b"v")
    os.link(root / "file", root / "link")
    os.rename(root / "file", root / "moved")
    equal(os.getxattr(root / "link", "user.name"), b"v")
    equal(os.getxattr(root / "moved", "user.name"), b"v")
    (root / "file").touch()
    fails(errno.ENODATA, os.getxattr, root / "file", "user.name")


@case("acl")
def acl_sets_the_mode(root: Path) -> None:
    """The mode's group bits are the ACL's mask; an ACL without names is nothing but a mode."""
    path = root / "file"
    path.touch()
    os.setxattr(path, ACCESS, _extended(mask=6))
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o760)
    equal(os.getxattr(path, ACCESS), _extended(mask=6))
    os.setxattr(path, ACCESS, _acl((1, 6, _ANY), (4, 4, _ANY), (32, 0, _ANY)))
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o640)
    fails(errno.ENODATA, os.getxattr, path, ACCESS)


@case("acl")
def chmod_sets_the_mask(root: Path) -> None:
    """chmod changes owner, mask and others of an ACL, never the group's own entry."""
    path = root / "file"
    path.touch()
    os.setxattr(path, ACCESS, _extended())
    os.chmod(path, 0o641)
    expected = _acl((1, 6, _ANY), (2, 7, 1234), (4, 5, _ANY), (16, 4, _ANY), (32, 1, _ANY))
    equal(os.getxattr(path, ACCESS), expected)


@case("acl")
def default_acl_is_inherited(root: Path) -> None:
    """What is made in a directory with a default ACL gets it, cut to the mode asked for."""
    os.setxattr(root, DEFAULT, _extended())
    before = os.umask(0o077)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o640))
        os.mkdir(root / "directory", 0o777)
    finally:
        os.umask(before)
    expected = _acl((1, 6, _ANY), (2, 7, 1234), (4, 5, _ANY), (16, 4, _ANY), (32, 0, _ANY))
    equal(os.getxattr(root / "file", ACCESS), expected)
    equal(stat.S_IMODE(os.stat(root / "file").st_mode), 0o640)
    fails(errno.ENODATA, os.getxattr, root / "file", DEFAULT)
    equal(os.getxattr(root / "directory", DEFAULT), _extended())
    equal(os.getxattr(root / "directory", ACCESS), _extended())
    equal(stat.S_IMODE(os.stat(root / "directory").st_mode), 0o770)


@case("acl")
def plain_default_acl_replaces_the_umask(root: Path) -> None:
    """A default ACL without names counts instead of the umask."""
    os.setxattr(root, DEFAULT, _acl((1, 7, _ANY), (4, 7, _ANY), (32, 5, _ANY)))
    before = os.umask(0o077)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(before)
    equal(stat.S_IMODE(os.stat(root / "file").st_mode), 0o664)
    fails(errno.ENODATA, os.getxattr, root / "file", ACCESS)


@case("acl")
def acl_refusals(root: Path) -> None:
    """Malformed ACLs are EINVAL; a default ACL of a file is EACCES; of a symlink there is none."""
    (root / "file").touch()
    (root / "link").symlink_to("file")
    path = root / "file"
    fails(errno.EINVAL, os.setxattr, path, ACCESS, b"\x02\0\0\0rubbish")
    fails(errno.EINVAL, os.setxattr, path, ACCESS, _acl((1, 7, _ANY)))
    fails(errno.EINVAL, os.setxattr, root, DEFAULT, _acl((1, 7, _ANY), (2, 7, 1)))
    fails(errno.EACCES, os.setxattr, path, DEFAULT, _extended())
    fails(errno.EOPNOTSUPP, os.setxattr, root / "link", ACCESS, _extended(), follow_symlinks=False)


@case("acl")
def acl_can_be_removed(root: Path) -> None:
    """Removing a default ACL ends inheriting; removing an access ACL leaves the mode."""
    os.setxattr(root, DEFAULT, _extended())
    os.removexattr(root, DEFAULT)
    (root / "file").touch()
    fails(errno.ENODATA, os.getxattr, root / "file", ACCESS)
    os.setxattr(root / "file", ACCESS, _extended())
    os.removexattr(root / "file", ACCESS)
    fails(errno.ENODATA, os.getxattr, root / "file", ACCESS)
    equal(stat.S_IMODE(os.stat(root / "file").st_mode), 0o770)
