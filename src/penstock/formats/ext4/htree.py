# SPDX-License-Identifier: Apache-2.0
"""The hash tree of an indexed directory: from a name to the leaf blocks that may hold it.

The tree only speeds up what a look at all leaves finds as well. So whatever contradicts itself here
raises :class:`BrokenIndex`, upon which the directory is searched without it; a block whose checksum
is wrong is an error all the same.

Invariants: at most three levels, each node verified and decoded once; a search visits a leaf and
its continuations, 128 at most.

Specification: Documentation/filesystems/ext4/directory.rst (Hash Tree Directories).
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from bisect import bisect_right
from typing import Final, NamedTuple

from penstock.formats.errors import CorruptImage
from penstock.formats.ext4 import format as fmt
from penstock.formats.ext4.directory import verified_names, verify_tree_node
from penstock.formats.ext4.format import DxRootInfo, Incompat, SuperFlag
from penstock.formats.ext4.hash import name_hash, unsigned_version
from penstock.formats.ext4.inode import Inode
from penstock.formats.ext4.mapping import find_block
from penstock.formats.ext4.volume import Volume
from penstock.formats.layout import unpack

__all__ = ["BrokenIndex", "find_indexed"]

_ROOT_INFO_AT: Final = 0x18
_ROOT_INFO_LENGTH: Final = 8
_NODE_ENTRIES_AT: Final = 8
_TAIL_SIZE: Final = 8
_MAX_LEAVES: Final = 128
"""Leaves with names of one hash; more than two are rare."""
_DOTS: Final = frozenset({b".", b".."})


class BrokenIndex(CorruptImage):
    """The tree contradicts itself, or its hash is not known."""


class _Node(NamedTuple):
    hashes: array[int]
    """Lowest hash under each entry; the first is 0."""
    blocks: array[int]
    """Logical blocks of the directory."""
    version: int
    """Of the hash (the root's only)."""
    levels: int
    """Of nodes between the root and the leaves (the root's only)."""


def find_indexed(volume: Volume, inode: Inode, name: bytes) -> int | None:
    """The inode under ``name`` in an indexed directory; None if there is none.

    Raises:
        BrokenIndex: search without the index.
        CorruptImage, BadChecksum: a block is bad.
        OSError: the source's.
    """
    root = _node(volume, inode, 0, root=True)
    if name in _DOTS:  # they lie in block 0, before the tree, and have no hash
        return verified_names(volume, inode, 0, find_block(volume, inode, 0)).get(name)
    flags = volume.superblock.raw.flags
    version = unsigned_version(root.version) if flags & SuperFlag.UNSIGNED_HASH else root.version
    target = name_hash(name, version, volume.superblock.raw.hash_seed)
    if target is None:
        raise BrokenIndex(f"directory inode {inode.ino}: hash version {root.version} is not known")
    path: list[tuple[_Node, int]] = []
    _descend(volume, inode, path, root, target)
    for _ in range(_MAX_LEAVES):
        node, slot = path[-1]
        logical = node.blocks[slot]
        physical = find_block(volume, inode, logical)
        if not physical:
            raise BrokenIndex(f"directory inode {inode.ino}: index names block {logical}, a hole")
        names = verified_names(volume, inode, logical, physical)
        if name in names:
            return names[name]
        if logical == 0 or logical in (above.blocks[taken] for above, taken in path[:-1]):
            raise BrokenIndex(f"directory inode {inode.ino}: index has {logical} as a leaf too")
        if not _next_leaf(volume, inode, path, target):
            return None
    raise BrokenIndex(f"directory inode {inode.ino}: more than {_MAX_LEAVES} leaves for one hash")


def _descend(
    volume: Volume, inode: Inode, path: list[tuple[_Node, int]], node: _Node, target: int
) -> None:
    """Extend ``path`` (nodes with the entry taken in each) to the node above the leaves."""
    while True:
        slot = bisect_right(node.hashes, target, 1) - 1
        path.append((node, slot))
        if len(path) > path[0][0].levels:
            return
        node = _node(volume, inode, node.blocks[slot], root=False)


def _next_leaf(volume: Volume, inode: Inode, path: list[tuple[_Node, int]], target: int) -> bool:
    """Go on to the next leaf if it continues the names of hash ``target``.

    Names of one hash that did not fit into a leaf go on in the next, whose own hash then has the
    lowest bit set.
    """
    depth = len(path)
    while path:
        node, slot = path.pop()
        if slot + 1 < len(node.hashes):
            break
    else:
        return False
    if node.hashes[slot + 1] != target | 1:
        return False
    path.append((node, slot + 1))
    while len(path) < depth:
        node = _node(volume, inode, path[-1][0].blocks[path[-1][1]], root=False)
        path.append((node, 0))
    return True


def _node(volume: Volume, inode: Inode, logical: int, *, root: bool) -> _Node:
    """A node of the tree, verified and decoded."""
    physical = find_block(volume, inode, logical)
    if not physical or (logical == 0) != root:
        raise BrokenIndex(f"directory inode {inode.ino}: index names block {logical}")
    # The negative number keeps a node apart from the names of the same block.
    key = (inode.ino, -physical)
    kept = volume.parsed.get(key)
    if isinstance(kept, _Node):
        return kept
    data = volume.read_block(physical)
    if volume.metadata_csum:
        verify_tree_node(inode, logical, data)
    node = _decode(volume, inode, logical, data)
    volume.parsed.put(key, node, 300 + 8 * len(node.hashes))
    return node


def _decode(volume: Volume, inode: Inode, logical: int, data: bytes) -> _Node:
    what = f"directory inode {inode.ino}: index block {logical}"
    version = levels = 0
    start = _NODE_ENTRIES_AT
    if logical == 0:
        info = unpack(DxRootInfo, data, _ROOT_INFO_AT)
        version, levels = info.hash_version, info.indirect_levels
        start = _ROOT_INFO_AT + _ROOT_INFO_LENGTH
        highest = 2 if volume.superblock.incompat & Incompat.LARGEDIR else 1
        if info.info_length != _ROOT_INFO_LENGTH or levels > highest:
            raise BrokenIndex(f"{what}: {levels} levels, expected up to {highest}")
    limit, count = struct.unpack_from("<HH", data, start)
    tail = _TAIL_SIZE if volume.superblock.metadata_csum else 0
    room = (len(data) - start - tail) // 8
    if limit != room or not 1 <= count <= limit:
        raise BrokenIndex(f"{what}: {count} of {limit} entries, {room} fit into it")
    words = array("I", data[start : start + 8 * count])
    if sys.byteorder == "big":
        words.byteswap()
    hashes, blocks = words[::2], words[1::2]
    hashes[0] = 0
    if any(later < earlier for earlier, later in itertools.pairwise(hashes[1:])):
        raise BrokenIndex(f"{what}: hashes are not in order")
    return _Node(hashes, array("I", [b & fmt.DX_BLOCK_MASK for b in blocks]), version, levels)
