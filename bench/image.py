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

from bench.files import CACHE, numbered, random_file, read_all
from bench.image_plan import Sizes
from bench.plan import Session

__all__ = ["MKE2FS", "Image", "drop", "image"]

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
FORMAT = 2


def _tree(where: Path, sizes: Sizes) -> None:
    noise = random.Random(1)
    numbered(where / "small", sizes.small, 100, noise.randbytes(sizes.small_bytes))
    numbered(where / "many", sizes.many, 1000, b"")
    (where / "medium").mkdir()
    for number in range(sizes.medium):
        random_file(where / "medium" / f"{number:04}", sizes.medium_bytes, noise)
    random_file(where / "big", sizes.big_bytes, noise)


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
    content = sizes.big_bytes + sizes.medium * sizes.medium_bytes
    blocks = sizes.small + sizes.many + content // 4096
    inodes = sizes.small + sizes.many + sizes.medium + 10_000
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


class Image:
    """The image as what is mounted."""

    title = "ext4 image"

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, session: Session) -> None:
        """Before the contenders have a session: its pages are in the cache."""
        if session.state != "dropped":
            read_all(self.path)

    def before(self, session: Session) -> float:
        """Before one contender has it.

        Returns:
            The part of the image that is cached and should not be.
        """
        return drop(self.path) if session.state == "dropped" else 0.0
