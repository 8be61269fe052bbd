# SPDX-License-Identifier: Apache-2.0
"""The host that a mirror's attacker is on, and the carrying out of all attempts.

``python -m tests.support.mirrorattacking FOLDER`` prints a JSON list of rows, see :class:`Row`.
It needs root, and FOLDER on a filesystem with file handles. All of it happens in namespaces of its
own, so what succeeds reaches nothing but what it has made.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from penstock.abi.process import NOBODY, CloneFlag
from penstock.cli.trees import opened_tree
from penstock.contain import sandbox
from penstock.contain.mirrorprofile import MIRROR_OF_A_USER, MIRROR_SERVER
from penstock.sys.devfuse import DEVICE
from penstock.sys.handles import encode_handle, encode_own_handle
from penstock.sys.namespaces import namespace_ids, unshare
from penstock.sys.tree import open_unchangeable
from tests.support.mirrorattacks import Attempt, Target, load
from tests.support.requirements import PROJECT

__all__ = ["BROKER", "Row", "measure"]

BROKER: Final = "broker"
_UNSHARE: Final = (
    "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc",
    "--kill-child", "--propagation", "private",
)  # fmt: skip
_ABSTRACT: Final = "attacked-mirror"
_SECONDS: Final = 20
_SUCCEEDED, _STOPPED, _BROKEN = range(10, 13)
_EXECUTED: Final = 0
"""The status of a program that was executed."""
_STOPPING: Final = {-signal.SIGSYS, -signal.SIGKILL}


class Row(NamedTuple):
    """One attempt under some layers."""

    attempt: str
    layers: tuple[str, ...]
    ordinary: bool
    """The server is an ordinary user's."""
    outcome: str
    """``succeeded``, ``stopped`` or ``broken``."""
    detail: str


class _Run(NamedTuple):
    attempt: Attempt
    layers: frozenset[str]
    ordinary: bool = False


def measure(folder: Path) -> list[Row]:
    """Carry all attempts out: with no layer, with each that must stop it, and with all."""
    words = [*_UNSHARE, sys.executable, "-m", "tests.support.mirrorattacking", str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, cwd=PROJECT, timeout=300)
    return [
        Row(name, tuple(layers), ordinary, outcome, detail)
        for name, layers, ordinary, outcome, detail in json.loads(done.stdout)
    ]


def _plan() -> Iterator[_Run]:
    layers = frozenset({*sandbox.LAYERS, BROKER})
    of_a_user = layers - MIRROR_OF_A_USER.without.keys() - {BROKER}
    for attempt in load().values():
        yield _Run(attempt, frozenset())
        for name in attempt.by:
            yield _Run(attempt, frozenset({name}))
        yield _Run(attempt, layers - MIRROR_SERVER.without.keys())
        if attempt.later or attempt.by & of_a_user:
            yield _Run(attempt, of_a_user, ordinary=True)


