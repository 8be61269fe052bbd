# SPDX-License-Identifier: Apache-2.0
"""``-o`` words that concern the mount itself, as values."""

from __future__ import annotations

import os
from typing import Final

from penstock.broker.options import MountOptions
from penstock.cli.errors import ExitCode, Failure
from penstock.cli.options import DATAPATHS, Words, number_of

__all__ = ["mount_options", "request_timeout"]

_MAX_WORKERS: Final = 64
_MAX_POLL: Final = 5000
_SHORTEST_TIMEOUT: Final = 15
"""Seconds; the kernel looks at its requests no oftener."""
_LONGEST_TIMEOUT: Final = 0xFFFF


_MIN_WRITE: Final = 4096
_MAX_WRITE: Final = 16 << 20
_NOT_YET: Final = {
    "reflink": "is for images that are written to, which this version does not",
    "iomap": "takes a kernel with the iomap extension of FUSE, which this version does not speak",
}
"""Data paths of the design that there are not, and why not."""


def mount_options(words: Words, source: str, *, tree: bool = False) -> MountOptions:
    """What ``-o`` says of the mount itself.

    Args:
        words: of the command line.
        source: as the user named it.
        tree: whether it is a directory; else it is an image, and never written.

    Raises:
        Failure: a value is out of range, or the caller may not have it (USAGE).
    """
    generic = words.generic
    root = os.geteuid() == 0
    for word in ("suid", "dev"):
        if word in generic and not root:
            raise Failure(f"-o {word}: is for root only", ExitCode.USAGE)
    return MountOptions(
        source=generic.get("fsname") or _shown(source),
        subtype=generic.get("subtype", "penstock"),
        read_only="ro" in generic or not tree,
        allow_other="allow_other" in generic,
        suid="suid" in generic,
        dev="dev" in generic,
        exec="noexec" not in generic,
        symfollow="nosymfollow" not in generic,
        poll=_poll(generic.get("poll", "auto")),
        datapath=_datapath(generic.get("datapath", "auto")),
        stackable="stackable" in generic,
        max_read=int(generic.get("max_read", 0)),
        max_write=number_of(words, "max_write", MountOptions().max_write, _MIN_WRITE, _MAX_WRITE),
        workers=number_of(words, "workers", MountOptions().workers, 1, _MAX_WORKERS),
    )


def _shown(source: str) -> str:
    """The source as the mount table names it."""
    try:
        return os.path.realpath(source)
    except OSError:  # a relative path in a directory that was deleted
        return source


def request_timeout(words: Words) -> int:
    """Seconds after which the kernel gives up a mount that does not answer; 0 = never.

    Raises:
        Failure: the kernel cannot look after that (USAGE).
    """
    timeout = int(words.generic.get("request_timeout", 0))
    if timeout and not _SHORTEST_TIMEOUT <= timeout <= _LONGEST_TIMEOUT:
        text = f"is neither 0 nor in {_SHORTEST_TIMEOUT} to {_LONGEST_TIMEOUT}"
        raise Failure(f"-o request_timeout={timeout}: {text}", ExitCode.USAGE)
    return timeout


def _datapath(text: str) -> str:
    if text in DATAPATHS:
        return text
    why = _NOT_YET.get(text, f"not one of {', '.join(DATAPATHS)}")
    raise Failure(f"-o datapath={text}: {why}", ExitCode.USAGE)


def _poll(text: str) -> str | int:
    if text in {"auto", "off"}:
        return text
    if text.isascii() and text.isdigit() and int(text) <= _MAX_POLL:
        return int(text)
    raise Failure(
        f"-o poll={text}: is neither auto nor off nor microseconds up to {_MAX_POLL}",
        ExitCode.USAGE,
    )
