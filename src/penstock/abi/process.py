# SPDX-License-Identifier: Apache-2.0
"""Numbers of clone(2) and unshare(2), from <linux/sched.h>."""

from __future__ import annotations

import enum

__all__ = ["CloneFlag"]


class CloneFlag(enum.IntFlag):
    """CLONE_NEW*: kinds of namespaces."""

    NEWTIME = 0x0000_0080
    NEWNS = 0x0002_0000
    NEWCGROUP = 0x0200_0000
    NEWUTS = 0x0400_0000
    NEWIPC = 0x0800_0000
    NEWUSER = 0x1000_0000
    NEWPID = 0x2000_0000
    NEWNET = 0x4000_0000
