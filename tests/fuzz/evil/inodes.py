# SPDX-License-Identifier: Apache-2.0
"""Inodes and extended attributes with impossible values."""

from __future__ import annotations

import struct

from tests.fuzz.bases import Image
from tests.fuzz.edit import Editor
from tests.fuzz.evil.registry import (
    DIR_MODE,
    EA_INODE,
    EXTENTS,
    FILE,
    INDEX,
    LINK,
    Maker,
    extent,
    extent_root,
    variants,
)

# Extended attributes


def _attribute(
    name: bytes, offset: int, size: int, inum: int = 0, prefix: int = 1, length: int | None = None
) -> bytes:
    length = len(name) if length is None else length
    head = struct.pack("<BBHIII", length, prefix, offset, inum, size, 0)
    return (head + name).ljust(16 + (len(name) + 3 & ~3), b"\0")


def _attributes(*entries: bytes, tail: bytes = bytes(4), base: str = "csum") -> Maker:
    def make() -> Image:
        editor = Editor(base)
        ino = FILE[base]
        block = int(editor.get_inode(ino, "file_acl_lo"))
        body = editor.pread(32, block * editor.block_size) + b"".join(entries) + tail
        editor.put_block(block, body[: editor.block_size])
        editor.seal_xattrs(block)
        return editor

    return make


variants(
    "attributes",
    {
        "value of 2^31": _attributes(_attribute(b"v", 4000, 1 << 31)),
        "value of 2^32-1": _attributes(_attribute(b"v", 0, 0xFFFFFFFF)),
        "value outside": _attributes(_attribute(b"v", 4090, 100)),
        "value is the header": _attributes(_attribute(b"v", 0, 4096)),
        "overlapping": _attributes(_attribute(b"a", 100, 3000), _attribute(b"b", 110, 3000)),
        "one name twice": _attributes(_attribute(b"a", 0, 9), _attribute(b"a", 0, 8)),
        "not in order": _attributes(_attribute(b"zz", 0, 9), _attribute(b"a", 0, 8)),
        "name too long": _attributes(_attribute(b"v", 0, 1, length=255) * 250),
        "no end": _attributes(*[_attribute(b"v", 0, 0)] * 203),
        "NUL in a name": _attributes(_attribute(b"a\0b", 0, 1)),
        "no name": _attributes(_attribute(b"", 0, 1)),
        "long names": _attributes(_attribute(b"n" * 255, 0, 9), _attribute(b"m" * 250, 0, 9)),
        "all prefixes": _attributes(
            *[_attribute(b"" if p in {2, 3} else b"x", 0, 9, prefix=p) for p in range(1, 100)]
        ),
        "many whole blocks": _attributes(*[_attribute(b"%03d" % n, 0, 4096) for n in range(190)]),
        "many of a small block": _attributes(
            *[_attribute(b"%02d" % n, 0, 1024) for n in range(40)], base="plain"
        ),
        "ACL of nothing": _attributes(_attribute(b"", 0, 0, prefix=2)),
        "ACL of a block": _attributes(_attribute(b"", 0, 4096, prefix=2)),
        "in absent inodes": _attributes(
            *[_attribute(b"%d" % n, 0, 9, inum=n) for n in (1, 2, 8, 63, 65, 0xFFFFFFFF)]
        ),
    },
)


def _value_inodes(count: int, size: int, ino: int, *, atime: int | None = None) -> Maker:
    """Attributes whose values are all in one inode, which is a copy of the file's."""

    def make() -> Image:
        names = (_attribute(b"%03d" % n, 0, size, inum=ino) for n in range(count))
        editor = _attributes(*names)()
        assert isinstance(editor, Editor)
        fields: dict[str, int | bytes] = {
            "flags": EXTENTS | EA_INODE, "size_lo": size, "size_hi": 0,
            "block": extent_root(0, extent(0, 20, 900)), "mode": 0o100600,
        }  # fmt: skip
        if atime is not None:
            fields["atime"] = atime
        fields["mtime"] = 24  # as Lustre marks its owner: then no checksum is compared
        fields["generation"] = editor.get_inode(24, "generation")
        editor.set_inode(ino, **fields)
        return editor

    return make


