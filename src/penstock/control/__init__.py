# SPDX-License-Identifier: Apache-2.0
"""Finding and steering running mounts: one socket and one record per mount.

``ControlServer`` runs in the process that serves a mount; :func:`records` lists mounts, also those
whose server has died; ``ControlClient`` asks one for its statistics or to unmount.
``protocol.py`` has the messages, ``directory.py`` says where the files lie and why that is safe,
``process.py`` keeps from signalling somebody else's process, ``leftovers.py`` finds files that
nobody needs any more.

Nothing here knows what a filesystem is: what the methods do is up to the handlers given.
"""

from penstock.control.client import ControlClient
from penstock.control.directory import runtime_directory
from penstock.control.leftovers import Leftover, find_leftovers, remove_leftover
from penstock.control.process import RecordedProcess, pid_namespace
from penstock.control.protocol import ABORT, PING, STATS, UNMOUNT, ControlError, ProtocolError
from penstock.control.record import (
    Listed,
    Record,
    State,
    find_record,
    open_recorded_process,
    records,
    remove_record,
)
from penstock.control.server import ControlServer, Handler

__all__ = [
    "ABORT",
    "PING",
    "STATS",
    "UNMOUNT",
    "ControlClient",
    "ControlError",
    "ControlServer",
    "Handler",
    "Leftover",
    "Listed",
    "ProtocolError",
    "Record",
    "RecordedProcess",
    "State",
    "find_leftovers",
    "find_record",
    "open_recorded_process",
    "pid_namespace",
    "records",
    "remove_leftover",
    "remove_record",
    "runtime_directory",
]
