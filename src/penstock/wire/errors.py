# SPDX-License-Identifier: Apache-2.0
"""The one error of this package."""

from __future__ import annotations

__all__ = ["WireError"]


class WireError(ValueError):
    """Bytes that are no message, or values that do not make one.

    The text says what was read or written, where it failed and what was expected.
    """
