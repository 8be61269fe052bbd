# SPDX-License-Identifier: Apache-2.0
"""Disk images for tests, made by mkfs.ext4, debugfs and the kernel.

Functions that make an image take the file to make; :func:`cached_image` keeps what was made for the
rest of the session, keyed by its parameters, and must not be written to (copy it first with
:func:`copy_image`). Tests that use these functions say ``@pytest.mark.requires("mke2fs")``, with
``"kernel-ext4"`` where the docstring speaks of the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penstock.formats.source import FileSource

MIB = 1 << 20
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SBIN}", "LC_ALL": "C"}


def run(*command: str | os.PathLike[str], stdin: str | None = None) -> str:
    """Run a command, return its standard output; a failure shows what it printed."""
    done = subprocess.run(
        [os.fspath(word) for word in command],
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=_environment(),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def session_dir() -> Path:
    """A directory for images that lives as long as the test process."""
    path = Path(tempfile.mkdtemp(prefix="penstock-images-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def make_image(
    image: Path,
    *,
    size: int = 64 * MIB,
    options: Sequence[str] = (),
    tree: Path | None = None,
    fs_type: str = "ext4",
) -> Path:
    """Make a filesystem with mke2fs.

    Args:
        image: the file to make.
        size: bytes.
        options: further arguments, e.g. ``["-b", "1024", "-O", "^extents"]``.
        tree: a directory to fill it with (``-d``: types, modes, owners, times, xattrs).
        fs_type: ext2, ext3 or ext4.
    """
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    arguments = ["-q", "-F", "-t", fs_type, *options]
    if tree is not None:
        arguments += ["-d", os.fspath(tree)]
    run("mke2fs", *arguments, image)
    return image


def cached_image(
    build: Callable[[Path], object] | None = None,
    *,
    size: int = 64 * MIB,
    options: Sequence[str] = (),
    tree: Path | None = None,
    fs_type: str = "ext4",
) -> Path:
    """An image that is made once a session; do not write to it.

    Args:
        build: called once with the new image, to change it (a function of a module, so that its
            name tells it apart from others).
        size, options, tree, fs_type: as :func:`make_image`.
    """
    name = f"{build.__module__}.{build.__qualname__}" if build else ""
    key = repr((name, size, tuple(options), tree, fs_type))
    image = session_dir() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.img"
    if not image.exists():
        fresh = image.with_suffix(".new")
        make_image(fresh, size=size, options=options, tree=tree, fs_type=fs_type)
        if build is not None:
            build(fresh)
        fresh.rename(image)
    return image


def copy_image(image: Path, copy: Path) -> Path:
    """A copy to write to; holes stay holes."""
    run("cp", "--sparse=always", image, copy)
    return copy


def debugfs(image: Path, *commands: str) -> str:
    """Run debugfs commands on an image, writing; returns what they print."""
    return run("debugfs", "-w", "-f", "-", image, stdin="\n".join(commands) + "\n")


def e2fsck(image: Path, *options: str) -> None:
    """Repair an image (``-fy``); anything but "clean" or "repaired" is an error."""
    done = subprocess.run(
        ["e2fsck", "-fy", *options, os.fspath(image)],
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    if done.returncode > 1:
        raise RuntimeError(f"e2fsck: exit {done.returncode}\n{done.stdout}{done.stderr}")


def poke(image: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of an image."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(image: Path, offset: int, length: int) -> bytes:
    """Bytes of an image."""
    with image.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@contextlib.contextmanager
def open_source(image: Path) -> Iterator[FileSource]:
    """An image as the block source of a reader."""
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield FileSource(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def kernel_mount(image: Path, mountpoint: Path, options: str = "") -> Iterator[Path]:
    """Mount an image with the kernel's own ext4 driver through a loop device. Needs root.

    Args:
        image: the image; written to unless ``options`` has ``ro``.
        mountpoint: a directory, made if it is not there.
        options: for ``mount -o``.
    """
    mountpoint.mkdir(exist_ok=True)
    words = "loop" + (f",{options}" if options else "")
    run("mount", "-t", "ext4", "-o", words, image, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


def make_tree(root: Path, *, files: int = 40) -> Path:
    """A small tree with one of each: types, sizes around block sizes, sparse files, long and odd
    names, symlinks of every length class, hard links, times before 1970 and after 2038.

    As root also devices, owners, xattrs of all namespaces and ACLs.
    """
    root.mkdir(parents=True, exist_ok=True)
    _fill_files(root, files)
    _fill_links(root)
    os.mkfifo(root / "fifo", 0o640)
    if os.geteuid() == 0:
        _fill_privileged(root)
    for index, seconds in enumerate((-(2**31), -1, 0, 2**31 - 1, 2**31, 2**33, 2**34 - 2**31 - 1)):
        file = root / f"time{index}"
        file.write_bytes(b"t")
        os.utime(file, ns=(seconds * 10**9 + 123456789, seconds * 10**9 + 987654321))
    return root


def _fill_files(root: Path, files: int) -> None:
    sizes = (0, 1, 59, 60, 61, 100, 150, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 300001)
    for size in sizes:
        (root / f"size{size}").write_bytes((b"%07d\n" % size * (size // 8 + 1))[:size])
    with (root / "sparse").open("wb") as file:
        for offset in (0, 65536, 5 * MIB, 40 * MIB + 17):
            file.seek(offset)
            file.write(b"island at %d" % offset)
        file.truncate(48 * MIB)
    many = root / "many"
    many.mkdir()
    for index in range(files):
        (many / f"file-{index:05d}-{'x' * (index % 40)}").write_bytes(b"%d" % index)
    deep = root
    for index in range(12):
        deep /= f"level{index}"
        deep.mkdir(mode=0o751)
    (deep / "bottom").write_text("bottom")
    for name in ("n" * 255, "name with spaces", "ünïcode-ß-日本", "new\nline", "-dash", "a"):
        (root / name).write_text(name)
    os.close(os.open(os.fsencode(root) + b"/\xff\xfe raw bytes", os.O_CREAT | os.O_WRONLY, 0o600))
    (root / "empty-dir").mkdir(mode=0o1777)
    (root / "setuid").write_text("#!")
    (root / "setuid").chmod(0o6755)


def _fill_links(root: Path) -> None:
    for length in (1, 58, 59, 60, 61, 150, 1000):
        (root / f"symlink{length}").symlink_to("s" * length)
    (root / "hard-a").write_text("hard")
    os.link(root / "hard-a", root / "hard-b")


def _fill_privileged(root: Path) -> None:
    for name, mode, device in (
        ("null", 0o20666, os.makedev(1, 3)),
        ("block", 0o60640, os.makedev(7, 200)),
        ("large-device", 0o20600, os.makedev(2000, 70000)),
    ):
        os.mknod(root / name, mode, device)
        (root / name).chmod(mode & 0o777)
    owned = root / "owned"
    owned.write_text("owned")
    os.chown(owned, 100000, 200000)
    attributes = root / "attributes"
    attributes.write_text("attributes")
    os.setxattr(attributes, "user.small", b"value")
    os.setxattr(attributes, "user.empty", b"")
    os.setxattr(attributes, "user.medium", bytes(range(256)) * 2)
    os.setxattr(attributes, "trusted.root", b"only")
    os.setxattr(attributes, "security.test", b"label\0")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in (
            (1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 4, 0xFFFFFFFF), (8, 5, 2000),
            (16, 7, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF),
        )
    )  # fmt: skip
    with contextlib.suppress(OSError):  # the host's filesystem may have no ACLs
        os.setxattr(attributes, "system.posix_acl_access", acl)
        os.setxattr(root / "empty-dir", "system.posix_acl_default", acl)
