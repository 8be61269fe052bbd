# SPDX-License-Identifier: Apache-2.0
"""On-disk formats over a :class:`BlockSource`. Know nothing of FUSE."""
