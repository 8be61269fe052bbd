# SPDX-License-Identifier: Apache-2.0
"""The process behind :func:`tests.support.mounts.serve_in_process`: mounts, serves, does as told.

Started as ``python -m tests.support.mountserver FD``. Should anything hang, the process shows where
and ends itself after a while. With it ends the connection, and who waits for the mount gets an
error.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
from multiprocessing.connection import Connection
from typing import Any

from penstock.serve import mount


class Records(logging.Handler):
    """Keeps what penstock logs, for tests to ask for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep level, text and the exception's class."""
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        self.lines.append(f"{record.levelname} {record.getMessage()} {error}".strip())


def main() -> None:
    """Serve until the other end is closed."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    factory, path, options, seconds = connection.recv()
    faulthandler.dump_traceback_later(seconds, exit=True)
    records = Records()
    logging.getLogger("penstock").addHandler(records)
    filesystem = factory()
    try:
        mounted = mount(filesystem, path, options)
    except Exception as error:  # noqa: BLE001 - the test is to see it
        connection.send((error, None))
        return
    with mounted:
        if hasattr(filesystem, "wakeup"):
            filesystem.wakeup = mounted.notifier.poll_wakeup
        connection.send((None, None))
        while True:
            try:
                function, args = connection.recv()
            except EOFError:
                break
            try:
                connection.send((None, function((filesystem, mounted, records.lines), *args)))
            except Exception as error:  # noqa: BLE001 - the test is to see it
                connection.send((error, None))


if __name__ == "__main__":
    main()
