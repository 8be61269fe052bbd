# SPDX-License-Identifier: Apache-2.0
"""The tree of the read-only half: made on a filesystem that can be written to, and then seen by
whatever serves it read-only.

The tree needs no list of what is in it: its content follows from the constants here, and both sides
use them. What the filesystem that it was made on could not hold is named in a file of the tree.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from penstock.testing.posix.calls import opened
from penstock.testing.posix.needs import NEEDS
from penstock.testing.posix.probe import probe

__all__ = [
    "ACL",
    "ATTRIBUTES",
    "BLOCK",
    "DEFAULT_ACL",
    "DEPTH",
    "MANY",
    "MODES",
    "NAMES",
    "SIZES",
    "SYMLINKS",
    "TIMES",
    "absent_of",
    "content",
    "many_name",
    "prepare",
]

_ABSENT: Final = ".absent"
_OF_THE_MOUNT: Final = {"others", "suid", "exec", "direct", "locks", "handles"}
"""Needs that are not the tree's but those of the mount that shows it."""

BLOCK: Final = 1 << 16
MANY: Final = 2000
DEPTH: Final = 40
SIZES: Final = (0, 1, 59, 60, 61, 155, 511, 4095, 4096, 4097, 65536, 65537, 3_000_123)
"""``size-N`` has N bytes."""
NAMES: Final = (
    b"\xff\xfe",
    b" ",
    b"a\nb",
    b"\\",
    b"...",
    b"-",
    b"A",
    b"a",
    b"\xc3\xa9",
    b"e\xcc\x81",
    b"n" * 255,
)
"""In ``names``."""
MODES: Final = (0o000, 0o444, 0o600, 0o751, 0o777, 0o1777, 0o2755, 0o4711, 0o6755)
"""``mode-OOOO`` has each."""
SYMLINKS: Final = (1, 58, 59, 60, 61, 150, 1000)
"""``symlink-N`` leads to N letters."""
TIMES: Final = (
    0,
    123_456_789,
    -1,
    -1_500_000_000_000_000_001,
    1_234_567_890_987_654_321,
    4_102_444_800_000_000_001,
    7_258_118_400_999_999_999,
)
"""``time-N``: the mtime of the Nth; its atime is a second later."""
ATTRIBUTES: Final = {
    "user.small": b"value",
    "user.empty": b"",
    "user.medium": bytes(range(256)),
    **{f"user.number-{number}": b"%d" % number for number in range(12)},
}
"""Of ``attributes`` and of ``directory``."""
ACL: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, 0xFFFF_FFFF),
        (2, 7, 1000),
        (4, 4, 0xFFFF_FFFF),
        (8, 5, 2000),
        (16, 7, 0xFFFF_FFFF),
        (32, 4, 0xFFFF_FFFF),
    )
)
"""The access ACL of ``acl``."""
DEFAULT_ACL: Final = ACL.replace(b"\x10\0\7\0", b"\x10\0\5\0")
"""The default ACL of ``acl-directory``."""


def content(name: str, size: int) -> bytes:
    """The bytes of a file: of each name others, and no two blocks of them equal."""
    return hashlib.shake_128(name.encode()).digest(size)


def many_name(number: int) -> str:
    """A name of the directory ``many``."""
    return f"name-{number:05}-{'x' * (number % 60)}"


def prepare(directory: Path) -> dict[str, str]:
    """Make the tree.

    Args:
        directory: empty, on a writable filesystem; made if it is not there.

    Returns:
        The needs that the filesystem does not meet, and why: what they stand for is not in the
        tree.

    Raises:
        FileExistsError: the directory is not empty.
    """
    directory.mkdir(exist_ok=True)
    if set(os.listdir(directory)) - {"lost+found"}:
        raise FileExistsError(17, "the tree is made in an empty directory", str(directory))
    absent = {n: why for n, why in probe(directory).items() if n not in _OF_THE_MOUNT}
    _files(directory)
    _directories(directory)
    _links(directory)
    _special(directory, absent)
    for need, make in _OPTIONAL:
        if need not in absent:
            make(directory)
    _times(directory)
    lines = "".join(f"{need}\t{why}\n" for need, why in absent.items())
    (directory / _ABSENT).write_text(lines, encoding="utf-8")
    return absent


def absent_of(directory: Path) -> dict[str, str]:
    """Needs that the tree or its mount does not meet, and why.

    Raises:
        OSError: it is no tree that :func:`prepare` has made.
    """
    lines = (directory / _ABSENT).read_text(encoding="utf-8").splitlines()
    absent = dict(line.split("\t", 1) for line in lines)
    flags = os.statvfs(directory).f_flag
    if flags & os.ST_NOEXEC:
        absent["exec"] = "mounted noexec"
    if flags & os.ST_NOSUID:
        absent["suid"] = "mounted nosuid"
    if os.geteuid() != 0:
        absent["root"] = absent["others"] = "not root"
    return {need: why for need, why in absent.items() if need in NEEDS}


