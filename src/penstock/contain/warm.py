# SPDX-License-Identifier: Apache-2.0
"""What Python imports by itself when it first needs it, imported beforehand.

Inside the sandbox nothing can be imported. Modules that a module names at its top are there with
it; these are the others: the codecs, which are looked up by name, and what the standard library
imports inside functions that a server may get to.
"""

from __future__ import annotations

import codecs
import contextlib
import faulthandler
import importlib
import os
import time
from typing import Final

__all__ = ["import_all"]

_CODECS: Final = (
    "ascii",
    "latin-1",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "unicode_escape",
    "raw_unicode_escape",
)

_MODULES: Final = (
    "linecache",
    "tokenize",
    "traceback",
    "unicodedata",
    "warnings",
    "_suggestions",
)
"""What makes the text of an exception. Some are not there in every version of Python."""


def import_all() -> None:
    """Load what would be missing once the sandbox is closed, and fix what files would decide.

    The time zone becomes that of now: the C library looks at its file again and again, and would
    change to UTC once it cannot. Reports of crashes are switched off: they are for a terminal, and
    a process that crashes is to end at once.
    """
    for name in _CODECS:
        codecs.lookup(name)
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()
    faulthandler.disable()
