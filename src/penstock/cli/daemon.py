# SPDX-License-Identifier: Apache-2.0
"""Serving in the background: a child that says when it is ready, and a parent that waits for that.

The child is forked before any thread exists. It says over a pipe either "ready" or what went wrong
and with which exit code; a pipe that closes without a word means that it died. So the parent ends
exactly when there is something to say, and never hangs on a child that is gone.

Once ready the child is a daemon: session of its own, working directory ``/``, standard streams on
/dev/null, and none of the descriptors that it inherited.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from penstock.cli.errors import ExitCode, Failure, explain, lack, where

__all__ = ["run_detached"]

_MAX_MESSAGE = 16 * 1024


def run_detached(work: Callable[[Callable[[], None]], int]) -> int:
    """Run ``work`` in a daemon and return when it is ready.

    Args:
        work: called in the child with a function that it calls once when it is ready; it returns
            the child's exit code.

    Returns:
        0 when the child is ready.

    Raises:
        Failure: as raised by ``work`` before it was ready, or because the child died.
        KeyboardInterrupt: the parent was interrupted; the child has been told to stop.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(work, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        try:
            said = pipe.read(_MAX_MESSAGE)
        except BaseException:
            os.kill(pid, signal.SIGTERM)
            raise
    if said[:1] == b"\0":
        return ExitCode.OK
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if said:
        code = next(code for code in ExitCode if code == said[0])
        raise Failure(os.fsdecode(said[1:]), code)
    if status == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    how = f"by signal {-status}" if status < 0 else f"with exit code {status}"
    raise Failure(f"the broker died at start {how}", ExitCode.MOUNT)


def _child(work: Callable[[Callable[[], None]], int], pipe: int) -> NoReturn:
    code = int(ExitCode.SYSTEM)
    try:
        inherited = _open_descriptors() - {0, 1, 2, pipe}
        os.setsid()
        code = work(lambda: _become_daemon(pipe, inherited))
    except Failure as failure:
        code = failure.code
        _say(pipe, code, str(failure))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent must learn of it
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        _say(pipe, code, lack(error) or f"{where(error)}{kind}{explain(error)}")
    finally:
        # Not sys.exit: what the parent registered to run at its exit is not the child's to run.
        os._exit(code)


def _open_descriptors() -> set[int]:
    """All descriptors. Listing them needs one itself, whose number is free again afterwards and
    must not be taken for an inherited one: so each is tried once the listing is done."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


def _say(pipe: int, code: int, message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, bytes([code]) + os.fsencode(message)[: _MAX_MESSAGE - 1])


def _become_daemon(pipe: int, inherited: set[int]) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    # Closed only now, so that a source given as /dev/fd/N could be opened.
    for fd in inherited | {null}:
        with contextlib.suppress(OSError):
            os.close(fd)
    os.write(pipe, b"\0")  # fails if the parent has gone: then nobody wants the mount
    os.close(pipe)
