# SPDX-License-Identifier: Apache-2.0
"""Which data path can carry whole files on a mount: tried before the mount is negotiated.

What a backing file may be is said in the answer to INIT, once and for all (``max_stack_depth``),
and whether one can be registered at all is known only when it is tried. So it is tried on a
connection that is thrown away, with a file of the kind that the mount would register.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from penstock.abi.fuse import InitFlag
from penstock.broker.backings import Backings
from penstock.broker.handshake import answer_init
from penstock.broker.lens import Lens
from penstock.negotiate import Limits, Profile, When
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import open_device
from penstock.sys.mountinfo import mount_id_of, mounts

__all__ = ["LENS", "PASSTHROUGH", "Carrier", "Window", "choose_carrier", "try_backing"]

LENS: Final = "lens"
PASSTHROUGH: Final = "passthrough"

_READAHEAD: Final = 1 << 20
_DEEPEST: Final = 2
_MOST_LOOKED_AT: Final = 1000
_OWN_CONNECTION: Final = frozenset({"fsmount", "mount"})
_HELPED: Final = "takes CAP_SYS_ADMIN in the first user namespace, and a mount without a helper"
_ONLY_TREES: Final = "is for directories; the files of an image are no files of their own"
_ONLY_IMAGES: Final = "is for images; the files of a directory can be passed through"


class Carrier(NamedTuple):
    """What carries whole files on a mount."""

    files: str
    """``lens``, ``passthrough`` or empty: nothing does."""
    reasons: dict[str, str]
    """Why each other one does not."""
    depth: int = 0
    """``max_stack_depth`` for INIT."""
    lens: Lens | None = None
    """Owned by whoever got this."""
    own_mount: int = 0
    """The mount that the servers' directory belongs to, if it is attached nowhere and so holds
    nothing but that directory; else 0."""


class Window(NamedTuple):
    """Where a filesystem lies in an image."""

    offset: int
    length: int
    """Bytes; 0: it is no image but a directory."""
    block_size: int


def choose_carrier(word: str, image: int, window: Window, how: str, *, stackable: bool) -> Carrier:
    """Find out what can carry whole files.

    Args:
        word: of ``-o datapath=``.
        image: the image, or a directory of the filesystem in which the files lie.
        window: of the image.
        how: by which means it is going to be mounted (:attr:`Attachment.how`).
        stackable: whether an overlay has to find room on top of the mount.

    Raises:
        OSError: what was asked for is impossible; the message says why.
    """
    is_tree = window.length == 0
    own, other = (PASSTHROUGH, LENS) if is_tree else (LENS, PASSTHROUGH)
    why_not_other = _ONLY_IMAGES if is_tree else _ONLY_TREES
    if word == other:
        raise OSError(errno.EOPNOTSUPP, why_not_other)
    reasons = {other: why_not_other}
    if word not in {"auto", own}:
        return Carrier("", reasons | {own: f"datapath={word} was asked for"})
    if how not in _OWN_CONNECTION:
        if word == own:
            raise OSError(errno.EOPNOTSUPP, _HELPED)
        return Carrier("", {own: _HELPED})
    try:
        if is_tree:
            return _passthrough(image, reasons, stackable=stackable)
        return _lens(image, window, reasons, stackable=stackable)
    except OSError as error:
        text = _words(error)
        if word == own:
            raise OSError(error.errno, text) from error
        return Carrier("", reasons | {own: text})


def _words(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno in {errno.EPERM, errno.EACCES}:
        return f"takes CAP_SYS_ADMIN in the first user namespace ({text})"
    if error.errno == errno.ENODEV:
        return f"the kernel lacks it ({text})"
    return text


def _lens(image: int, window: Window, reasons: dict[str, str], *, stackable: bool) -> Carrier:
    lens = Lens(image, *window, readahead=_READAHEAD)
    with contextlib.ExitStack() as undo:
        undo.callback(lens.close)
        file = lens.put(0, ())
        undo.callback(os.close, file.fd)
        depth = _depth(file.fd, stackable=stackable)
        undo.pop_all()
    os.close(file.fd)
    return Carrier(LENS, reasons, depth, lens)


def _passthrough(tree: int, reasons: dict[str, str], *, stackable: bool) -> Carrier:
    with _some_file(tree) as fd:
        depth = 1 if fd is None else _depth(fd, stackable=stackable)
    mount = mount_id_of(tree)
    attached = any(entry.mount_id == mount for entry in mounts())
    return Carrier(PASSTHROUGH, reasons, depth, own_mount=0 if attached else mount)


@contextlib.contextmanager
def _some_file(tree: int) -> Iterator[int | None]:
    """A regular file of the directory's filesystem, without a name where that is possible."""
    fd = None
    try:
        with contextlib.suppress(OSError):
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            fd = os.open(".", flags, 0o600, dir_fd=tree)
        if fd is None:
            fd = _found(tree)
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _found(tree: int) -> int | None:
    """The first regular file right in the directory."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError), os.scandir(tree) as entries:
        for _, entry in zip(range(_MOST_LOOKED_AT), entries, strict=False):
            if not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(entry.name, flags, dir_fd=tree)
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return fd
                os.close(fd)
    return None


def _depth(fd: int, *, stackable: bool) -> int:
    """The least ``max_stack_depth`` with which a file can be a backing file.

    Raises:
        OSError: with none, or with none that leaves room on top where that is needed.
    """
    for depth in range(1, _DEEPEST + 1):
        try:
            try_backing(fd, depth)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            if stackable:
                text = "it would leave no room for a filesystem on top, which was asked for"
                raise OSError(errno.ELOOP, text) from error
        else:
            return depth
    raise OSError(errno.ELOOP, "the files' filesystem is stacked too deep itself")


def try_backing(fd: int, depth: int) -> None:
    """Register a file on a connection that is thrown away.

    Args:
        fd: a regular file.
        depth: ``max_stack_depth``.

    Raises:
        OSError: EOPNOTSUPP (the kernel has no passthrough), EPERM, ELOOP, …
    """
    with contextlib.ExitStack() as stack:
        device = open_device()
        stack.callback(os.close, device)
        os.set_blocking(device, False)
        context = sysmount.fsopen("fuse")
        stack.callback(os.close, context)
        for key, value in (
            ("fd", str(device)), ("rootmode", f"{stat.S_IFDIR:o}"),
            ("user_id", str(os.geteuid())), ("group_id", str(os.getegid())),
        ):  # fmt: skip
            sysmount.fsconfig_string(context, key, value)
        sysmount.fsconfig_create(context)
        limits = Limits(max_stack_depth=depth)
        connection = answer_init(device, limits, Profile(0, has=frozenset({When.PASSTHROUGH})))
        if not connection.flags & InitFlag.PASSTHROUGH:
            text = "the kernel's FUSE has no passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)"
            raise OSError(errno.EOPNOTSUPP, text)
        backings = stack.enter_context(Backings(device, superblock_read_only=True, here=True))
        backings.add(1, fd)
