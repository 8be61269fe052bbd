# SPDX-License-Identifier: Apache-2.0
"""What a filesystem implements.

Start with :class:`Operations` (``operations.py``): one method per operation of the protocol.
``attributes.py`` says *what exists*, ``data.py`` *where the bytes are*, ``pending.py`` how to
answer later, ``errors.py`` how to refuse, ``inodes.py`` has an inode table for those who need one.

Nothing here knows of sockets, descriptors of /dev/fuse or byte layouts of messages: that is
:mod:`penstock.wire`, :mod:`penstock.session` and :mod:`penstock.transport`.
"""

from penstock.fs.attributes import (
    ENDLESS,
    Attributes,
    DirEntry,
    Entry,
    OpenReply,
    SetAttr,
    StatFs,
    StatxReply,
)
from penstock.fs.data import NULL_ADDR, Backing, Data, Mapped, Mapping, MappingType, WholeFile
from penstock.fs.errors import FsError
from penstock.fs.inodes import InodeTable
from penstock.fs.operations import Connection, IoctlReply, Lock, Operations
from penstock.fs.pending import Answer, Pending
from penstock.fs.types import ROOT, Context, Creation, FileHandle, NodeId, Unique

__all__ = [
    "ENDLESS",
    "NULL_ADDR",
    "ROOT",
    "Answer",
    "Attributes",
    "Backing",
    "Connection",
    "Context",
    "Creation",
    "Data",
    "DirEntry",
    "Entry",
    "FileHandle",
    "FsError",
    "InodeTable",
    "IoctlReply",
    "Lock",
    "Mapped",
    "Mapping",
    "MappingType",
    "NodeId",
    "OpenReply",
    "Operations",
    "Pending",
    "SetAttr",
    "StatFs",
    "StatxReply",
    "Unique",
    "WholeFile",
]
