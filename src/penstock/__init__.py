# SPDX-License-Identifier: Apache-2.0
"""penstock: filesystems in Python at kernel speed."""

from penstock._version import __version__

__all__ = ["__version__"]
