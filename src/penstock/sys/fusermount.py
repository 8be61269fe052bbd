# SPDX-License-Identifier: Apache-2.0
"""fusermount3: mounting and unmounting for callers without privilege.

The set-user-ID helper of libfuse opens /dev/fuse, mounts, and passes the descriptor back over the
socket named by ``_FUSE_COMMFD``.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket

__all__ = ["find_fusermount", "fusermount", "fusermount_unmount"]


def find_fusermount() -> str | None:
    """The path of the helper, None if it is not installed."""
    search = os.environ.get("PATH", os.defpath) + ":/usr/bin:/bin:/usr/local/bin"
    return shutil.which("fusermount3", path=search) or shutil.which("fusermount", path=search)


def _helper() -> str:
    helper = find_fusermount()
    if helper is None:
        raise OSError(
            errno.ENOENT,
            "fusermount3 is not installed; without it only root can mount (Debian: fuse3)",
        )
    return helper


def _run(arguments: list[str], channel: socket.socket | None) -> tuple[int, str]:
    """Run the helper; its exit code and what it said. No shell, no inherited descriptors."""
    read_end, write_end = os.pipe()
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, write_end, 2)]
    if channel is not None:
        environment["_FUSE_COMMFD"] = "3"
        actions.append((os.POSIX_SPAWN_DUP2, channel.fileno(), 3))
    try:
        pid = os.posix_spawn(arguments[0], arguments, environment, file_actions=actions)
    finally:
        os.close(write_end)
    with open(read_end, "rb") as said:
        text = said.read(4096).decode(errors="replace").strip()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def fusermount(mountpoint: str, options: list[str]) -> int:
    """Mount; the /dev/fuse descriptor of the new connection.

    Args:
        mountpoint: a directory that the caller may write to.
        options: mount options, as ``-o`` takes them; commas and backslashes are escaped here.

    Raises:
        OSError: ENOENT (no helper), or EPERM with the helper's own words.
    """
    helper = _helper()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    joined = ",".join(o.replace("\\", "\\\\").replace(",", "\\,") for o in options)
    with ours:
        with theirs:
            code, said = _run([helper, "-o", joined, "--", mountpoint], theirs)
        if code != 0:
            reason = said.splitlines()[-1] if said else f"exit code {code}"
            raise OSError(errno.EPERM, reason)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OSError(errno.EIO, f"{helper} mounted but passed no descriptor back")
    os.set_blocking(descriptors[0], False)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def fusermount_unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount one of the caller's own FUSE mounts.

    Raises:
        OSError: ENOENT (no helper), EBUSY or EPERM with the helper's words.
    """
    helper = _helper()
    flags = ["-u", "-z"] if lazy else ["-u"]
    code, said = _run([helper, *flags, "--", mountpoint], None)
    if code != 0:
        busy = "busy" in said.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, said or f"exit code {code}")
