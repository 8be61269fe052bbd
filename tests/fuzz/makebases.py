# SPDX-License-Identifier: Apache-2.0
"""How the sound images in ``tests/corpus`` were made: ``python -m tests.fuzz.makebases`` as root.

They are kept, packed to a few KiB each, because the cases beside them are offsets into exactly
these bytes; mke2fs and the kernel would lay out other ones with every version.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.bases import CORPUS
from tests.support.images import debugfs, kernel_mount, run

_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 4, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF),
        (32, 4, 0xFFFFFFFF),
    )
)  # fmt: skip


def _files(top: Path, *, big_value: int) -> None:
    """One of everything that has a structure of its own."""
    block = b"0123456789abcde\n"
    (top / "small").write_bytes(block * 40)
    with (top / "islands").open("wb") as file:  # holes between blocks: a tree of extents
        for index in range(20):
            file.seek(index * 3 * 4096)
            file.write(block * 256)
    with (top / "unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 40000)
        file.write(b"head")
    with (top / "far").open("wb") as file:
        for offset in (0, 20 * 1024, 600 * 1024, 70 << 20):
            file.seek(offset)
            file.write(b"at %d" % offset)
    (top / "fast").symlink_to("small")
    (top / "slow").symlink_to("x/" * 100)
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", 0o20666, os.makedev(1, 3))
    (top / "sub").mkdir()
    (top / "sub" / "deeper").mkdir()
    (top / "sub" / "deeper" / "file").write_text("down here")
    (top / "empty").mkdir()
    (top / "victim").write_bytes(block * 1024)
    (top / "victim-dir").mkdir()
    for index in range(6):
        (top / "victim-dir" / f"name{index}").write_text(str(index))
    os.symlink("y" * 300, top / "victim-link")
    many = top / "many"
    many.mkdir()
    for index in range(150):
        os.link(top / "small", many / f"{index:03d}{'n' * 240}")
    os.setxattr(top / "small", "user.inside", b"v" * 20)
    os.setxattr(top / "small", "user.block", b"w" * 300)
    os.setxattr(top / "small", "trusted.t", b"t")
    os.setxattr(top / "victim", "user.block", b"z" * 400)
    os.setxattr(top / "small", "system.posix_acl_access", _ACL)
    os.setxattr(top / "sub", "system.posix_acl_default", _ACL)
    if big_value:
        os.setxattr(top / "islands", "user.big", b"B" * big_value)


def _filled(image: Path, big_value: int = 0) -> None:
    with kernel_mount(image, image.parent / "mnt") as top:
        _files(top, big_value=big_value)
    run("e2fsck", "-fn", image)


def _csum(image: Path) -> None:
    features = "metadata_csum,64bit,ea_inode,dir_index,^resize_inode"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", "64", "-J", "size=4",
        "-O", features, image, "10M")  # fmt: skip
    _filled(image, big_value=9000)


def _plain(image: Path) -> None:
    features = "^extents,^metadata_csum,^64bit,^flex_bg,^uninit_bg,dir_index,^huge_file"
    run("mke2fs", "-q", "-F", "-t", "ext3", "-b", "1024", "-N", "64", "-J", "size=1",
        "-O", features, image, "4M")  # fmt: skip
    _filled(image)


def _inline(image: Path) -> None:
    features = "metadata_csum,metadata_csum_seed,inline_data,ea_inode,^has_journal,^resize_inode"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "64", "-O", features,
        image, "3M")  # fmt: skip
    with kernel_mount(image, image.parent / "mnt") as top:
        _files(top, big_value=2000)
        (top / "inline50").write_bytes(b"i" * 50)
        (top / "inline150").write_bytes(b"j" * 150)
        (top / "inline-dir").mkdir()
        for name in ("a", "bb", "ccc", "four-letters"):
            (top / "inline-dir" / name).touch()
    run("e2fsck", "-fn", image)


def _gdt(image: Path) -> None:
    features = "^metadata_csum,uninit_bg,meta_bg,^resize_inode,^has_journal,^flex_bg,extents"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-g", "1024", "-N", "128",
        "-O", features, image, "4M")  # fmt: skip
    _filled(image)


def _dirty(image: Path) -> None:
    features = "metadata_csum,64bit,dir_index,fast_commit,^resize_inode"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "64", "-J", "size=2",
        "-O", features, image, "6M")  # fmt: skip
    live = image.with_suffix(".live")
    shutil.copyfile(image, live)
    with kernel_mount(live, image.parent / "mnt", "commit=300") as top:
        (top / "before").write_text("before the first commit")
        (top / "sub").mkdir()
        os.sync()
        (top / "sub" / "second").write_text("in the second")
        (top / "before").unlink()
        os.sync()
        with (top / "sub" / "fast").open("w") as file:
            file.write("in a fast commit")
            file.flush()
            os.fsync(file.fileno())
        shutil.copyfile(live, image)
    debugfs(image, "show_super_stats -h")


MAKERS: dict[str, Callable[[Path], None]] = {
    "csum": _csum, "plain": _plain, "inline": _inline, "gdt": _gdt, "dirty": _dirty,
}  # fmt: skip


def main() -> None:
    """Make all of them."""
    for name, make in MAKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / f"{name}.img"
            make(image)
            packed = lzma.compress(image.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (CORPUS / f"{name}.img.xz").write_bytes(packed)
            print(f"{name}: {image.stat().st_size} bytes, {len(packed)} packed")  # noqa: T201


if __name__ == "__main__":
    main()
