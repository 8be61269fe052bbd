# SPDX-License-Identifier: Apache-2.0
"""The measured directory: made anew for each run, on an ext4 in memory where that is possible.

As root, and with memory to spare, it lies on an ext4 in a file of /dev/shm behind a loop device: a
filesystem with names, attributes and a journal like any other, but with no disk whose speed and
noise would be in the figures. Otherwise it is a folder of .cache/bench.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.files import CACHE, numbered, random_file, read_all
from bench.mirror_plan import OVER, WORK, Sizes, archive
from bench.plan import Session

__all__ = ["Source", "source"]

SHM = Path("/dev/shm")
TREES = ("/usr/lib/python3*", "/usr/share/doc", "/usr/include", "/usr/share/perl")
LARGEST = 1 << 20
QUIET = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{
        f"GIT_{who}_{what}": f"bench{'@localhost' if what == 'EMAIL' else ''}"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


class Source:
    """The directory as what is mounted."""

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = title

    def prepare(self, session: Session) -> None:
        """Before the contenders have a session: what it reads or overwrites is in the cache."""
        for name in ("big", OVER):
            if any(name in step.arguments for step in session.steps):
                read_all(self.path / name)

    def before(self, session: Session) -> float:
        """Before one contender has it: what the one before has written is gone or on the disk."""
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        (self.path / WORK).mkdir()
        if any(OVER in step.arguments for step in session.steps):
            self.sync()
        return 0.0

    def sync(self) -> None:
        """Otherwise the kernel writes back what others wrote while the next one is measured."""
        subprocess.run(["sync", "-f", self.path], check=True)


def _real_files(count: int) -> Iterator[Path]:
    """Files that this system has anyway, sources and texts, ``count`` at most."""
    for pattern in TREES:
        for root in sorted(Path("/").glob(pattern[1:])):
            for folder, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(names):
                    path = Path(folder) / name
                    if path.is_symlink() or not path.is_file() or path.suffix == ".pyc":
                        continue
                    if path.stat().st_size > LARGEST:
                        continue
                    yield path
                    count -= 1
                    if count == 0:
                        return


def _archive(sizes: Sizes) -> Path:
    """The tar file of a real tree, made when it is not there."""
    path = archive(sizes)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    folders: set[Path] = set()
    with tarfile.open(unfinished, "w") as content:
        for file in _real_files(sizes.tree):
            for folder in reversed(file.parents[:-1]):
                if folder not in folders:
                    folders.add(folder)
                    content.add(folder.resolve(), str(folder)[1:], recursive=False)
            content.add(file, str(file)[1:], recursive=False)
    unfinished.replace(path)
    return path


def _fill(where: Path, sizes: Sizes) -> None:
    noise = random.Random(1)
    numbered(where / "small", sizes.small, 100, noise.randbytes(sizes.small_bytes))
    numbered(where / "many", sizes.many, 1000, b"")
    numbered(where / "million", sizes.million, 1000, b"")
    random_file(where / "big", sizes.big_bytes, noise)
    random_file(where / OVER, sizes.big_bytes, noise)
    (where / "repo").mkdir()
    subprocess.run(["tar", "-xf", _archive(sizes), "-C", where / "repo"], check=True)
    if shutil.which("git"):
        environment = {**os.environ, **QUIET}
        for words in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "all"]):
            subprocess.run(["git", *words], cwd=where / "repo", env=environment, check=True)


def _bytes(sizes: Sizes) -> int:
    """Room that the directory needs, with what is written in it."""
    inodes = sizes.small + sizes.many + sizes.million
    return (
        2 * sizes.big_bytes + sizes.mapped_bytes + sizes.small * 4096 + inodes * 512 + (512 << 20)
    )


def _spare() -> int:
    """Bytes of memory that are free or soon could be."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(text.partition("MemAvailable:")[2].split()[0]) << 10


@contextlib.contextmanager
def _in_memory(sizes: Sizes) -> Iterator[Path]:
    """An empty ext4 in memory, mounted; gone afterwards."""
    inodes = sizes.small + sizes.many + sizes.million + 20_000
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    with (
        tempfile.NamedTemporaryFile(dir=SHM, prefix="penstock-bench-") as file,
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as place,
    ):
        os.truncate(file.name, _bytes(sizes))
        options = ["-q", "-F", "-b", "4096", "-I", "256", "-N", str(inodes)]
        options += ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
        subprocess.run(["mke2fs", "-t", "ext4", *options, file.name], env=environment, check=True)
        subprocess.run(["mount", "-o", "loop", file.name, place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def source(sizes: Sizes, given: Path | None = None) -> Iterator[Source]:
    """The directory, filled; removed afterwards.

    Args:
        given: a folder on the filesystem to measure instead of the one in memory.

    Raises:
        OSError: no room. subprocess.CalledProcessError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        if given is None and os.geteuid() == 0 and _spare() > 3 * _bytes(sizes):
            above = stack.enter_context(_in_memory(sizes))
            title = "ext4 in memory"
        else:
            folder = CACHE if given is None else given
            title = f"a folder of {folder}"
            folder.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix="mirror-", dir=folder)
            above = Path(stack.enter_context(made))
        path = above / "source"
        path.mkdir()
        _fill(path, sizes)
        made_source = Source(path, title)
        made_source.sync()
        yield made_source
