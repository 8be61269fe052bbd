# SPDX-License-Identifier: Apache-2.0
"""Bringing messages to a session and carrying replies out.

``devfuse.py`` is the kernel's device, ``memory.py`` needs no kernel; ``body.py`` moves file data by
copy or splice, ``polling.py`` decides how long to look for the next request before sleeping. A
transport knows nothing of what messages mean.
"""

from penstock.transport.devfuse import DevFuse, Prepared
from penstock.transport.memory import MemoryTransport
from penstock.transport.polling import parse_poll

__all__ = ["DevFuse", "MemoryTransport", "Prepared", "parse_poll"]
