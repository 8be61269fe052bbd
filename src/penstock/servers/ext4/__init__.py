# SPDX-License-Identifier: Apache-2.0
"""ext2, ext3 and ext4 images, read-only.

``server.py`` has the operations, ``describe.py`` what ``info`` shows, ``options.py`` the ``-o``
words, for whom no format is imported. The format itself is :mod:`penstock.formats.ext4`.
"""

from penstock.servers.ext4.options import Ext4Options, parse_options

__all__ = ["Ext4Options", "parse_options"]
