# SPDX-License-Identifier: Apache-2.0
"""A directory to serve: how it is opened for its server, and what is asked of the kernel for it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Final

from penstock.abi.mount import MountAttr
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.negotiate import Profile, mirror_profile
from penstock.sys.tree import add_attributes, clone_tree

__all__ = ["opened_tree", "tree_profile"]

_log = logging.getLogger(__name__)

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_HARMLESS: Final = MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOSYMFOLLOW
"""The server opens no device, executes nothing and follows no link; the callers' kernel does."""


@contextlib.contextmanager
def opened_tree(source: str, *, read_only: bool) -> Iterator[int]:
    """The directory, opened for reading as its server is to have it.

    As root it is seen through a mount of its own that is attached nowhere: nothing is above its
    root, and what is mounted below it is not there, this very mount included. It goes with the
    block.

    Args:
        source: its path.
        read_only: let the server write nothing, whatever it does.

    Raises:
        Failure: it cannot be opened, or is no directory (MOUNT).
    """
    with contextlib.ExitStack() as opened:
        try:
            fd = os.open(source, _FLAGS)
            opened.callback(os.close, fd)
        except OSError as error:
            raise Failure(f"{source}: {explain(error)}", ExitCode.MOUNT) from error
        except ValueError as error:
            raise Failure(f"{source!r}: {error}", ExitCode.USAGE) from error
        if os.geteuid() == 0:
            try:
                mount = clone_tree(fd)
                opened.callback(os.close, mount)
                add_attributes(mount, _HARMLESS | (MountAttr.RDONLY if read_only else 0))
                fd = os.open(".", _FLAGS, dir_fd=mount)
                opened.callback(os.close, fd)
            except OSError as error:
                _log.info("%s: is served with what is mounted around it: %s", source, error)
        yield fd


def tree_profile(words: Mapping[str, str]) -> Profile:
    """What is asked of the kernel for a directory, by its ``-o`` words. Values that are none are
    the server's to refuse, before there is a mount."""
    return mirror_profile(
        cache=words.get("cache", "mirror"),
        acl="noacl" not in words,
        idmap="idmap" in words,
        locks=words.get("locks") != "local",
    )
