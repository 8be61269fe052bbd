# SPDX-License-Identifier: Apache-2.0
"""The ways of mounting: each one on a kernel that has nothing better."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from penstock.fs import Operations
from penstock.serve import MountOptions
from penstock.sys.mountinfo import find_mount
from penstock.testing import MemoryFilesystem
from tests.support.mounts import Inside, serve_in_process


def _without_fsopen() -> Operations:
    """As on a kernel before 5.2."""

    absent = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mock.patch("penstock.sys.mount.fsopen", side_effect=absent).start()
    return MemoryFilesystem()


def _without_sync_init() -> Operations:
    """As on a kernel before 6.18."""
    mock.patch("penstock.broker.attach.sync_init", return_value=False).start()
    return MemoryFilesystem()


def _how(inside: Inside) -> str:
    return inside[1].statistics().how


OPTIONS = MountOptions(source="a source", exec=False, symfollow=False, max_read=65536)


@pytest.mark.parametrize(
    ("factory", "how"),
    [
        (MemoryFilesystem, "fsmount"),
        (_without_sync_init, "fsmount"),
        (_without_fsopen, "mount"),
    ],
)
def test_each_way_gives_the_same_mount(
    factory: Callable[[], Operations], how: str, tmp_path: Path
) -> None:
    with serve_in_process(factory, tmp_path, OPTIONS) as served:
        assert served.call(_how) == how
        entry = find_mount(str(tmp_path))
        assert entry is not None
        assert (entry.fstype, entry.source) == ("fuse.penstock", "a source")
        words = set(entry.options.split(","))
        assert {"rw", "nosuid", "nodev", "noexec", "nosymfollow"} <= words
        assert "max_read=65536" in entry.super_options
        (tmp_path / "file").write_bytes(b"x" * 200_000)
        assert (tmp_path / "file").read_bytes() == b"x" * 200_000
        subprocess.run(["umount", tmp_path], check=True)
    assert find_mount(str(tmp_path)) is None