variants(
    "attribute_inode",
    {
        "many values of 64 KiB": _value_inodes(190, 65536, 26),
        "values of the owner": _value_inodes(190, 65536, 24),
        "empty values": _value_inodes(190, 0, 26),
        "too large": _value_inodes(5, 65537, 26),
        "a checksum that is wrong": _value_inodes(5, 4096, 26, atime=1),
    },
)


# Inodes


def _inode(base: str, ino: int, **fields: int | bytes) -> Maker:
    def make() -> Image:
        editor = Editor(base)
        editor.set_inode(ino, **fields)
        return editor

    return make


variants(
    "inode",
    {
        "symlink of 2^31": _inode("csum", LINK, size_lo=1 << 31),
        "symlink of 2^32-1": _inode("plain", LINK, size_lo=0xFFFFFFFF),
        "symlink of a block": _inode("csum", LINK, size_lo=4096),
        "symlink of a block less one": _inode("csum", LINK, size_lo=4095),
        "symlink of nothing": _inode("csum", LINK, size_lo=0),
        "symlink of 59": _inode("csum", 16, size_lo=59),
        "symlink of 60": _inode("csum", 16, size_lo=60),
        "file of 2^63-1": _inode("csum", 24, size_lo=0xFFFFFFFF, size_hi=0x7FFFFFFF),
        "file of 2^64-1": _inode("csum", 24, size_lo=0xFFFFFFFF, size_hi=0xFFFFFFFF),
        "file of 2^44-1": _inode("csum", 24, size_lo=0xFFFFFFFF, size_hi=0xFFF),
        "file of 2^44": _inode("csum", 24, size_lo=0, size_hi=0x1000),
        "sparse file of 2^42": _inode("plain", 24, size_lo=0, size_hi=0x3FF),
        "no blocks, 2^44": _inode("csum", 24, block=extent_root(0), size_lo=0, size_hi=0x1000),
        "all flags": _inode("csum", 24, flags=0xFFFFFFFF),
        "times": _inode("csum", 24, atime=-1, atime_extra=0xFFFFFFFF, ctime_extra=0xFFFFFFFE),
        "blocks": _inode("csum", 24, blocks_lo=0xFFFFFFFF, blocks_hi=0xFFFF, flags=0xC0000),
        "directory as a file": _inode("csum", 25, mode=0o100644),
        "file as a directory": _inode("csum", 24, mode=DIR_MODE),
        "file as an indexed one": _inode("csum", 24, mode=DIR_MODE, flags=EXTENTS | INDEX),
        "casefolded": _inode("csum", 25, flags=EXTENTS | 0x40000000),
        "encrypted": _inode("csum", 25, flags=EXTENTS | 0x800),
        "encrypted link": _inode("csum", LINK, flags=EXTENTS | 0x800),
        "huge directory": _inode("csum", 25, size_lo=0xFFFFFFFF, size_hi=0xFFFFFFFF),
        "attribute block 2^47": _inode("csum", 24, file_acl_lo=0xFFFFFFFF, file_acl_hi=0x7FFF),
        "attribute block is a file's": _inode("csum", 24, file_acl_lo=900),
        "inline of 2^32-1": _inode("inline", 35, size_lo=0xFFFFFFFF),
        "inline of 2^40": _inode("inline", 35, size_hi=0x100),
        "inline and extents": _inode("inline", 35, flags=0x10080000),
        "inline without the feature": _inode("csum", 24, flags=0x10000000),
        "inline symlink": _inode("inline", LINK, flags=0x10000000),
        "inline parent 0": _inode("inline", 37, block=bytes(60)),
        "inline parent 2^32-1": _inode("inline", 37, block=b"\xff" * 4 + bytes(56)),
        "inline entries": _inode("inline", 37, block=b"\x02\0\0\0" + b"\xff" * 56),
        "inline of 4": _inode("inline", 37, size_lo=4),
        "inline of 0": _inode("inline", 37, size_lo=0),
        "inline of 61": _inode("inline", 37, size_lo=61),
    },
)
