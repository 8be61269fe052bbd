# SPDX-License-Identifier: Apache-2.0
"""A read-write filesystem in memory that implements every operation of the protocol.

It is for testing transports, sessions and mounts, and an example of each operation done properly.
:class:`MemoryFilesystem` (below) joins the parts; ``state.py`` has what they share. Start with
``names.py`` and ``files.py``; ``locks.py`` shows how to answer later. Nothing here is fast for its
own sake, and everything is bounded: bytes and inodes by the arguments, locks by a constant, time
per request by the size of what exists.
"""

from penstock.testing.memory.control import ControlOperations
from penstock.testing.memory.directories import DirectoryOperations
from penstock.testing.memory.files import FileOperations
from penstock.testing.memory.names import NameOperations
from penstock.testing.memory.state import MemoryStatistics

__all__ = ["MemoryFilesystem", "MemoryStatistics"]


class MemoryFilesystem(NameOperations, FileOperations, DirectoryOperations, ControlOperations):
    """A filesystem in memory.

    Permissions are left to the kernel: mount with ``default_permissions`` (with POSIX_ACL, which is
    asked for, the kernel acts as if it were given). For polls to wake up, set ``wakeup``::

        filesystem = MemoryFilesystem(limit=16 << 20)
        with mount(filesystem, "/mnt") as mounted:
            filesystem.wakeup = mounted.notifier.poll_wakeup
            mounted.wait()

    Args:
        limit: bytes of data, symlink targets and extended attributes; more is ENOSPC.
        inodes: how many inodes, the root included; more is ENOSPC.
        max_links: names of a file, subdirectories of a directory plus 2; more is EMLINK.
        timeout: seconds for which the kernel may keep names and attributes.
        dax_window: bytes of the window that ``setupmapping`` records ranges of; 0: it is ENOSYS.
        clock: the present time in nanoseconds.
    """
