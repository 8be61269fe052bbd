# SPDX-License-Identifier: Apache-2.0
"""The program of another process: does as it is told on standard input, one line of JSON each.

A name with ``os.`` before it is a function of that module. Uses the standard library alone and is
started as a file, so that it starts fast.
"""

import fcntl
import json
import mmap
import os
import resource
import signal
import struct
import sys

FLOCK = "hhqqi0q"
OFD_SETLK = 37
VIEWS: list[mmap.mmap] = []


def _interrupt(number: int, _frame: object) -> None:
    raise InterruptedError(4, f"signal {number}")


def _open(path: str, flags: int, mode: int = 0o666) -> int:
    return os.open(path, flags, mode)


def _lock(fd: int, operation: int, length: int, start: int) -> None:
    fcntl.lockf(fd, operation, length, start)


def _test_lock(fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    query = struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0)
    answer = struct.unpack(FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return answer[0], answer[2], answer[3], answer[4]


def _ofd_lock(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, OFD_SETLK, struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0))


def _flock(fd: int, operation: int) -> None:
    fcntl.flock(fd, operation)


def _interrupted(seconds: float, name: str, *args: object) -> object:
    """Carry out a call that is to be interrupted by a signal after a while."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return ACTIONS[name](*args)  # type: ignore[operator]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read(fd: int, size: int, offset: int) -> str:
    return os.pread(fd, size, offset).decode("latin-1")


def _write(fd: int, text: str, offset: int) -> int:
    return os.pwrite(fd, text.encode("latin-1"), offset)


def _append(path: str, text: str, count: int) -> None:
    """Append a text so many times, each by one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(count):
        os.write(fd, text.encode("latin-1"))
    os.close(fd)


def _churn(directory: str, count: int) -> None:
    """Make and remove names in a directory, a few of them there at any time."""
    for number in range(count):
        os.mknod(f"{directory}/churn-{number}", 0o100600)
        if number >= 5:
            os.unlink(f"{directory}/churn-{number - 5}")


def _exchange(one: str, two: str, spare: str, count: int) -> None:
    """Give two files each other's name, over and over."""
    for _ in range(count):
        os.rename(one, spare)
        os.rename(two, one)
        os.rename(spare, two)


def _map(fd: int, length: int, prot: int, flags: int = mmap.MAP_SHARED) -> int:
    VIEWS.append(mmap.mmap(fd, length, flags, prot))
    return len(VIEWS) - 1


def _load(view: int, offset: int, length: int) -> str:
    return VIEWS[view][offset : offset + length].decode("latin-1")


def _store(view: int, offset: int, text: str) -> None:
    VIEWS[view][offset : offset + len(text)] = text.encode("latin-1")


def _sync(view: int) -> None:
    VIEWS[view].flush()


def _limit(size: int) -> None:
    """Let no file become longer by this process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _dies(view: int, offset: int) -> int:
    """The signal that a process gets for looking at a byte of a mapping; 0: none."""
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        VIEWS[view][offset]
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


ACTIONS = {
    "open": _open,
    "close": os.close,
    "lock": _lock,
    "test_lock": _test_lock,
    "ofd_lock": _ofd_lock,
    "flock": _flock,
    "interrupted": _interrupted,
    "read": _read,
    "write": _write,
    "append": _append,
    "churn": _churn,
    "exchange": _exchange,
    "map": _map,
    "load": _load,
    "store": _store,
    "sync": _sync,
    "dies": _dies,
    "limit": _limit,
    "chmod": os.chmod,
    "unlink": os.unlink,
    "truncate": os.truncate,
    "chdir": os.chdir,
    "listdir": os.listdir,
}


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGUSR1, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    os.write(1, b'["ok", null]\n')
    for line in sys.stdin:
        name, *words = json.loads(line)
        args = [tuple(word) if isinstance(word, list) else word for word in words]
        action = ACTIONS.get(name) or getattr(os, name.removeprefix("os."))
        try:
            answer = ["ok", action(*args)]  # type: ignore[operator]
        except OSError as error:
            answer = ["error", error.errno]
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
