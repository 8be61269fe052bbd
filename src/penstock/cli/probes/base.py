# SPDX-License-Identifier: Apache-2.0
"""What a finding is, and trying something in a child that cannot hang or leave anything behind."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, NamedTuple

from penstock.sys.process import wait_pidfd

__all__ = [
    "FIRST_NAMESPACE",
    "SECONDS",
    "Attempt",
    "Finding",
    "attempt",
    "file_text",
    "is_initial_user_namespace",
    "kernel_config",
    "kernel_symbol",
    "nameless_file",
]

SECONDS: Final = 1.0
"""For trials that take some milliseconds where nothing is wrong."""
_SECONDS: Final = 5.0
_MAX_ANSWER: Final = 64 * 1024
_LASTING: Final = "/var/tmp"  # noqa: S108 - files have no names there

FIRST_NAMESPACE: Final = "CAP_SYS_ADMIN in the first user namespace (root)"
"""What would enable most of what users lack."""


class Finding(NamedTuple):
    """What is known of one feature."""

    name: str
    title: str
    kernel: bool | None
    """Whether this kernel has it; None: cannot be told."""
    user: bool | None
    """Whether this user can make use of it."""
    detail: str
    """What was found, in a few words."""
    how: str
    """How that is known: what was tried, or which file was read."""
    enable: str = ""
    """What would bring it, where something is missing."""


class Attempt(NamedTuple):
    """How a trial in a child ended."""

    value: Any
    """What it returned; None if it failed."""
    errno: int
    """Of the OSError that ended it; 0 if none did."""
    reason: str
    """Why it failed; empty if it did not."""


def attempt(trial: Callable[[], Any], seconds: float = _SECONDS) -> Attempt:
    """Run a trial in a child process of its own and wait for it, but not for ever.

    The child may do to itself what it likes (namespaces, filters, descriptors): all of that ends
    with it. One that does not end in time is killed, with whatever it has started.

    Args:
        trial: returns something that JSON can carry.
        seconds: how long it may take.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(trial, write_end)
    os.close(write_end)
    try:
        answer = _read_all(read_end, time.monotonic() + seconds)
    finally:
        os.close(read_end)
        _end(pid)
    if answer is None:
        return Attempt(None, 0, f"no answer within {seconds:.0f} s")
    try:
        value, number, reason = json.loads(answer)
    except ValueError:
        return Attempt(None, 0, "the trial died")
    return Attempt(value, int(number), str(reason))


def _child(trial: Callable[[], Any], pipe: int) -> None:
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        answer: tuple[Any, int, str] = (None, 0, "")
        try:
            answer = (trial(), 0, "")
        except OSError as error:
            answer = (None, error.errno or 0, error.strerror or str(error))
        except Exception as error:  # noqa: BLE001  a trial's failure is a finding, not ours
            answer = (None, 0, f"{type(error).__name__}: {error}")
        os.write(pipe, json.dumps(answer).encode()[:_MAX_ANSWER])
    finally:
        os._exit(0)


def _read_all(fd: int, deadline: float) -> bytes | None:
    """What the child wrote, up to its end; None if that did not come in time."""
    answer = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while (remaining := deadline - time.monotonic()) > 0:
        if poller.poll(remaining * 1000):
            piece = os.read(fd, _MAX_ANSWER)
            if not piece or len(answer) > _MAX_ANSWER:
                return answer
            answer += piece
            if answer.endswith(b"]"):
                with contextlib.suppress(ValueError):
                    json.loads(answer)
                    return answer
    return None


def _end(pid: int) -> None:
    """Kill the child's process group and reap it, unless the kernel holds on to it."""
    for kill, number in ((os.killpg, pid), (os.kill, pid)):
        with contextlib.suppress(OSError):
            kill(number, signal.SIGKILL)
    pidfd = os.pidfd_open(pid)
    try:
        if wait_pidfd(pidfd, 1.0):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def nameless_file() -> Iterator[tuple[IO[bytes], str]]:
    """A file without a name, and the directory that it would be in: /var/tmp, as for what mounts
    keep themselves, or where else files may be made.

    Raises:
        OSError: nowhere.
    """
    with contextlib.ExitStack() as stack:
        place = _LASTING
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=place))
        except OSError:
            place = tempfile.gettempdir()
            file = stack.enter_context(tempfile.TemporaryFile(dir=place))
        yield file, place


def file_text(path: str) -> str | None:
    """The content of a small file of /proc or /sys, without white space around it; None if it
    cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return None


def is_initial_user_namespace() -> bool:
    """Whether root here is the machine's root."""
    return (file_text("/proc/self/uid_map") or "").split() == ["0", "0", "4294967295"]


@functools.cache
def _config() -> dict[str, str]:
    text = ""
    with contextlib.suppress(OSError, EOFError), gzip.open("/proc/config.gz", "rt") as file:
        text = file.read(4 << 20)
    if not text:
        with contextlib.suppress(OSError), open(f"/boot/config-{os.uname().release}") as boot:
            text = boot.read(4 << 20)
    pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name.removeprefix("CONFIG_"): value for name, _, value in pairs}


def kernel_config(name: str) -> bool | None:
    """Whether the kernel was built with CONFIG_``name``; None if its configuration is not shown."""
    config = _config()
    return config.get(name) in {"y", "m"} if config else None


@functools.cache
def _symbols() -> frozenset[str]:
    with contextlib.suppress(OSError), open("/proc/kallsyms", encoding="ascii") as file:
        return frozenset(words[2] for line in file if "fuse" in line and (words := line.split()))
    return frozenset()


def kernel_symbol(name: str) -> bool | None:
    """Whether the kernel has a function of FUSE with this name; None if it does not show them."""
    symbols = _symbols()
    return name in symbols if symbols else None
