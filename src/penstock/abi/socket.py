# SPDX-License-Identifier: Apache-2.0
"""What concerns sockets and Python's ``socket`` lacks, from <asm-generic/socket.h>."""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["SO_PASSRIGHTS", "UCRED"]

SO_PASSRIGHTS: Final = 83
"""0: the kernel refuses messages with descriptors, with EPERM at the sender's (Linux 6.16)."""

UCRED: Final = struct.Struct("=iII")
"""``struct ucred`` of SCM_CREDENTIALS and SO_PEERCRED: process, user, group (linux/socket.h)."""
