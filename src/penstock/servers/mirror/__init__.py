# SPDX-License-Identifier: Apache-2.0
"""A directory, mirrored read-write.

``server.py`` puts the parts together: ``names.py``, ``attributes.py``, ``files.py``,
``directories.py``, ``xattrs.py`` and ``locks.py`` have the operations, each a mixin over what
``state.py`` holds. ``source.py`` finds inodes again beneath the directory, ``nodes.py`` is what is
kept of each, ``descriptors.py`` what is kept open. ``rights.py`` says what the server needs to be
allowed and why, ``options.py`` has the ``-o`` words.
"""

from penstock.servers.mirror.options import MirrorOptions, parse_options

__all__ = ["MirrorOptions", "parse_options"]
