# SPDX-License-Identifier: Apache-2.0
"""The ext4 format, and ext2 and ext3, which are subsets of it: read from a block source.

Start with :class:`~penstock.formats.ext4.reader.Ext4Reader`. ``format.py`` has the facts, the other
modules one structure each. Nothing here knows of FUSE; nothing here writes.
"""
