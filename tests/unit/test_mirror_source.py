# SPDX-License-Identifier: Apache-2.0
"""Finding inodes again beneath the source, by names and by handles, and nothing outside it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.fs import ROOT, Context, FsError, NodeId
from penstock.servers.mirror.descriptors import Descriptors, Held
from penstock.servers.mirror.nodes import pack, parts
from penstock.servers.mirror.options import MirrorOptions
from penstock.servers.mirror.server import MirrorServer, open_mirror
from penstock.sys.handles import encode_handle, open_handle

WHO = Context(1, os.geteuid(), os.getegid(), os.getpid())  # type: ignore[arg-type]
Make = Callable[..., MirrorServer]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The source; beside it lies what must not be reached."""
    top = tmp_path / "source"
    top.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return top


@pytest.fixture(params=["handles", "names"])
def mirror(top: Path, request: pytest.FixtureRequest) -> Iterator[MirrorServer]:
    """A mirror of ``top`` in both ways of finding inodes."""
    umask = os.umask(0o022)
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    server = open_mirror(root, MirrorOptions(), handles=request.param == "handles")
    if request.param == "handles" and not server.info["handles"]:
        os.close(root)
        pytest.skip(f"no handles here: {server.info['why_no_handles']}")
    operations = server.operations
    assert isinstance(operations, MirrorServer)
    yield operations
    operations.destroy()
    os.close(root)
    os.umask(umask)


def find(mirror: MirrorServer, path: str) -> NodeId:
    """The node at a path."""
    node: int = ROOT
    for name in path.split("/"):
        node = mirror.lookup(WHO, NodeId(node), name.encode())[0]
        assert node, name
    return NodeId(node)


def size(mirror: MirrorServer, node: NodeId) -> int:
    """What getattr says."""
    return mirror.getattr(WHO, node, None)[0].size


def test_a_handle_opens_what_it_was_made_of(top: Path) -> None:
    (top / "file").write_text("four")
    root = os.open(top, os.O_RDONLY)
    try:
        handle = encode_handle(root, b"file")
        fd = open_handle(root, handle, os.O_RDONLY)
    except OSError as error:
        pytest.skip(f"no handles here: {error}")
    else:
        assert os.read(fd, 9) == b"four"
        os.close(fd)
    finally:
        os.close(root)


@pytest.mark.parametrize("handle", [b"", bytes(7), bytes(9), b"\5" + bytes(8)])
def test_bytes_that_are_no_handle_are_not_given_to_the_kernel(top: Path, handle: bytes) -> None:
    with pytest.raises(OSError, match="no file handle"):
        open_handle(-1, handle, 0)


def test_what_is_renamed_in_its_directory(mirror: MirrorServer, top: Path) -> None:
    (top / "file").write_text("four")
    node = find(mirror, "file")
    (top / "file").rename(top / "other")
    if mirror.source.handles:
        assert size(mirror, node) == 4
    else:
        with pytest.raises(FsError, match="not where"):
            size(mirror, node)
    assert find(mirror, "other") == node
    assert size(mirror, node) == 4


