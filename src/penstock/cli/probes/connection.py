# SPDX-License-Identifier: Apache-2.0
"""A FUSE connection that is made to see what the kernel offers, and thrown away.

The superblock is made detached (fsopen), so no path ever leads to it; INIT is read, answered with
what is to be tried, and the connection ends with the child that made it. Ordinary users do the same
in a user namespace where /dev/fuse may be opened; else fusermount3 makes a real mount on an empty
directory for the moment it takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import struct
import tempfile
from typing import Any, Final

from penstock.abi.fuse import (
    DEV_IOC_BACKING_OPEN,
    KERNEL_MINOR,
    KERNEL_VERSION,
    InHeader,
    InitFlag,
    InitIn,
    InitOut,
    Opcode,
)
from penstock.abi.layout import size_of
from penstock.abi.process import CloneFlag
from penstock.cli.errors import explain
from penstock.cli.probes.base import Attempt, attempt, nameless_file
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import clone, open_device, sync_init
from penstock.sys.fusermount import fusermount, fusermount_unmount
from penstock.sys.mountinfo import find_mount
from penstock.sys.namespaces import unshare
from penstock.wire import decode_request, encode_reply, replies

__all__ = ["sync_init_supported", "try_connection"]

_READ_SECONDS: Final = 3.0


def try_connection() -> tuple[Attempt, str]:
    """Make a connection in the way this user can.

    Returns:
        What was found (``minor``, ``flags``, ``max_readahead``, ``clone``, ``backing``: an errno
        or 0, None where it was not tried), and how it was made.
    """
    if os.geteuid() == 0:
        found = attempt(lambda: _detached(backing=True))
        if found.value is not None:
            return found, "INIT read on a connection made with fsopen and thrown away"
    found = attempt(_in_user_namespace)
    if found.value is not None:
        return found, "INIT read on a connection made in a user namespace and thrown away"
    helped = _with_fusermount()
    if helped.value is not None:
        return helped, "INIT read on a mount made with fusermount3 and removed at once"
    reason = f"{found.reason}; {helped.reason}"
    return found._replace(reason=reason), "fsopen in a user namespace and fusermount3 were tried"


def _in_user_namespace() -> dict[str, Any]:
    unshare(CloneFlag.NEWUSER | CloneFlag.NEWNS)
    return _detached(backing=False)


def _detached(*, backing: bool) -> dict[str, Any]:
    fd = open_device()
    context = sysmount.fsopen("fuse")
    for key, value in (
        ("fd", str(fd)), ("rootmode", f"{stat.S_IFDIR:o}"),
        ("user_id", str(os.geteuid())), ("group_id", str(os.getegid())),
    ):  # fmt: skip
        sysmount.fsconfig_string(context, key, value)
    sysmount.fsconfig_create(context)
    found = _handshake(fd)
    if backing:
        found["backing"] = _try_backing(fd)
    return found


def _handshake(fd: int) -> dict[str, Any]:
    """Read INIT, answer it, try what needs a connection that is answered."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(_READ_SECONDS * 1000):
        raise TimeoutError("the kernel sent no INIT")
    header, request = decode_request(os.read(fd, 8192 + size_of(InHeader)))
    if header.opcode != Opcode.INIT:
        raise OSError(f"opcode {header.opcode} came where INIT was expected")
    offer: InitIn = request.arg  # type: ignore[attr-defined]
    flags = offer.flags | offer.flags2 << 32
    wanted = int(InitFlag.INIT_EXT | InitFlag.PASSTHROUGH) & flags
    os.write(fd, encode_reply(header.unique, replies.InitReply(_answer(offer, wanted))))
    cloned = True
    try:
        os.close(clone(fd))
    except OSError:
        cloned = False
    return {
        "minor": offer.minor,
        "flags": flags,
        "max_readahead": offer.max_readahead,
        "clone": cloned,
        "backing": None,
    }


def _answer(offer: InitIn, flags: int) -> InitOut:
    fields = dict.fromkeys(InitOut._fields, 0)
    fields.update(
        major=KERNEL_VERSION,
        minor=min(offer.minor, KERNEL_MINOR),
        flags=flags & 0xFFFF_FFFF,
        flags2=flags >> 32,
        max_write=4096,
        max_stack_depth=1,
    )
    fields["unused"] = bytes(22)  # type: ignore[assignment]
    return InitOut(**fields)  # type: ignore[arg-type]


def _try_backing(fd: int) -> int:
    """The errno of registering a backing file, 0 if it worked."""
    import fcntl

    with nameless_file() as (file, _):
        try:
            fcntl.ioctl(fd, DEV_IOC_BACKING_OPEN, struct.pack("=iIQ", file.fileno(), 0, 0))
        except OSError as error:
            return error.errno or -1
    return 0


def _with_fusermount() -> Attempt:
    """The same by way of fusermount3; the mount is removed whatever happens."""
    try:
        place = tempfile.mkdtemp(prefix="penstock-doctor-")
    except OSError as error:
        return Attempt(None, error.errno or 0, f"no directory to mount on: {explain(error)}")
    try:
        return attempt(lambda: _handshake(fusermount(place, [])))
    finally:
        if find_mount(place) is not None:
            with contextlib.suppress(OSError):
                fusermount_unmount(place, lazy=True)
        with contextlib.suppress(OSError):  # never more than the empty directory
            os.rmdir(place)


def sync_init_supported() -> bool:
    """Whether /dev/fuse knows FUSE_DEV_IOC_SYNC_INIT.

    Raises:
        OSError: the device cannot be opened.
    """
    fd = open_device()
    try:
        return sync_init(fd)
    finally:
        os.close(fd)
