# SPDX-License-Identifier: Apache-2.0
"""What a server says of an image that it does not serve."""

from __future__ import annotations

from penstock.broker.protocol import Failed, FailureCode
from penstock.formats.errors import BadChecksum, FormatError
from penstock.servers.base import UnknownImage
from penstock.sys.reasons import explain

__all__ = ["failed"]


def failed(error: Exception) -> Failed:
    """Whose fault an exception of opening an image is, and the reason in one line."""
    if isinstance(error, MemoryError):
        return Failed(FailureCode.MEMORY, "takes more memory than its server may have")
    if isinstance(error, BadChecksum):
        code = FailureCode.CHECKSUM
    elif isinstance(error, (FormatError, UnknownImage)):
        code = FailureCode.IMAGE
    elif isinstance(error, OSError):
        code = FailureCode.SYSTEM
    elif isinstance(error, ValueError):
        code = FailureCode.OPTION
    else:
        what = f"internal error: {type(error).__name__}: {explain(error)}"
        return Failed(FailureCode.INTERNAL, what)
    return Failed(code, explain(error))
