# SPDX-License-Identifier: Apache-2.0
"""The exception a filesystem raises to answer a request with an errno."""

from __future__ import annotations

import os

__all__ = ["FsError"]


class FsError(OSError):
    """An errno and the reason for it.

    Any other :class:`OSError` with an ``errno`` answers the request just as well; ``FsError`` is
    for errors that a filesystem finds itself. Everything else becomes EIO and one log record.

    Args:
        errno: a positive errno.
        message: names the thing, the place and what was expected; the strerror if empty.
    """

    def __init__(self, errno: int, message: str = "") -> None:
        super().__init__(errno, message or os.strerror(errno))
