# SPDX-License-Identifier: Apache-2.0
"""EROFS: the kernel's read-only filesystem. ``format.py`` has the facts of what is on disk."""

__all__ = ["format"]
