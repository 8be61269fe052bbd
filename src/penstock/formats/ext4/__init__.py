# SPDX-License-Identifier: Apache-2.0
"""The ext4 format, and ext2 and ext3, which are subsets of it: read from a block source.

Start with :class:`Ext4Reader` (``reader.py``), which joins the other modules: ``format.py`` has the
facts, ``volume.py`` blocks and caches, ``superblock.py``, ``groups.py`` and ``inode.py`` what their
names say, ``mapping.py`` where the bytes of a file lie (over ``extents.py``, ``indirect.py``,
``inline.py``), ``directory.py`` names (``htree.py`` and ``hash.py`` their index), ``xattr.py``
attributes, ``journal.py`` the replay of a dirty journal. Nothing here knows of FUSE; nothing here
writes.
"""

from penstock.formats.ext4.directory import DirRecord
from penstock.formats.ext4.inode import DeletedInode, Inode
from penstock.formats.ext4.mapping import Extent, ExtentKind
from penstock.formats.ext4.reader import EncryptedContent, Ext4Reader
from penstock.formats.ext4.statfs import FsCounts
from penstock.formats.ext4.superblock import Superblock

__all__ = [
    "DeletedInode",
    "DirRecord",
    "EncryptedContent",
    "Ext4Reader",
    "Extent",
    "ExtentKind",
    "FsCounts",
    "Inode",
    "Superblock",
]
