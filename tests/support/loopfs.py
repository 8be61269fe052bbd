# SPDX-License-Identifier: Apache-2.0
"""Fresh filesystems of the kernel's own, mounted over loop devices. Needs root.

Tests that use them say ``@pytest.mark.requires(*NEEDS[name])``, or take their parameters from
:data:`PARAMETERS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.images import MIB, run

__all__ = ["NEEDS", "PARAMETERS", "loop_filesystem"]

_MAKE: Final[dict[str, tuple[str, ...]]] = {
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
# Without it XFS reserves space beyond the end of a file that is written to. Where fallocate makes
# the file grow into that, a direct read of it is EIO ("Direct I/O collision"), seen on Linux 6.18.
_OPTIONS: Final = {"xfs": ",allocsize=4k"}
NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "ext4": ("mke2fs", "kernel-ext4"),
    "xfs": ("mkfs-xfs", "kernel-xfs"),
    "btrfs": ("mkfs-btrfs", "kernel-btrfs"),
}
"""What each needs, by the names of tests/requirements.toml."""
PARAMETERS: Final[list[Any]] = [
    pytest.param(name, marks=pytest.mark.requires(*NEEDS[name]))
    for name in ("ext4", "xfs", "btrfs")
]
"""The three of them, for parametrize."""
_SIZE: Final = 512 * MIB


@contextlib.contextmanager
def loop_filesystem(name: str, place: Path, *, size: int = _SIZE) -> Iterator[Path]:
    """A new filesystem; its root directory, which everybody may enter.

    Args:
        name: of :data:`NEEDS`.
        place: a directory for the image and the mount point.
        size: bytes, which take space only as they are used.
    """
    image, top = place / f"{name}.img", place / f"{name}.mnt"
    with image.open("wb") as file:
        file.truncate(size)
    top.mkdir()
    try:
        run(*_MAKE[name], image)
        run("mount", "-o", f"loop{_OPTIONS.get(name, '')}", image, top)
        try:
            top.chmod(0o755)
            yield top
        finally:
            run("umount", top)
    finally:
        top.rmdir()
        image.unlink()
