# SPDX-License-Identifier: Apache-2.0
"""Clean images, as the reader sees them and as the kernel's own ext4 driver does."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from penstock.formats.ext4.htree import find_indexed
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.mapping import ExtentKind
from penstock.formats.ext4.reader import Ext4Reader
from tests.support.ext4tree import Facts, mounted_tree, reader_tree
from tests.support.images import (
    MIB,
    cached_image,
    debugfs,
    e2fsck,
    kernel_mount,
    make_image,
    make_tree,
    open_source,
    run,
    session_dir,
)

pytestmark = [pytest.mark.requires("mke2fs", "kernel-ext4")]

LAYOUTS = {
    "default": [],
    "1k": ["-b", "1024"],
    "2k": ["-b", "2048"],
    "4k": ["-b", "4096"],
    "ext2": ["-t", "ext2"],
    "ext3-1k": ["-t", "ext3", "-b", "1024"],
    "small-inodes": ["-I", "128", "-O", "^metadata_csum"],
    "large-inodes": ["-I", "1024", "-b", "4096"],
    "no-csum": ["-O", "^metadata_csum"],
    "uninit-bg": ["-O", "^metadata_csum,uninit_bg"],
    "32-bit": ["-O", "^64bit,^metadata_csum"],
    "32-bit-csum": ["-O", "^64bit"],
    "block-maps": ["-O", "^extents,^64bit"],
    "inline": ["-O", "inline_data", "-b", "4096"],
    "inline-1k": ["-O", "inline_data", "-b", "1024", "-I", "512"],
    "csum-seed": ["-O", "metadata_csum_seed,orphan_file"],
    "no-flex": ["-O", "^flex_bg", "-b", "1024"],
    "meta-bg": ["-O", "meta_bg,^resize_inode", "-b", "1024"],
    "meta-bg-32": ["-O", "meta_bg,^resize_inode,^64bit,^metadata_csum", "-b", "1024", "-g", "256"],
    "bigalloc": ["-O", "bigalloc", "-C", "16384", "-b", "4096"],
    "bigalloc-1k": ["-O", "bigalloc", "-C", "8192", "-b", "1024"],
    "ea-inode": ["-O", "ea_inode"],
    "large-dir": ["-O", "large_dir"],
    "mmp-quota-project": ["-O", "mmp,quota,project"],
    "no-journal": ["-O", "^has_journal"],
    "no-filetype": ["-O", "^filetype,^metadata_csum"],
    "sparse-super2": ["-O", "sparse_super2"],
    "tea": ["-b", "1024", "-E", "hash_seed=c0ffee00-1234-4321-8888-deadbeef0001"],
    "few-groups": ["-b", "1024", "-g", "512", "-O", "^resize_inode"],
}


FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F


@pytest.fixture(scope="session")
def tree() -> Path:
    """One of each kind of file."""
    return make_tree(session_dir() / "tree", files=700)


def _compare(image: Path, place: Path) -> None:
    """The reader's view is the kernel's, byte for byte and number for number."""
    with open_source(image) as source:
        reader = Ext4Reader(source)
        seen = reader_tree(reader)
        counts = reader.statfs()
        with kernel_mount(image, place / "mnt", "ro,noload") as mounted:
            _compare_more(reader, mounted, seen)  # first: SEEK_DATA finds cached pages as well
            expected = mounted_tree(mounted)
            st = os.statvfs(mounted)
        assert seen.keys() == expected.keys()
        different = (
            {path: (seen[path], expected[path]) for path in seen} if seen != expected else {}
        )
        assert {path: pair for path, pair in different.items() if pair[0] != pair[1]} == {}
        assert counts == (
            st.f_bsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_namemax,
        )  # fmt: skip


def _compare_more(reader: Ext4Reader, mounted: Path, seen: Mapping[bytes, Facts]) -> None:
    """Where data lies, generations, project ids, birth times."""
    regular = [path for path in seen if stat.S_ISREG(seen[path].mode)]
    for path in regular:
        inode = reader.inode(seen[path].ino)
        with open(os.fsencode(mounted) + path, "rb") as file:
            version = fcntl.ioctl(file, FS_IOC_GETVERSION, bytes(8))
            assert int.from_bytes(version[:4], "little") == inode.generation, path
            attributes = fcntl.ioctl(file, FS_IOC_FSGETXATTR, bytes(28))
            assert int.from_bytes(attributes[12:16], "little") == inode.projid, path
            assert _data_ranges(reader, inode) == _kernel_data_ranges(file.fileno()), path
    births = run("stat", "-c", "%W", *(f"{mounted}{os.fsdecode(path)}" for path in regular[:50]))
    for path, birth in zip(regular, births.split(), strict=False):
        assert int(birth) == (reader.inode(seen[path].ino).crtime or 0), path


def _data_ranges(reader: Ext4Reader, inode: Inode) -> list[tuple[int, int]]:
    """What is not a hole; checks that extents have no gaps."""
    ranges: list[tuple[int, int]] = []
    position = 0
    for extent in reader.extents(inode):
        assert extent.offset == position
        assert extent.length > 0
        position += extent.length
        if extent.kind in {ExtentKind.MAPPED, ExtentKind.INLINE}:
            if ranges and ranges[-1][1] == extent.offset:
                ranges[-1] = (ranges[-1][0], position)
            else:
                ranges.append((extent.offset, position))
    assert position == inode.size
    return ranges


def _kernel_data_ranges(fd: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    position = 0
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return ranges
        position = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, position))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tree_is_the_kernels(layout: str, tree: Path, tmp_path: Path) -> None:
    options = list(LAYOUTS[layout])
    kind = "ext4"
    if "-t" in options:
        kind = options[options.index("-t") + 1]
        options = options[2:]
    _compare(cached_image(options=options, tree=tree, fs_type=kind), tmp_path)


def test_project_ids(tree: Path, tmp_path: Path) -> None:
    # A kernel without quotas does not write such an image, but reads it.
    image = make_image(tmp_path / "img", options=["-O", "project,quota"], tree=tree)
    debugfs(image, "set_inode_field /owned projid 123456", "set_inode_field /many projid 77")
    _compare(image, tmp_path)
    with open_source(image) as source:
        reader = Ext4Reader(source)
        root = reader.inode(2)
        assert reader.inode(reader.lookup(root, b"owned") or 0).projid == 123456


WRITTEN = {
    "4k": ["-b", "4096"],
    "1k": ["-b", "1024"],
    "block-maps-1k": ["-b", "1024", "-O", "^extents,^64bit"],
    "inline": ["-b", "4096", "-O", "inline_data", "-I", "512"],
    "ea-inode": ["-b", "4096", "-O", "ea_inode", "-I", "256"],
    "bigalloc": ["-b", "4096", "-O", "bigalloc", "-C", "65536"],
    "small-inodes": ["-b", "2048", "-I", "128"],
    "no-csum-1k": ["-b", "1024", "-O", "^metadata_csum,large_dir"],
    "orphan-file": ["-b", "4096", "-O", "orphan_file,metadata_csum_seed"],
}


def _write(image: Path, mountpoint: Path, options: str = "") -> None:
    """Have the kernel write what mke2fs cannot."""
    with kernel_mount(image, mountpoint, options) as mounted:
        make_tree(mounted / "tree", files=50)
        many = mounted / "indexed"
        many.mkdir()
        for index in range(6000):
            os.close(os.open(many / f"{index:x}-ümlaut-{'y' * (index % 30)}", os.O_CREAT))
        for index in range(0, 6000, 3):
            (many / f"{index:x}-ümlaut-{'y' * (index % 30)}").unlink()
        _write_fragments(mounted)
        big = mounted / "big-attributes"
        big.write_text("x")
        for index, size in enumerate((100, 700, 3000, 20000)):
            with contextlib.suppress(OSError):  # ENOSPC where there is no ea_inode
                os.setxattr(big, f"user.value{index}", bytes([index + 1]) * size)


def _write_fragments(mounted: Path) -> None:
    """Files of many extents, preallocated space, holes punched."""
    block = os.statvfs(mounted).f_bsize
    with (mounted / "fragments").open("wb") as file:
        for index in range(1500):
            file.seek(index * 2 * block)
            file.write(b"fragment %d" % index)
    with (mounted / "preallocated").open("wb") as file:
        file.write(b"written" * 1000)
        file.flush()
        os.posix_fallocate(file.fileno(), 100_000, 1_000_000)
        os.pwrite(file.fileno(), b"island", 500_000)
    with contextlib.suppress(RuntimeError):  # not with block maps
        run("fallocate", "--keep-size", "--length", "3000000", mounted / "preallocated")
    with (mounted / "punched").open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        run("fallocate", "--punch-hole", "-o", "65536", "-l", "200000", mounted / "punched")
    with (mounted / "far").open("wb") as file:
        for position in (12 * block, (12 + block // 4) * block, 64 * MIB, 150 * MIB):
            file.seek(position)
            file.write(b"far")


@pytest.mark.parametrize("layout", WRITTEN)
def test_tree_that_the_kernel_wrote(layout: str, tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", size=192 * MIB, options=[*WRITTEN[layout], "-N", "16384"])
    _write(image, tmp_path / "mnt")
    _compare(image, tmp_path)


@pytest.mark.parametrize("algorithm", ["legacy", "half_md4", "tea"])
@pytest.mark.parametrize("signed", [True, False])
def test_every_hash_is_found_by_the_index(algorithm: str, signed: bool, tmp_path: Path) -> None:
    image = make_image(tmp_path / "img", options=["-b", "1024", "-N", "8192"])
    run("tune2fs", "-E", f"hash_alg={algorithm}", image)
    debugfs(image, f"set_super_value flags {1 if signed else 2}")
    e2fsck(image)
    with kernel_mount(image, tmp_path / "mnt") as mounted:
        for index in range(3000):
            os.close(os.open(mounted / f"fïle-{index}", os.O_CREAT))
    with open_source(image) as source:
        reader = Ext4Reader(source)
        root = reader.inode(2)
        names = {record.name: record.ino for record in reader.readdir(root)}
        for name, ino in names.items():
            assert find_indexed(reader._volume, root, name) == ino
        assert find_indexed(reader._volume, root, b"no such name") is None
