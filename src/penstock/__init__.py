# SPDX-License-Identifier: Apache-2.0
"""Filesystems in Python at kernel speed: your code says where the bytes are, the kernel moves them.

To write a filesystem, subclass :class:`Operations` and call :func:`run`, which serves it until it
is unmounted or a signal comes (:func:`mount` leaves the rest of the program to you)::

    import penstock

    penstock.run(MyFilesystem(), "/mnt")

What lives where, from the bottom up: ``abi`` (numbers and layouts), ``sys`` (system calls),
``wire`` (messages), ``fs`` (what a filesystem implements), ``session`` (the engine), ``transport``
(/dev/fuse), ``formats`` (on-disk formats), ``datapath`` (which way data goes), ``servers`` (ext4),
``serve`` (putting a mount together), ``control``, ``client``, ``cli``, ``testing``.

Names are loaded when they are first used, so that importing penstock costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from penstock._version import __version__

if TYPE_CHECKING:
    from penstock.fs import (
        ENDLESS,
        ROOT,
        Attributes,
        Backing,
        Context,
        Creation,
        DirEntry,
        Entry,
        FileHandle,
        FsError,
        InodeTable,
        Mapped,
        Mapping,
        MappingType,
        NodeId,
        OpenReply,
        Operations,
        Pending,
        SetAttr,
        StatFs,
        WholeFile,
    )
    from penstock.serve import Mount, MountOptions, mount, run

__all__ = [
    "ENDLESS",
    "ROOT",
    "Attributes",
    "Backing",
    "Context",
    "Creation",
    "DirEntry",
    "Entry",
    "FileHandle",
    "FsError",
    "InodeTable",
    "Mapped",
    "Mapping",
    "MappingType",
    "Mount",
    "MountOptions",
    "NodeId",
    "OpenReply",
    "Operations",
    "Pending",
    "SetAttr",
    "StatFs",
    "WholeFile",
    "__version__",
    "mount",
    "run",
]

_SERVE = frozenset({"Mount", "MountOptions", "mount", "run"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    home = "penstock.serve" if name in _SERVE else "penstock.fs"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
