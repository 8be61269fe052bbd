# SPDX-License-Identifier: Apache-2.0
"""A broker in little, as a program: mounts, starts a server, has a keeper, and then waits.

Arguments: the mount point, a directory for its files, ``umount`` or ``keep``, and how far to go:
``watched`` or ``early`` (the keeper knows the server, but of no mount). It prints what there is as
JSON. SIGUSR1 has it dismiss the keeper and end; SIGUSR2 has it tell the keeper everything again.

The connection is the server's alone, and INIT is never answered: whoever looked at the mount point
would wait until the server has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from penstock.abi.mount import MountAttr
from penstock.broker.keeper import Keeper
from penstock.sys import mount as sysmount
from penstock.sys.devfuse import open_device
from penstock.sys.fusermount import fusermount
from penstock.sys.mountinfo import find_mount

_WORDS = {"rootmode": "40000", "user_id": str(os.geteuid()), "group_id": str(os.getegid())}

_NOBODY = 65534


def _mount(mountpoint: str) -> int:
    """A mount that nobody answers for; its /dev/fuse."""
    if os.geteuid() != 0:
        return fusermount(mountpoint, ["fsname=keeping", "subtype=penstock"])
    fd = open_device()
    context = sysmount.fsopen("fuse")
    sysmount.fsconfig_string(context, "source", "keeping")
    sysmount.fsconfig_string(context, "subtype", "penstock")
    for key, value in {"fd": str(fd), **_WORDS}.items():
        sysmount.fsconfig_string(context, key, value)
    sysmount.fsconfig_create(context)
    mounted = sysmount.fsmount(context, MountAttr.NOSUID | MountAttr.NODEV)
    sysmount.move_mount(mounted, mountpoint)
    os.close(mounted)
    os.close(context)
    return fd


def _say(**words: int) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Mount and wait for signals."""
    mountpoint, directory, crash, far = sys.argv[1:]
    numbers = [signal.SIGUSR1, signal.SIGUSR2]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    keeper = Keeper.start()
    fd = _mount(mountpoint)
    entry = find_mount(mountpoint)
    assert entry is not None
    server = subprocess.Popen(
        ["sleep", "1000"],
        pass_fds=[fd],
        stdout=subprocess.DEVNULL,
        user=None if os.geteuid() else _NOBODY,
    )
    os.close(fd)
    pidfd = os.pidfd_open(server.pid)
    files = [os.path.join(directory, name) for name in ("record.json", "record.sock")]
    for path in files:
        with open(path, "w", encoding="ascii"):
            pass

    def tell() -> None:
        keeper.watch(
            mount_id=entry.mount_id,
            mountpoint=entry.mountpoint,
            connection=entry.minor,
            files=files,
            crash="keep" if crash == "keep" else "umount",
            servers=[pidfd],
        )

    if far == "early":
        keeper.servers([pidfd])
    else:
        tell()
    _say(keeper=keeper.pid, server=server.pid)
    while signal.sigwait(numbers) == signal.SIGUSR2:
        tell()
        _say(alive=keeper.alive)
    keeper.dismiss()


if __name__ == "__main__":
    main()