class _Host:
    """What is there to be attacked; made anew for each attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind("\0" + _ABSTRACT)
        for sock in (self._tcp, self._abstract):
            sock.listen(1000)
        self._count = 0

    @contextlib.contextmanager
    def place(self, run: _Run) -> Iterator[tuple[Path, Target]]:
        """The directory to serve, and what the attacker knows; it holds nothing yet."""
        self._count += 1
        top = self._folder / str(self._count)
        source, outside, devices = top / "source", top / "outside", top / "devices"
        owner = NOBODY if run.ordinary else 0
        for folder in (source, outside, devices):
            folder.mkdir(parents=True)
        (source / "file").write_text("file")
        (source / "absolute").symlink_to(outside / "secret")
        (source / "relative").symlink_to("../outside/secret")
        (source / "program").write_bytes(Path("/bin/true").read_bytes())
        (source / "program").chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(source / "listener"))
        listener.listen()
        for name, mode in (("secret", 0o600), ("public", 0o666)):
            (outside / name).write_text(name)
            (outside / name).chmod(mode)
        subprocess.run(["mount", "-t", "tmpfs", "devices", devices], check=True)
        os.mknod(devices / "null", 0o020666, os.makedev(1, 3))
        (devices / "null").chmod(0o666)
        for path in (source, outside, source / "file", outside / "secret", outside / "public"):
            os.chown(path, owner, owner)
        victim = subprocess.Popen(["sleep", "1000"], user=owner, group=owner)
        try:
            yield source, self._target(outside, devices, victim.pid)
        finally:
            victim.kill()
            victim.wait()
            listener.close()
            subprocess.run(["umount", devices], check=True)

    def _target(self, outside: Path, devices: Path, victim: int) -> Target:
        with _opened(outside, os.O_PATH) as folder, _opened(outside / "secret", os.O_PATH) as file:
            plain, connectable = encode_own_handle(file), encode_handle(folder, b"secret")
            handle = encode_own_handle(folder)
        port = self._tcp.getsockname()[1]
        return Target(
            -1, -1, -1, (-1, -1), -1, str(outside), str(devices), plain, connectable, handle,
            victim, _ABSTRACT, port,
        )  # fmt: skip


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _carry_out(host: _Host, run: _Run) -> Row:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host.place(run) as (source, target), ours, theirs:
        outside = namespace_ids()
        if run.attempt.cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
        pid = os.fork()
        if pid == 0:
            ours.close()
            _attack(run, source, target, theirs, outside)
        theirs.close()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        said = ours.recv(1 << 16, socket.MSG_DONTWAIT).decode() if _readable(ours) else ""
    outcome = "broken"
    if code == _STOPPED or code in _STOPPING:
        outcome = "stopped"
    elif code in {_SUCCEEDED, _EXECUTED}:
        outcome = "succeeded"
    layers = tuple(sorted(run.layers))
    return Row(run.attempt.name, layers, run.ordinary, outcome, said or f"status {code}")


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _attack(
    run: _Run, source: Path, target: Target, channel: socket.socket, outside: dict[str, int]
) -> NoReturn:
    """In a child: have in hand what a server has, close the sandbox, attack."""
    code = _BROKEN
    try:
        signal.alarm(_SECONDS)
        by_broker = BROKER in run.layers
        with contextlib.ExitStack() as held:
            if by_broker:
                tree = held.enter_context(opened_tree(str(source), read_only=False))
            else:
                tree = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
            opening = open_unchangeable if by_broker else os.open
            target = target._replace(
                tree=tree,
                device=opening(f"{target.devices}/null", os.O_RDWR),
                fuse=opening(DEVICE, os.O_RDWR),
                pipe=os.pipe(),
                channel=channel.fileno(),
            )
            if run.ordinary:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            elif "namespaces" in run.layers:
                _be_born_again()
            code = _close_and_attack(run, target, channel, outside)
    except BaseException:  # noqa: BLE001 - a mistake, for the test to show
        with contextlib.suppress(OSError):
            channel.send(traceback.format_exc().encode()[:60000])
    finally:
        os._exit(code)


def _be_born_again() -> None:
    """Go on in a child that is the first process of a pid namespace; this one ends as that does."""
    unshare(CloneFlag.NEWPID)
    pid = os.fork()
    if pid == 0:
        return
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(_STOPPED if code in _STOPPING else code)


def _close_and_attack(
    run: _Run, target: Target, channel: socket.socket, outside: dict[str, int]
) -> int:
    profile = MIRROR_OF_A_USER if run.ordinary else MIRROR_SERVER
    layers = run.layers - {BROKER}
    if layers:
        reports = sandbox.close(profile, layers=layers, outside=outside, tree=target.tree)
        missing = [report for report in reports if not report.in_force]
        assert not missing, missing
        assert {report.name for report in reports} == layers
        if run.attempt.later:
            assert sandbox.close_threads(profile).in_force
    try:
        run.attempt.run(target)
    except (OSError, MemoryError) as error:
        with contextlib.suppress(OSError):
            channel.send(f"{type(error).__name__}: {error}".encode())
        return _STOPPED
    return _SUCCEEDED


def main() -> None:
    """Carry out all of them."""
    host = _Host(Path(sys.argv[1]))
    rows = [_carry_out(host, run) for run in _plan()]
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
