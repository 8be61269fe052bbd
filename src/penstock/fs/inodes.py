# SPDX-License-Identifier: Apache-2.0
"""An inode table: node ids for the objects of a filesystem that has no numbers of its own."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from penstock.fs.errors import FsError
from penstock.fs.types import ROOT, NodeId

__all__ = ["InodeTable"]

N = TypeVar("N")


class InodeTable(Generic[N]):
    """Node id ⇄ node, for as long as the kernel knows the inode.

    A node is found by id, or by a key that the filesystem chooses (an inode number, a device and
    inode pair, …); the same key has the same node id until it is forgotten. Ids are never reused,
    so generations are not needed. Safe from any thread.

    Args:
        root: the node of the root; gets :data:`ROOT`.
        root_key: its key.
    """

    def __init__(self, root: N, root_key: Hashable) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(ROOT + 1)
        self._nodes: dict[NodeId, tuple[N, Hashable]] = {ROOT: (root, root_key)}
        self._by_key: dict[Hashable, NodeId] = {root_key: ROOT}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[N]:
        return iter([node for node, _ in list(self._nodes.values())])

    def __getitem__(self, nodeid: NodeId) -> N:
        """The node.

        Raises:
            FsError: ESTALE if the kernel names an inode that it was not given.
        """
        try:
            return self._nodes[nodeid][0]
        except KeyError:
            raise FsError(errno.ESTALE, f"node {nodeid} is not known") from None

    def add(self, node: N, key: Hashable) -> NodeId:
        """The id of the node with this key; ``node`` becomes known if the key was not."""
        with self._lock:
            nodeid = self._by_key.get(key)
            if nodeid is None:
                nodeid = NodeId(next(self._ids))
                self._by_key[key] = nodeid
                self._nodes[nodeid] = (node, key)
            return nodeid

    def find(self, key: Hashable) -> NodeId | None:
        """The id under this key, None if it is not known."""
        return self._by_key.get(key)

    def forget(self, nodeid: NodeId) -> N | None:
        """Drop a node (never the root); the node, or None if it was not known."""
        if nodeid == ROOT:
            return None
        with self._lock:
            found = self._nodes.pop(nodeid, None)
            if found is None:
                return None
            node, key = found
            if self._by_key.get(key) == nodeid:
                del self._by_key[key]
            return node
