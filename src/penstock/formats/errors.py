# SPDX-License-Identifier: Apache-2.0
"""The two ways in which an image can be at fault. A reader raises these and nothing else.

(``OSError`` from the block source passes through: then it is the medium that failed, not the
image.)
"""

from __future__ import annotations

import errno

__all__ = ["BadChecksum", "CorruptImage", "FormatError", "UnsupportedFeature"]


class FormatError(ValueError):
    """Base of what a reader says about an image. ``errno`` is what a filesystem answers."""

    errno: int = errno.EUCLEAN


class CorruptImage(FormatError):
    """The bytes contradict the format. Message: the structure, where it is, what was expected."""

    errno = errno.EUCLEAN


class BadChecksum(CorruptImage):
    """A metadata checksum does not match (the kernel's EFSBADCRC)."""

    errno = errno.EBADMSG


class UnsupportedFeature(FormatError):
    """The image, or one file in it, needs a feature that this reader does not have.

    The message names the feature.
    """

    errno = errno.EOPNOTSUPP
