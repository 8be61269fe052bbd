# SPDX-License-Identifier: Apache-2.0
"""The broker: mounts, hands out descriptors, and supervises servers that it does not trust.

It parses nothing of an image and imports nothing that does. Start with ``mount.py``, one mount from
beginning to end. ``protocol.py`` has the messages between broker and server, ``channel.py`` carries
them (docs/broker-protocol.md says who may send what when), ``peer.py`` is the broker's view of one
server, and ``launch.py`` starts it. ``attach.py`` has the three ways of mounting, ``handshake.py``
answers INIT, ``handover.py`` hands the connection over. Data that the kernel carries: ``files.py``
keeps what ``carriers.py`` has found possible, ``lens.py`` makes files of an image's mappings,
``lensfiles.py`` keeps them together with their registrations, ``registrar.py`` serves the servers'
requests for backing files, which ``backings.py`` registers. ``keeper.py`` unmounts when the broker
dies, ``opener.py`` opens files by handle for the servers of directories.

Each is imported by who needs it: the server's side needs little.
"""

__all__ = [
    "attach",
    "backings",
    "carriers",
    "channel",
    "codec",
    "ending",
    "files",
    "handover",
    "handshake",
    "keeper",
    "launch",
    "lens",
    "lensfiles",
    "mount",
    "opener",
    "options",
    "outcome",
    "peer",
    "protocol",
    "registrar",
    "statistics",
]
