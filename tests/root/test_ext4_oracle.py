# SPDX-License-Identifier: Apache-2.0
"""Whole trees through ``penstock mount``, compared with the kernel's own ext4 mount of them.

An image holds what mkfs.ext4 made of a real tree, and what the kernel driver made in it afterwards.
Where this kernel cannot mount an image (blocks larger than a page, case-insensitive names) the tree
that mkfs read is the oracle.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.images import (
    MIB,
    debugfs,
    kernel_mount,
    make_image,
    make_tree,
    run,
    session_dir,
)
from tests.support.kernelwork import write_all_sorts
from tests.support.oracle import Node, acls, assert_same, capture, counts
from tests.support.servings import serving

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4", "acl")


class Layout(NamedTuple):
    """How to make an image."""

    options: str = ""
    """For mke2fs; blocks have 4 KiB if nothing else is said."""
    kind: str = "ext4"
    tune: str = ""
    """For tune2fs, while it is empty but for what mke2fs copied."""
    unsigned: bool = False
    """Whether hashes take characters as unsigned."""
    written: bool = True
    """Whether this kernel can write to it, and so works in it."""
    debugfs: tuple[str, ...] = ()
    """Commands once all is written."""


LAYOUTS = {
    "default": Layout(),
    "1k": Layout("-b 1024"),
    "2k-tea": Layout("-b 2048", tune="-E hash_alg=tea"),
    "ext2-1k": Layout("-b 1024", "ext2"),
    "ext2-4k-tea-unsigned": Layout("-b 4096", "ext2", "-E hash_alg=tea", unsigned=True),
    "ext3-1k-legacy": Layout("-b 1024", "ext3", "-E hash_alg=legacy"),
    "ext3-2k": Layout("-b 2048", "ext3"),
    "ext3-4k-unsigned": Layout("-b 4096", "ext3", unsigned=True),
    "no-csum-legacy-unsigned": Layout(
        "-O ^metadata_csum -b 1024", tune="-E hash_alg=legacy", unsigned=True
    ),
    "uninit-bg": Layout("-O ^metadata_csum,uninit_bg -b 2048"),
    "32-bit": Layout("-O ^64bit"),
    "32-bit-no-csum-inode-128": Layout("-O ^64bit,^metadata_csum -I 128 -b 1024"),
    "inode-512": Layout("-I 512 -b 1024"),
    "inode-1024": Layout("-I 1024"),
    "block-maps": Layout("-O ^extents,^64bit -b 4096"),
    "bigalloc": Layout("-O bigalloc -C 65536 -b 4096"),
    "bigalloc-1k": Layout("-O bigalloc -C 8192 -b 1024"),
    "meta-bg": Layout("-O meta_bg,^resize_inode -b 1024"),
    "meta-bg-32-small-groups": Layout("-O meta_bg,^resize_inode,^64bit -b 1024 -g 1024"),
    "no-flex-bg": Layout("-O ^flex_bg -b 1024"),
    "inline": Layout("-O inline_data -b 4096"),
    "inline-1k-inode-512": Layout("-O inline_data -b 1024 -I 512"),
    "inline-2k-inode-1024-ea": Layout("-O inline_data,ea_inode -b 2048 -I 1024"),
    "ea-inode": Layout("-O ea_inode -I 256"),
    "ea-inode-1k": Layout("-O ea_inode -b 1024"),
    "orphan-file": Layout("-O orphan_file"),
    "seed-and-another-uuid": Layout("-O metadata_csum_seed -b 1024", tune="-U random"),
    "large-dir": Layout("-O large_dir -b 1024"),
    "quota-project": Layout(
        "-O quota,project", written=False, debugfs=("set_inode_field /tree projid 4294967295",)
    ),
    "project": Layout(
        "-O project -b 1024",
        written=False,
        debugfs=("set_inode_field /tree/size61 projid 4242", "set_inode_field /tree projid 77"),
    ),
    "mmp": Layout("-O mmp"),
    "encrypt-unused": Layout("-O encrypt"),
    "verity-unused": Layout("-O verity", written=False),
    "no-journal-no-filetype": Layout("-O ^has_journal,^filetype"),
    "sparse-super2": Layout("-O sparse_super2,^resize_inode -b 1024"),
    "stable-inodes": Layout("-O stable_inodes"),
    "odd-groups": Layout("-b 1024 -g 512 -O ^resize_inode -m 13 -N 4999"),
    "many-links": Layout(
        "-b 2048",
        debugfs=(
            "set_inode_field /tree/many links_count 1",
            "set_inode_field /tree/a links_count 65000",
        ),
    ),
}
UNMOUNTABLE = {
    "64k": Layout("-b 65536"),
    "16k-no-csum": Layout("-b 16384 -O ^metadata_csum"),
    "casefold-unused": Layout("-O casefold"),
    "casefold-encrypt-1k": Layout("-O casefold,encrypt -b 1024"),
}
_KEPT_BY_MKFS = {"mode", "uid", "gid", "size", "mtime", "rdev", "xattrs", "target", "digest"}
LOST_BY_MKFS = frozenset(Node._fields) - _KEPT_BY_MKFS - {"names"}


@pytest.fixture(scope="session")
def tree() -> Path:
    """One of each kind of file, in a folder of their own."""
    top = session_dir() / "oracle-tree"
    make_tree(top / "tree", files=150)
    os.mknod(top / "tree" / "socket", stat.S_IFSOCK | 0o755)
    return top


def build(layout: Layout, tree: Path, image: Path) -> Path:
    """Make the image of a layout, all work done in it."""
    options = ["-b", "4096", "-N", "8192", *layout.options.split()]
    make_image(image, size=192 * MIB, options=options, fs_type=layout.kind, tree=tree)
    if layout.tune:
        run("tune2fs", *layout.tune.split(), image)
    if layout.unsigned:
        debugfs(image, "set_super_value flags 2")
    if layout.written:
        write_all_sorts(image, image.with_suffix(".work"))
    if layout.debugfs:
        debugfs(image, *layout.debugfs)
    return image


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tree_is_that_of_the_kernel(layout: str, tree: Path, tmp_path: Path) -> None:
    image = build(LAYOUTS[layout], tree, tmp_path / "img")
    with kernel_mount(image, tmp_path / "kernel", "ro,noload") as top:
        expected = capture(top)
        expected_acls = acls(top)
        expected_counts = counts(top)
    with serving(image, tmp_path / "penstock") as served:
        seen = capture(served.path)
        assert_same(expected, seen)
        assert acls(served.path) == expected_acls
        assert counts(served.path) == expected_counts


def _as_mkfs_keeps_it(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """A capture without what mkfs does not copy: its own folder, sizes of directories."""
    tree.pop(b"/lost+found", None)
    tree[b"/"] = tree[b"/"]._replace(mtime=0)
    for path, node in tree.items():
        names = tuple(name for name in node.names if name != b"lost+found")
        size = 0 if stat.S_ISDIR(node.mode) else node.size
        tree[path] = node._replace(names=names, size=size, mtime=node.mtime // 10**9 % 2**32)
    return tree


@pytest.mark.parametrize("layout", UNMOUNTABLE)
def test_tree_is_what_mkfs_read(layout: str, tree: Path, tmp_path: Path) -> None:
    image = build(UNMOUNTABLE[layout]._replace(written=False), tree, tmp_path / "img")
    with serving(image, tmp_path / "penstock") as served:
        seen = _as_mkfs_keeps_it(capture(served.path))
        assert_same(_as_mkfs_keeps_it(capture(tree)), seen, LOST_BY_MKFS)
