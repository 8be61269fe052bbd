# SPDX-License-Identifier: Apache-2.0
"""The program of another process: does as it is told on standard input, one line of JSON each.

Uses the standard library alone and is started as a file, so that it starts fast.
"""

import fcntl
import json
import os
import signal
import struct
import sys

FLOCK = "hhqqi0q"


def _interrupt(number: int, _frame: object) -> None:
    raise InterruptedError(4, f"signal {number}")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags)


def _lock(fd: int, operation: int, length: int, start: int) -> None:
    fcntl.lockf(fd, operation, length, start)


def _test_lock(fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    query = struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0)
    answer = struct.unpack(FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return answer[0], answer[2], answer[3], answer[4]


def _flock(fd: int, operation: int) -> None:
    fcntl.flock(fd, operation)


def _read(fd: int, size: int, offset: int) -> str:
    return os.pread(fd, size, offset).decode("latin-1")


def _write(fd: int, text: str, offset: int) -> int:
    return os.pwrite(fd, text.encode("latin-1"), offset)


ACTIONS = {
    "open": _open,
    "close": os.close,
    "lock": _lock,
    "test_lock": _test_lock,
    "flock": _flock,
    "read": _read,
    "write": _write,
    "chmod": os.chmod,
    "unlink": os.unlink,
    "truncate": os.truncate,
    "chdir": os.chdir,
    "listdir": os.listdir,
}


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGUSR1, _interrupt)
    os.write(1, b'["ok", null]\n')
    for line in sys.stdin:
        name, *args = json.loads(line)
        try:
            answer = ["ok", ACTIONS[name](*args)]  # type: ignore[operator]
        except OSError as error:
            answer = ["error", error.errno]
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
