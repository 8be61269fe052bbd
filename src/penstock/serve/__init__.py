# SPDX-License-Identifier: Apache-2.0
"""Putting a mount together: filesystem, session, transport, data paths and the kernel's half.

Start with :func:`mount`, or with :func:`run` for a program that does nothing else. ``ending.py``
has signals; how the kernel is told is in :mod:`penstock.broker.attach`.
"""

from penstock.broker.options import MountOptions
from penstock.serve.ending import Ending, Stopped, ending, run
from penstock.serve.mount import Mount, MountStatistics, mount

__all__ = [
    "Ending",
    "Mount",
    "MountOptions",
    "MountStatistics",
    "Stopped",
    "ending",
    "mount",
    "run",
]
