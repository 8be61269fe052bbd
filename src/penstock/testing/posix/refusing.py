# SPDX-License-Identifier: Apache-2.0
"""Read-only: every change is EROFS, and nothing has changed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from penstock.testing.posix.calls import (
    EXCHANGE,
    FS_IMMUTABLE_FL,
    NOREPLACE,
    opened,
    rename2,
    set_inode_flags,
)
from penstock.testing.posix.registry import equal, fails, holds, read_case

ACCESS = "system.posix_acl_access"


@read_case()
def opening_for_writing(root: Path) -> None:
    """Opening for writing, truncating or appending is EROFS."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC):
        fails(errno.EROFS, os.open, root / "size-4097", flags)
    equal(os.stat(root / "size-4097").st_size, 4097)


@read_case()
def creating_files(root: Path) -> None:
    """O_CREAT of a new name is EROFS; of one that is there it opens for reading, with O_EXCL it is
    EEXIST."""
    fails(errno.EROFS, os.open, root / "new", os.O_CREAT | os.O_WRONLY)
    fails(errno.EROFS, os.open, root / "directory" / "new", os.O_CREAT | os.O_RDONLY)
    with opened(root / "size-1", os.O_CREAT | os.O_RDONLY) as fd:
        equal(len(os.read(fd, 10)), 1)
    fails(errno.EEXIST, os.open, root / "size-1", os.O_CREAT | os.O_EXCL | os.O_RDONLY)
    fails(errno.EROFS, os.open, root, os.O_TMPFILE | os.O_RDWR)


@read_case()
def making_names(root: Path) -> None:
    """mkdir, symlink, link and mknod are EROFS; over a name that is there, EEXIST."""
    fails(errno.EROFS, os.mkdir, root / "new")
    fails(errno.EROFS, os.symlink, "target", root / "new")
    fails(errno.EROFS, os.link, root / "size-1", root / "new")
    fails(errno.EROFS, os.mkfifo, root / "new")
    fails(errno.EROFS, os.mknod, root / "new", stat.S_IFREG | 0o600)
    fails(errno.EEXIST, os.mkdir, root / "directory")
    fails(errno.EEXIST, os.symlink, "target", root / "size-1")


@read_case()
def removing_names(root: Path) -> None:
    """unlink and rmdir are EROFS, and what they name stays."""
    fails(errno.EROFS, os.unlink, root / "size-1")
    fails(errno.EROFS, os.unlink, root / "to-file")
    fails(errno.EROFS, os.rmdir, root / "empty")
    for name in ("size-1", "to-file", "empty"):
        os.lstat(root / name)


@read_case()
def renaming(root: Path) -> None:
    """rename is EROFS with all its flags, and both names stay what they were."""
    one, two = root / "size-1", root / "size-59"
    fails(errno.EROFS, os.rename, one, root / "new")
    fails(errno.EROFS, os.rename, one, two)
    fails(errno.EROFS, rename2, one, root / "new", NOREPLACE)
    fails(errno.EROFS, rename2, one, two, EXCHANGE)
    equal((os.stat(one).st_size, os.stat(two).st_size), (1, 59))


@read_case()
def changing_modes(root: Path) -> None:
    """chmod is EROFS, by name and by descriptor."""
    fails(errno.EROFS, os.chmod, root / "mode-0600", 0o644)
    with opened(root / "mode-0600") as fd:
        fails(errno.EROFS, os.fchmod, fd, 0o644)
    equal(stat.S_IMODE(os.stat(root / "mode-0600").st_mode), 0o600)


@read_case()
def changing_owners(root: Path) -> None:
    """chown and lchown are EROFS, to the same owner too."""
    status = os.stat(root / "size-1")
    fails(errno.EROFS, os.chown, root / "size-1", status.st_uid, status.st_gid)
    fails(errno.EROFS, os.lchown, root / "dangling", status.st_uid, -1)


@read_case()
def changing_times(root: Path) -> None:
    """utimensat is EROFS, to the present and to any time, of symlinks too."""
    before = os.stat(root / "time-4")
    fails(errno.EROFS, os.utime, root / "time-4")
    fails(errno.EROFS, os.utime, root / "time-4", ns=(1, 1))
    fails(errno.EROFS, os.utime, root / "time-link", ns=(1, 1), follow_symlinks=False)
    equal(os.stat(root / "time-4"), before)


@read_case()
def truncating(root: Path) -> None:
    """truncate is EROFS; of a directory EISDIR."""
    fails(errno.EROFS, os.truncate, root / "size-4097", 0)
    fails(errno.EROFS, os.truncate, root / "size-4097", 4097)
    fails(errno.EISDIR, os.truncate, root / "directory", 0)
    equal(os.stat(root / "size-4097").st_size, 4097)


@read_case("xattr")
def changing_attributes(root: Path) -> None:
    """Setting and removing extended attributes are EROFS."""
    fails(errno.EROFS, os.setxattr, root / "attributes", "user.new", b"v")
    fails(errno.EROFS, os.removexattr, root / "attributes", "user.small")
    equal(os.getxattr(root / "attributes", "user.small"), b"value")


@read_case("acl")
def changing_acls(root: Path) -> None:
    """Removing and setting ACLs is EROFS."""
    value = os.getxattr(root / "acl", ACCESS)
    fails(errno.EROFS, os.setxattr, root / "acl", ACCESS, value)
    fails(errno.EROFS, os.removexattr, root / "acl", ACCESS)


@read_case()
def access_for_writing(root: Path) -> None:
    """access says that nothing can be written (EROFS to the caller), and all may be read."""
    for name in ("size-1", "directory"):
        holds(not os.access(root / name, os.W_OK), f"{name} cannot be written")
        holds(os.access(root / name, os.R_OK), f"{name} can be read")
    holds(os.access(root / "script", os.X_OK), "the script can be executed")


@read_case()
def writing_through_a_reader(root: Path) -> None:
    """A descriptor for reading is EBADF to write, EINVAL to truncate, and copies go elsewhere."""
    with opened(root / "size-4097") as fd, opened(root / "size-1") as other:
        fails(errno.EBADF, os.write, fd, b"x")
        fails(errno.EINVAL, os.ftruncate, fd, 0)
        fails(errno.EBADF, os.copy_file_range, other, fd, 1, 0, 0)


@read_case("flags", "root")
def changing_flags(root: Path) -> None:
    """Making a file immutable is EROFS, or not known at all."""
    with opened(root / "size-1") as fd:
        fails((errno.EROFS, errno.ENOTTY), set_inode_flags, fd, FS_IMMUTABLE_FL)


@read_case()
def names_are_still_the_same(root: Path) -> None:
    """Whatever was tried, no name has come or gone."""
    names = set(os.listdir(root))
    holds({"size-1", "hard-a", "directory", "fifo", "circle"} <= names, "all are there")
    holds("new" not in names, "nothing new")
