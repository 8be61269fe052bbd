# SPDX-License-Identifier: Apache-2.0
"""Opening what lies below a directory: by openat2, and where there is none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys import beneath
from penstock.sys.beneath import open_beneath

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@pytest.fixture(params=["openat2", "no openat2", "forbidden"])
def root(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[int]:
    codes = {"no openat2": errno.ENOSYS, "forbidden": errno.EPERM}
    if request.param in codes:

        def absent(*_: object) -> int:
            raise OSError(codes[request.param], "openat2")

        monkeypatch.setattr(beneath, "syscall", absent)
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("content")
    (top / "link").symlink_to("a")
    (top / "a" / "out").symlink_to(tmp_path)
    (top / "a" / "name").symlink_to("b/file")
    (tmp_path / "secret").write_text("secret")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def code_of(root: int, *names: bytes, flags: int = os.O_RDONLY) -> int | None:
    with pytest.raises(OSError) as caught:
        open_beneath(root, names, flags)
    return caught.value.errno


def test_what_is_there(root: int) -> None:
    fd = open_beneath(root, (b"a", b"b", b"file"), os.O_RDONLY)
    assert os.read(fd, 100) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    top = open_beneath(root, (), os.O_RDONLY | os.O_DIRECTORY)
    assert os.path.sameopenfile(top, root)
    os.close(top)


def test_what_is_made(root: int) -> None:
    fd = open_beneath(root, (b"a", b"new"), CREATE, 0o600)
    os.write(fd, b"x")
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)
    assert code_of(root, b"a", b"new", flags=CREATE) == errno.EEXIST
    assert code_of(root, b"a", b"name", flags=CREATE) in {errno.EEXIST, errno.ELOOP}


def test_no_link_is_followed(root: int) -> None:
    for names in ((b"link", b"b"), (b"a", b"out", b"secret"), (b"link",), (b"a", b"name")):
        assert code_of(root, *names) in {errno.ELOOP, errno.ENOTDIR}
    assert code_of(root, b"nothing") == errno.ENOENT


def test_a_path_longer_than_a_call_takes(root: int) -> None:
    names = [b"d" * 250] * 20
    fd = os.dup(root)
    for name in names:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    os.close(open_beneath(root, [*names, b"deep"], CREATE, 0o600))
    os.close(open_beneath(root, names, os.O_RDONLY | os.O_DIRECTORY))
    assert code_of(root, *names, b"deep", flags=CREATE) == errno.EEXIST
