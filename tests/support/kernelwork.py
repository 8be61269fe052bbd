# SPDX-License-Identifier: Apache-2.0
"""What only a mounted filesystem can be made to hold: work to do in a kernel mount, as root.

``make_tree`` of :mod:`tests.support.images` makes one of each kind of file and does for mkfs too.
Here is what takes the kernel driver: indexed directories with removed names, unwritten and punched
extents, thousands of extents, offsets beyond 4 GiB, flags, project ids, values of attributes in
blocks and inodes of their own, inline files that grew and shrank.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.images import MIB, make_tree, run

__all__ = ["acl", "fill_directory", "work", "write_all_sorts"]

FS_IOC_SETFLAGS = 0x4008_6602
FS_IOC_FSGETXATTR = 0x801C_581F
FS_IOC_FSSETXATTR = 0x401C_5820
FS_IOC_SETVERSION = 0x4008_7602
APPEND, IMMUTABLE, NODUMP, NOATIME, SYNC, DIRSYNC, TOPDIR = (
    0x20, 0x10, 0x40, 0x80, 0x8, 0x1_0000, 0x2_0000,
)  # fmt: skip
_REFUSALS = {
    errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSPC, errno.E2BIG, errno.EFBIG, errno.EINVAL,
    errno.ERANGE,
}  # fmt: skip
NOBODY = 0xFFFF_FFFF


@contextlib.contextmanager
def _if_the_format_has_it() -> Iterator[None]:
    """Go on where this kind of filesystem has no room for something."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as setxattr(2) takes it, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def work(top: Path) -> None:
    """Everything, below a directory ``kernel`` of a mounted filesystem."""
    folder = top / "kernel"
    folder.mkdir()
    make_tree(folder / "tree", files=30)
    fill_directory(folder / "indexed", 2600)
    _fragments(folder)
    _preallocated(folder)
    _attributes(folder)
    _flags(folder)
    _inline(folder)
    _deep(folder)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o755)


def write_all_sorts(image: Path, mountpoint: Path, options: str = "") -> None:
    """Do :func:`work` in a loop mount of the image."""
    from tests.support.images import kernel_mount

    with kernel_mount(image, mountpoint, options) as top:
        work(top)


