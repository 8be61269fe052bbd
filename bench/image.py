# SPDX-License-Identifier: Apache-2.0
"""The measured image: made once with mke2fs from a generated tree, kept in .cache/bench."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.plan import Sizes

__all__ = ["MKE2FS", "drop", "fill", "image"]

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"
# What mke2fs makes by itself depends on its version and mke2fs.conf; these make it the same
# everywhere.
MKE2FS = (
    "-t",
    "ext4",
    "-b",
    "4096",
    "-I",
    "256",
    "-O",
    "64bit,metadata_csum,extent,flex_bg,dir_index",
)
FORMAT = 1


def _numbered(folder: Path, count: int, per_folder: int, content: bytes) -> None:
    for start in range(0, count, per_folder):
        below = folder / f"{start // per_folder:04}"
        below.mkdir(parents=True)
        for number in range(start, min(start + per_folder, count)):
            fd = os.open(below / f"file-{number:06}.dat", os.O_WRONLY | os.O_CREAT, 0o644)
            if content:
                os.write(fd, b"%08d" % number + content[8:])
            os.close(fd)


def _tree(where: Path, sizes: Sizes) -> None:
    noise = random.Random(1)
    _numbered(where / "small", sizes.small, 100, noise.randbytes(sizes.small_bytes))
    _numbered(where / "many", sizes.many, 1000, b"")
    with (where / "big").open("wb") as file:
        for _ in range(sizes.big_bytes >> 20):
            file.write(noise.randbytes(1 << 20))


def image(sizes: Sizes) -> Path:
    """Path of the image for ``sizes``, made when it is not there.

    Raises:
        subprocess.CalledProcessError: mke2fs failed. OSError: no room.
    """
    words = f"{FORMAT} {sizes} {MKE2FS}"
    path = CACHE / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.ext4"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    blocks = sizes.small + sizes.many + sizes.big_bytes // 4096
    inodes = sizes.small + sizes.many + 10_000
    size = (blocks * 4096 + inodes * 256) * 12 // 10 + (256 << 20)
    with tempfile.TemporaryDirectory(prefix="tree-", dir=CACHE) as tree:
        _tree(Path(tree), sizes)
        unfinished = path.with_suffix(".new")
        command = ["mke2fs", "-q", "-F", *MKE2FS, "-N", str(inodes), "-d", tree]
        environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
        command[0] = shutil.which("mke2fs", path=environment["PATH"]) or "mke2fs"
        unfinished.touch()  # mke2fs then has nothing to say
        subprocess.run([*command, str(unfinished), f"{size >> 10}k"], check=True)
        unfinished.replace(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def fill(path: Path) -> None:
    """Read the whole image, so that it is in the page cache."""
    buffers = [bytearray(1 << 20)]
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, buffers):
        pass
    os.close(fd)


def drop(path: Path) -> float:
    """Take the image out of the page cache (nobody may have it mounted).

    Returns:
        The part of it (0 to 1) that is still there afterwards.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return _cached(fd)
    finally:
        os.close(fd)


def _cached(fd: int) -> float:
    """The part of a file that is in the page cache, by mincore(2)."""
    size = os.fstat(fd).st_size
    # A private mapping opened for writing lends its address; nothing is ever written to it.
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        first = ctypes.c_char.from_buffer(mapping)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            address = ctypes.c_void_p(ctypes.addressof(first))
            if libc.mincore(address, ctypes.c_size_t(size), pages) != 0:
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            del first
    return sum(page & 1 for page in pages) / len(pages)
