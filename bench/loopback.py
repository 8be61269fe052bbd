# SPDX-License-Identifier: Apache-2.0
"""A directory served through mfusepy, the contender of that name. Run by the peers' interpreter.

The package on PyPI brings no example, so this is one: paths joined to the root, one call of ``os``
each, nothing cached, in the way that package is meant to be used.
"""

import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import mfusepy  # type: ignore[import-not-found]  # only .cache/peers/venv has it

FACTS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize")
TIMES = ("st_atime", "st_mtime", "st_ctime")


class Loopback(mfusepy.Operations):  # type: ignore[misc]
    """Everything that the benchmark's client does."""

    use_ns = True

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def _at(self, path: str) -> str:
        return self.root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        facts = {name: getattr(status, name) for name in FACTS}
        for name in TIMES:
            facts[name] = getattr(status, f"{name}_ns")
        return facts

    def readdir(self, path: str, _fh: int) -> Iterator[str]:
        yield from (".", "..", *os.listdir(self._at(path)))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._at(path))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")
        return {name: getattr(status, name) for name in (*names, "f_namemax")}

    def access(self, path: str, amode: int) -> int:
        if not os.access(self._at(path), amode):
            raise mfusepy.FuseOSError(errno.EACCES)
        return 0

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, _fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, _path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path) if fh is None else fh, length)
        return 0

    def fsync(self, _path: str, datasync: int, fh: int) -> int:
        os.fdatasync(fh) if datasync else os.fsync(fh)
        return 0

    def flush(self, _path: str, _fh: int) -> int:
        return 0

    def release(self, _path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._at(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._at(old), self._at(new))
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._at(target))
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._at(source), self._at(target))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._at(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._at(path), ns=times or (now := time.time_ns(), now), follow_symlinks=False)
        return 0


if __name__ == "__main__":
    mfusepy.FUSE(Loopback(sys.argv[1]), sys.argv[2], foreground=True, fsname="loopback")
