# SPDX-License-Identifier: Apache-2.0
"""The ext2, ext3 and ext4 filesystems, read only."""
