# SPDX-License-Identifier: Apache-2.0
"""Filesystems that penstock serves: each a format, or a directory, behind
:class:`penstock.fs.Operations`.

:func:`open_server` finds out what an image is and opens it; ``mirror`` serves
a directory. Each server is a package whose ``options.py`` is the only place of its ``-o`` words and
whose ``server.py`` has its operations.
"""

from penstock.servers.base import Server, ServerOption, UnknownImage
from penstock.servers.registry import IMAGE_TYPES, TYPES, open_server, server_options

__all__ = [
    "IMAGE_TYPES",
    "TYPES",
    "Server",
    "ServerOption",
    "UnknownImage",
    "open_server",
    "server_options",
]
