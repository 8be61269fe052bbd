# SPDX-License-Identifier: Apache-2.0
"""What ``penstock info`` says of an ext4 filesystem."""

from __future__ import annotations

from typing import Any

from penstock.formats.ext4.reader import Ext4Reader
from penstock.formats.ext4.superblock import Superblock

__all__ = ["describe"]

_VALID = 1
_ERROR = 2


def _state(superblock: Superblock) -> str:
    state = superblock.raw.state
    words = ["clean" if state & _VALID else "not clean"]
    if state & _ERROR:
        words.append("with errors")
    return " ".join(words)


def _journal(reader: Ext4Reader) -> dict[str, Any]:
    superblock = reader.superblock
    if "has_journal" not in superblock.features:
        return {"state": "none"}
    described: dict[str, Any] = {
        "state": "needs recovery" if superblock.needs_recovery else "clean",
        "inode": superblock.journal_inum,
    }
    result = reader.journal
    if superblock.needs_recovery:
        described["replayed"] = result is not None
        if result is not None:
            described["transactions"] = result.transactions
            described["blocks"] = len(result.map)
            described["fast_commit"] = result.fast_commit is not None
    return described


def describe(reader: Ext4Reader) -> dict[str, Any]:
    """Plain values, ready for JSON. Sizes in bytes."""
    superblock = reader.superblock
    counts = reader.statfs()
    size = reader.block_size
    return {
        "label": superblock.label,
        "uuid": superblock.uuid_text,
        "size": superblock.size,
        "block_size": size,
        "blocks": superblock.blocks_count,
        "free_bytes": counts.free * size,
        "inodes": counts.files,
        "free_inodes": counts.free_files,
        "inode_size": superblock.inode_size,
        "groups": superblock.groups,
        "features": superblock.features,
        "state": _state(superblock),
        "journal": _journal(reader),
        "warnings": list(reader.warnings),
    }
