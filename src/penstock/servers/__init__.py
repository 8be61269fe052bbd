# SPDX-License-Identifier: Apache-2.0
"""Filesystems that penstock serves: each a format behind :class:`penstock.fs.Operations`.

:func:`open_server` finds out what an image is and opens it. Each server is a package whose
``options.py`` is the only place of its ``-o`` words and whose ``server.py`` has its operations.
"""

from penstock.servers.base import Server, ServerOption, UnknownImage
from penstock.servers.registry import TYPES, open_server, server_options

__all__ = ["TYPES", "Server", "ServerOption", "UnknownImage", "open_server", "server_options"]
