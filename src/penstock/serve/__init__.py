# SPDX-License-Identifier: Apache-2.0
"""Putting a mount together: filesystem, session, transport, data paths and the kernel's half.

Start with :func:`mount`. ``attach.py`` has the three ways of mounting, ``options.py`` what can be
chosen.
"""

from penstock.serve.mount import Mount, MountStatistics, mount
from penstock.serve.options import MountOptions

__all__ = ["Mount", "MountOptions", "MountStatistics", "mount"]
