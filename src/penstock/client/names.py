# SPDX-License-Identifier: Apache-2.0
"""What a server may call a file. Everything else is refused, since names become paths."""

from __future__ import annotations

import errno
from typing import Final

__all__ = ["NAME_MAX", "PATH_MAX", "TARGET_MAX", "check_name", "split_path"]

NAME_MAX: Final = 255
"""Bytes of the longest name (limits.h)."""

PATH_MAX: Final = 4096
"""Bytes of the longest path, its NUL included (limits.h)."""

TARGET_MAX: Final = PATH_MAX - 1
"""Bytes of the longest symlink target."""


def check_name(name: bytes) -> None:
    """Refuse what cannot be the name of a file in a directory.

    Raises:
        OSError: EUCLEAN, with the reason.
    """
    if not name:
        raise OSError(errno.EUCLEAN, "a name is empty")
    if len(name) > NAME_MAX:
        raise OSError(errno.EUCLEAN, f"a name has {len(name)} bytes, more than {NAME_MAX}")
    if b"/" in name or b"\0" in name:
        raise OSError(errno.EUCLEAN, f"the name {name!r} has a slash or a NUL in it")
    if name in {b".", b".."}:
        raise OSError(errno.EUCLEAN, f"a file is called {name!r}")


def split_path(path: bytes) -> list[bytes]:
    """The components of a path; empty ones and ``.`` are dropped.

    Raises:
        OSError: ENAMETOOLONG, or EINVAL for a NUL.
    """
    if len(path) >= PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, f"the path has {len(path)} bytes")
    if b"\0" in path:
        raise OSError(errno.EINVAL, "a path cannot have a NUL in it")
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    for part in parts:
        if len(part) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has {len(part)} bytes")
    return parts
