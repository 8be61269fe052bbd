# SPDX-License-Identifier: Apache-2.0
"""Numbers of sockets that Python's ``socket`` lacks, from <asm-generic/socket.h>."""

from __future__ import annotations

from typing import Final

__all__ = ["SO_PASSRIGHTS"]

SO_PASSRIGHTS: Final = 83
"""0: the kernel refuses messages with descriptors, with EPERM at the sender's (Linux 6.16)."""