def fill_directory(folder: Path, names: int) -> None:
    """Make a directory with an index of names, and remove every third name again."""
    folder.mkdir()
    paths = [folder / f"{index:x}-ümlaut-{'y' * (index % 50)}" for index in range(names)]
    first, *others = paths
    first.write_text("many links")
    for index, path in enumerate(others):
        if index % 40 == 0:
            path.write_text(str(index))
        elif index % 41 == 0:
            path.symlink_to(f"../{index}")
        elif index % 43 == 0:
            path.mkdir()
        else:
            os.link(paths[index // 500 * 500], path)
    for path in paths[7::3]:
        if not path.is_dir():
            path.unlink()


def _fragments(folder: Path) -> None:
    """Files of thousands of extents, and with data at the borders of indirect maps."""
    block = os.statvfs(folder).f_bsize
    with (folder / "fragments").open("wb") as file:
        for index in range(1500):
            file.seek(index * 2 * block)
            file.write(b"fragment %d" % index)
    several = [(folder / f"woven{index}").open("wb") for index in range(3)]
    for index in range(60):  # allocated by turns, so their blocks lie between each other's
        for file in several:
            file.write(bytes([index + 1]) * block)
            file.flush()
            os.fdatasync(file.fileno()) if index % 20 == 0 else None
    for file in several:
        file.close()
    with (folder / "far").open("wb") as file:
        per = block // 4
        for position in (11, 12, 11 + per, 12 + per, 12 + per + per * per):
            file.seek(min(position * block, 3 << 30))
            file.write(b"border")
        for position in ((1 << 32) - 3, (1 << 32) + 7 * block, (5 << 30) + 123):
            file.seek(position)
            file.write(b"beyond")
        file.truncate((5 << 30) + 98765)


def _preallocated(folder: Path) -> None:
    with (folder / "preallocated").open("wb") as file:
        file.write(b"written" * 1000)
        file.flush()
        os.posix_fallocate(file.fileno(), 100_000, 1_000_000)
        os.pwrite(file.fileno(), b"island", 500_000)
    with (folder / "unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3 * MIB)
    with (folder / "punched").open("wb") as file:
        file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        run("fallocate", "--punch-hole", "-o", "65536", "-l", "200000", folder / "punched")
    for name, options in (
        ("beyond-size", ("--keep-size", "-o", "40000", "-l", "900000")),
        ("zeroed", ("--zero-range", "-o", "32768", "-l", "65536")),
        ("collapsed", ("--collapse-range", "-o", "65536", "-l", "131072")),
        ("inserted", ("--insert-range", "-o", "65536", "-l", "131072")),
    ):
        (folder / name).write_bytes(os.urandom(300_000))
        with contextlib.suppress(RuntimeError):  # not with block maps
            run("fallocate", *options, folder / name)
    with (folder / "shrunk").open("wb") as file:
        file.write(b"s" * 500_000)
        file.truncate(100_001)
        file.truncate(400_000)


def _attributes(folder: Path) -> None:
    for count, size in ((1, 10), (3, 60), (20, 40), (1, 900), (2, 3000), (1, 5000), (1, 60_000)):
        path = folder / f"attributes-{count}-{size}"
        path.write_text("x")
        for index in range(count):
            with _if_the_format_has_it():
                os.setxattr(path, f"user.name{index}", bytes([index + 65]) * size)
    shared = b"the same for many " * 20
    for index in range(4):  # one block for all of them
        path = folder / f"shared{index}"
        path.mkdir()
        for name in ("user.shared", "trusted.shared", "security.shared"):
            with _if_the_format_has_it():
                os.setxattr(path, name, shared)
    path = folder / ("l" * 200)
    path.symlink_to("target")
    with _if_the_format_has_it():
        os.setxattr(path, "trusted.of-a-symlink", b"yes", follow_symlinks=False)
    longest = folder / "longest-name"
    longest.write_text("")
    with _if_the_format_has_it():
        os.setxattr(longest, "user." + "n" * 250, b"")
    entries = ((1, 7, NOBODY), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))
    many = [(2, index % 8, 1000 + index) for index in range(12)]
    with_acl = folder / "acl"
    with_acl.mkdir()
    with _if_the_format_has_it():
        full = sorted([*entries, *many, (8, 3, 77)])
        os.setxattr(with_acl, "system.posix_acl_default", acl(*full))
        os.setxattr(with_acl, "system.posix_acl_access", acl(*full))
    (with_acl / "inherited").write_text("inherits")
    (with_acl / "below").mkdir()


def _flags(folder: Path) -> None:
    """Inode flags, generations and project ids, on files and directories."""
    for flag in (APPEND, IMMUTABLE, NODUMP, NOATIME, SYNC, DIRSYNC, TOPDIR):
        path = folder / f"flag-{flag:x}"
        path.mkdir() if flag in {DIRSYNC, TOPDIR} else path.write_text("flag")
        fd = os.open(path, os.O_RDONLY)
        with _if_the_format_has_it():
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("<I4x", flag | NODUMP))
        os.close(fd)
    for name in ("project-file", "project-folder"):
        path = folder / name
        path.mkdir() if "folder" in name else path.write_text(name)
        fd = os.open(path, os.O_RDONLY)
        attributes = bytearray(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
        struct.pack_into("<I", attributes, 12, 123456)
        if "folder" in name:
            struct.pack_into("<I", attributes, 0, 0x200)  # FS_XFLAG_PROJINHERIT
        with _if_the_format_has_it():
            fcntl.ioctl(fd, FS_IOC_FSSETXATTR, bytes(attributes))
        os.close(fd)
    (folder / "project-folder" / "inherits").write_text("project")
    path = folder / "generation"
    path.write_text("generation")
    with path.open("rb") as file, _if_the_format_has_it():
        fcntl.ioctl(file, FS_IOC_SETVERSION, struct.pack("<I4x", 0xFEDCBA98))


def _inline(folder: Path) -> None:
    """Small files and directories, some grown out of their inode and some back in size."""
    for size in (1, 59, 60, 61, 90, 130, 150, 200, 900):
        (folder / f"small{size}").write_bytes(os.urandom(size))
        with (folder / f"grown{size}").open("wb") as file:
            file.write(b"g" * size)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0, os.SEEK_END)
            file.write(b"h" * 5000)
        with (folder / f"cut{size}").open("wb") as file:
            file.write(b"c" * size)
            file.truncate(size // 2)
            file.truncate(size)
    for names in (0, 1, 3, 6, 12, 40):
        directory = folder / f"names{names}"
        directory.mkdir()
        for index in range(names):
            (directory / f"n{index}").write_text("n")
        if names > 2:
            (directory / "n1").unlink()


def _deep(folder: Path) -> None:
    """Sixty levels, one name of the greatest length among them."""
    path = folder / "deep"
    for index in range(60):
        path.mkdir()
        path /= f"level{index}" if index != 30 else "L" * 255
    path.write_text("bottom")