def _files(root: Path) -> None:
    for size in SIZES:
        (root / f"size-{size}").write_bytes(content(f"size-{size}", size))
    for mode in MODES:
        (root / f"mode-{mode:04o}").write_bytes(b"mode")
        (root / f"mode-{mode:04o}").chmod(mode)
    (root / "script").write_text("#!/bin/sh\necho it runs\n", encoding="ascii")
    (root / "script").chmod(0o755)
    (root / "locked").write_bytes(b"to be locked")
    (root / "names").mkdir()
    for name in NAMES:
        (root / "names" / os.fsdecode(name)).write_bytes(name)


def _directories(root: Path) -> None:
    (root / "directory").mkdir()
    for name in ("one", "two", "three"):
        (root / "directory" / name).mkdir()
    (root / "directory" / "file").write_bytes(b"below")
    (root / "empty").mkdir()
    (root / "many").mkdir()
    for number in range(MANY):
        (root / "many" / many_name(number)).write_bytes(b"%d" % number)
    deep = root
    for _ in range(DEPTH):
        deep /= "d"
        deep.mkdir()
    (deep / "bottom").write_bytes(b"deep")
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "setgid").mkdir()
    (root / "setgid").chmod(0o2755)


def _links(root: Path) -> None:
    for length in SYMLINKS:
        (root / f"symlink-{length}").symlink_to("s" * length)
    for name, target in (
        ("to-file", "directory/file"),
        ("to-directory", "directory"),
        ("to-link", "to-directory/../to-file"),
        ("dangling", "nowhere"),
        ("circle", "circle"),
    ):
        (root / name).symlink_to(target)
    (root / "hard-a").write_bytes(b"hard")
    os.link(root / "hard-a", root / "hard-b")
    os.link(root / "hard-a", root / "directory" / "hard-c")


def _special(root: Path, absent: dict[str, str]) -> None:
    os.mkfifo(root / "fifo", 0o640)
    with opened(root, os.O_PATH) as fd, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{fd}/socket")
    if "root" not in absent and "devices" not in absent:
        os.mknod(root / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))


def _owned(root: Path) -> None:
    (root / "owned").write_bytes(b"owned")
    os.chown(root / "owned", 100_000, 200_000)
    (root / "to-owned").symlink_to("owned")
    os.chown(root / "to-owned", 1, 2, follow_symlinks=False)


def _attributes(root: Path) -> None:
    (root / "attributes").write_bytes(b"attributes")
    for path in (root / "attributes", root / "directory"):
        for name, value in ATTRIBUTES.items():
            os.setxattr(path, name, value)


def _trusted(root: Path) -> None:
    os.setxattr(root / "to-file", "trusted.name", b"link", follow_symlinks=False)
    os.setxattr(root / "size-1", "trusted.name", b"file")


def _security(root: Path) -> None:
    os.setxattr(root / "size-1", "security.penstock", b"label\0")


def _acl(root: Path) -> None:
    (root / "acl").write_bytes(b"acl")
    os.setxattr(root / "acl", "system.posix_acl_access", ACL)
    (root / "acl-directory").mkdir()
    os.setxattr(root / "acl-directory", "system.posix_acl_default", DEFAULT_ACL)


def _holes(root: Path) -> None:
    with opened(root / "sparse", os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, 8 * BLOCK)
        for block in (2, 5):
            os.pwrite(fd, content(f"sparse-{block}", BLOCK), block * BLOCK)
    with opened(root / "all-hole", os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, (1 << 30) + 5)
    with opened(root / "hole-at-end", os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, content("hole-at-end", BLOCK), 0)
        os.ftruncate(fd, 4 * BLOCK + 7)


def _times(root: Path) -> None:
    """Last: other things done in a directory would change its times."""
    for index, mtime in enumerate(TIMES):
        (root / f"time-{index}").write_bytes(b"time")
        os.utime(root / f"time-{index}", ns=(mtime + 10**9, mtime))
    (root / "time-link").symlink_to("nowhere")
    os.utime(root / "time-link", ns=(TIMES[4] + 10**9, TIMES[4]), follow_symlinks=False)
    os.utime(root / "empty", ns=(TIMES[4] + 10**9, TIMES[4]))


_OPTIONAL: Final[tuple[tuple[str, Callable[[Path], None]], ...]] = (
    ("root", _owned),
    ("xattr", _attributes),
    ("trusted", _trusted),
    ("security", _security),
    ("acl", _acl),
    ("holes", _holes),
)
