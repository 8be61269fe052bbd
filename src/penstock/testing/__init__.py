# SPDX-License-Identifier: Apache-2.0
"""For testing filesystems, ours and others'.

- :class:`~penstock.testing.memory.MemoryFilesystem`: every operation, in memory, read-write;
- :mod:`penstock.testing.posix`: what a POSIX filesystem does, as cases to run on a mount;
- :mod:`penstock.testing.fsx`: random operations on files, compared with a model.

May import everything; nothing in penstock imports it.
"""

from penstock.testing.memory import MemoryFilesystem, MemoryStatistics

__all__ = ["MemoryFilesystem", "MemoryStatistics"]
