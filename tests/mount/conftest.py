# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line mount, and where."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.images import MIB, cached_image, make_tree, session_dir


@pytest.fixture(scope="module")
def tree() -> Path:
    top = session_dir() / "cli-tree"
    return top if top.exists() else make_tree(top, files=30)


@pytest.fixture(scope="module")
def image(tree: Path) -> Path:
    return cached_image(size=128 * MIB, tree=tree)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mount point"
    place.mkdir()
    yield place
    while find_mount(str(place)) is not None:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
