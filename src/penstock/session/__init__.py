# SPDX-License-Identifier: Apache-2.0
"""The protocol engine: dispatch, late answers, notifications, statistics.

Start with ``session.py``. ``handlers.py`` has one row per opcode, ``lookups.py`` the kernel's
lookup counts, ``notifier.py`` what is said unasked, ``ports.py`` what a session needs of the world.
Nothing here does I/O: no descriptors, no sockets, no clocks that wait. Transports bring messages
and carry replies away.
"""

from penstock.negotiate import Limits
from penstock.session.notifier import Notifier
from penstock.session.ports import (
    ZEROS,
    Backings,
    DataPaths,
    FileBody,
    FileRange,
    Origin,
    Reply,
    Sink,
)
from penstock.session.session import Session
from penstock.session.statistics import RequestStatistics, SessionStatistics

__all__ = [
    "ZEROS",
    "Backings",
    "DataPaths",
    "FileBody",
    "FileRange",
    "Limits",
    "Notifier",
    "Origin",
    "Reply",
    "RequestStatistics",
    "Session",
    "SessionStatistics",
    "Sink",
]
