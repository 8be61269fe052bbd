# SPDX-License-Identifier: Apache-2.0
"""Putting a mount together: filesystem, session, transport, data paths and the kernel's half.

Start with :func:`mount`, or with :func:`run` for a program that does nothing else. ``attach.py``
has the three ways of mounting, ``options.py`` what can be chosen, ``ending.py`` signals.
"""

from penstock.serve.ending import Ending, Stopped, ending, run
from penstock.serve.mount import Mount, MountStatistics, mount
from penstock.serve.options import MountOptions

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