def test_a_directory_that_moves_takes_its_nodes_along(mirror: MirrorServer, top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    (top / "a" / "b" / "file").write_text("four")
    node = find(mirror, "a/b/file")
    (top / "a").rename(top / "c" / "a")
    assert size(mirror, node) == 4
    mirror.source.directories.clear()
    if mirror.source.handles:
        assert size(mirror, node) == 4
    assert find(mirror, "c/a/b/file") == node
    mirror.source.directories.clear()
    assert size(mirror, node) == 4


def test_a_name_that_another_inode_has_taken(mirror: MirrorServer, top: Path) -> None:
    (top / "file").write_text("four")
    node = find(mirror, "file")
    (top / "new").write_text("another")
    (top / "new").rename(top / "file")
    with pytest.raises(OSError) as caught:
        size(mirror, node)
    assert caught.value.errno == errno.ESTALE
    assert size(mirror, find(mirror, "file")) == 7


def test_a_node_that_was_never_told(mirror: MirrorServer) -> None:
    for act in (
        lambda: size(mirror, NodeId(99_999_999)),
        lambda: mirror.lookup(WHO, NodeId(99_999_999), b"x"),
        lambda: mirror.open(WHO, NodeId(99_999_999), 0, False),
        lambda: mirror.opendir(WHO, NodeId(99_999_999), 0),
        lambda: mirror.unlink(WHO, NodeId(99_999_999), b"x"),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("name", [b"", b"a/b", b"../outside/secret", b"/etc/passwd", b"a\0b"])
def test_what_is_no_name(mirror: MirrorServer, name: bytes) -> None:
    for act in (
        lambda: mirror.lookup(WHO, ROOT, name),
        lambda: mirror.unlink(WHO, ROOT, name),
        lambda: mirror.rmdir(WHO, ROOT, name),
        lambda: mirror.rename(WHO, ROOT, name, ROOT, b"new", 0),
        lambda: mirror.rename(WHO, ROOT, b"new", ROOT, name, 0),
    ):
        with pytest.raises(FsError) as caught:
            act()
        assert caught.value.errno == errno.EINVAL


def test_dots_make_and_remove_nothing(mirror: MirrorServer) -> None:
    for name in (b".", b".."):
        with pytest.raises(FsError) as caught:
            mirror.rmdir(WHO, ROOT, name)
        assert caught.value.errno == errno.EINVAL


def test_nothing_is_above_the_root(mirror: MirrorServer) -> None:
    assert mirror.lookup(WHO, ROOT, b".")[0] == ROOT
    with pytest.raises(FsError) as caught:
        mirror.lookup(WHO, ROOT, b"..")
    assert caught.value.errno == errno.ESTALE


def test_dots_of_a_directory(mirror: MirrorServer, top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    node, above = find(mirror, "a/b"), find(mirror, "a")
    assert mirror.lookup(WHO, node, b".")[0] == node
    assert mirror.lookup(WHO, node, b"..")[0] == above
    assert mirror.lookup(WHO, above, b"..")[0] == ROOT


def test_the_parent_of_a_directory_that_was_moved_out(mirror: MirrorServer, top: Path) -> None:
    (top / "a").mkdir()
    node = find(mirror, "a")
    mirror.source.directory(node)
    (top / "a").rename(top.parent / "outside" / "a")
    with pytest.raises(OSError) as caught:
        mirror.lookup(WHO, node, b"..")
    assert caught.value.errno == errno.ESTALE


def test_a_symlink_in_the_place_of_a_directory(mirror: MirrorServer, top: Path) -> None:
    (top / "d").mkdir()
    (top / "d" / "secret").write_text("mine")
    node = find(mirror, "d")
    mirror.source.directories.clear()
    (top / "d").rename(top / "moved")
    (top / "d").symlink_to(top.parent / "outside")
    if mirror.source.handles:  # the directory itself, wherever it is
        found = mirror.lookup(WHO, node, b"secret")
        assert found[6].size == 4
    else:
        with pytest.raises(OSError) as caught:
            mirror.lookup(WHO, node, b"secret")
        assert caught.value.errno == errno.ESTALE


def test_a_forgotten_node_can_be_asked_for_again(mirror: MirrorServer, top: Path) -> None:
    """What an NFS client's file handle leads to."""
    (top / "file").write_text("four")
    node = find(mirror, "file")
    generation = mirror.lookup(WHO, ROOT, b"file")[1]
    mirror.forget(node)
    assert mirror.lookup(WHO, node, b".")[:2] == (node, generation)


def test_a_held_descriptor_is_closed_with_its_last_user() -> None:
    held = Held(os.open("/", os.O_PATH))
    fd = held.fd
    kept = Descriptors(1)
    kept.put(1, held)
    kept.put(2, Held(os.open("/", os.O_PATH)))
    assert kept.get(1) is None
    os.fstat(fd)
    del held
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    kept.clear()
    assert len(kept) == 0


def test_few_descriptors_do_for_many_directories(mirror: MirrorServer, top: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1500):
        (top / f"d{number}").mkdir()
        (top / f"d{number}" / "file").touch()
    nodes = [find(mirror, f"d{number}/file") for number in range(1500)]
    assert len(os.listdir("/proc/self/fd")) < before + 600
    assert all(size(mirror, node) == 0 for node in nodes)


def test_depth_is_bounded_by_nothing_but_memory(mirror: MirrorServer, top: Path) -> None:
    path = top
    for _ in range(300):
        path = path / "d"
        path.mkdir()
    node = find(mirror, "/".join("d" * 300))
    mirror.source.directories.clear()
    assert mirror.getattr(WHO, node, None)[0].nlink == 2


def test_a_circle_of_records_is_not_walked_for_ever(mirror: MirrorServer, top: Path) -> None:
    """Two directories that were each below the other, at different times."""
    (top / "a" / "b").mkdir(parents=True)
    a, b = find(mirror, "a"), find(mirror, "a/b")
    os.rename(top / "a" / "b", top / "b")
    os.rename(top / "a", top / "b" / "a")
    find(mirror, "b")
    mirror.lookup(WHO, b, b"a")
    mirror.lookup(WHO, a, b"nothing")
    os.rename(top / "b" / "a", top / "a")
    os.rename(top / "b", top / "a" / "b")
    mirror.lookup(WHO, a, b"b")  # now each is known as the other's parent
    mirror.source.directories.clear()
    with contextlib.suppress(FsError):
        assert mirror.getattr(WHO, b, None)[0].nlink


def test_a_number_that_another_inode_has_got(mirror: MirrorServer, top: Path) -> None:
    """Under the same name even: only the time of birth, or the handle, tells them apart."""
    (top / "file").write_text("four")
    node = find(mirror, "file")
    record = mirror.source.nodes.record(node)
    parent, birth, handle, name = parts(record)
    other = handle[:12] + b"\xfe" * (len(handle) - 12) if len(handle) > 12 else handle
    mirror.source.nodes.put(node, pack(parent, birth ^ 1, other, name))
    for act in (
        lambda: mirror.getattr(WHO, node, None),
        lambda: mirror.open(WHO, node, os.O_RDONLY, False),
        lambda: mirror.getxattr(WHO, node, b"user.name"),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ESTALE
    assert find(mirror, "file") == node
    assert size(mirror, node) == 4
