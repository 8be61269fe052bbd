# SPDX-License-Identifier: Apache-2.0
"""The kernel's half of the protocol in user space: a filesystem read without mounting it.

Start with :class:`Client` (``vfs.py``): paths, directories, trees. ``nodes.py`` has inodes,
``files.py`` open files, ``names.py`` what a name may be, ``channel.py`` the handshake and requests,
``stream.py`` carries them over a socket.

Everything that comes back is treated as hostile: the server may be reading an image that was made
to do harm, or be in its power already.
"""

from penstock.client.channel import Channel, Transport
from penstock.client.files import File
from penstock.client.names import NAME_MAX, PATH_MAX, check_name
from penstock.client.nodes import Found, Listing, Node
from penstock.client.stream import ServerLost, StreamTransport
from penstock.client.vfs import MAX_LINKS, Client

__all__ = [
    "MAX_LINKS",
    "NAME_MAX",
    "PATH_MAX",
    "Channel",
    "Client",
    "File",
    "Found",
    "Listing",
    "Node",
    "ServerLost",
    "StreamTransport",
    "Transport",
    "check_name",
]
