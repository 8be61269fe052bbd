# SPDX-License-Identifier: Apache-2.0
"""The reason in an exception, for people: the system's words, made plainer where they are odd."""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["explain"]

_WORDS: Final = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "is a directory",
    errno.EMFILE: "too many open files (ulimit -n)",
    errno.ELOOP: "too many symbolic links",
    errno.ENOMEDIUM: "no medium in the drive",
    126: "encrypted, and the key is not there",  # ENOKEY
}


def explain(error: BaseException) -> str:
    """The reason in an exception, in one line and without its path or number."""
    if isinstance(error, OSError) and error.errno is not None:
        usual = os.strerror(error.errno)
        said = error.strerror or usual
        text = _WORDS.get(error.errno, said) if said == usual else said
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
