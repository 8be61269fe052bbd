# SPDX-License-Identifier: Apache-2.0
"""The parent and the child of a mount in the background: who says what, and that nobody hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from penstock.cli.daemon import run_detached
from penstock.cli.errors import ExitCode, Failure

Ready = Callable[[], None]


def pipe_end(work: Callable[[Ready, int], int]) -> tuple[int, int]:
    """Run ``work`` detached with a pipe to write to; the exit code and the pipe's reading end."""
    read_end, write_end = os.pipe()

    def with_pipe(ready: Ready) -> int:
        # Inherited descriptors are closed when the child is ready, so keep one that is not.
        return work(ready, os.dup(write_end))

    try:
        return run_detached(with_pipe), read_end
    finally:
        os.close(write_end)


def test_ready_daemon() -> None:
    def work(ready: Ready, pipe: int) -> int:
        ready()
        streams = {os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)}
        facts = [str(os.getpid() == os.getsid(0)), os.getcwd(), *streams]
        os.write(pipe, " ".join(facts).encode())
        return 0

    code, read_end = pipe_end(work)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == b"True / /dev/null"
    assert code == 0
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0


def test_daemon_holds_no_inherited_descriptor() -> None:
    held_read, held_write = os.pipe()

    def work(ready: Ready, pipe: int) -> int:
        os.write(pipe, b"%d" % os.getpid())
        os.fstat(held_write)  # until it is ready it has it: a source may be /dev/fd/N
        ready()
        signal.pause()
        return 0

    code, read_end = pipe_end(work)
    assert code == 0
    pid = int(os.read(read_end, 20))
    os.close(held_write)
    os.close(read_end)
    with open(held_read, "rb") as pipe:
        assert pipe.read() == b""  # it ends, though the daemon lives
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def fail(error: BaseException) -> Callable[[Ready], int]:
    def work(_: Ready) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "message", "code"),
    [
        (fail(Failure("no\udcff", ExitCode.MOUNT)), "no\udcff", 32),
        (fail(Failure("wrong", ExitCode.USAGE)), "wrong", 1),
        (fail(RuntimeError("odd")), "RuntimeError: odd", 2),
        (fail(RuntimeError("can't start new thread")), "out of memory or threads", 2),
        (fail(MemoryError()), "out of memory", 2),
        (fail(OSError(5, "five", "/x")), "/x: five", 2),
        (fail(OSError(24, "Too many open files")), "too many open files (ulimit -n)", 2),
        (fail(SystemExit(3)), "SystemExit: 3", 2),
        (
            lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "the broker died at start by signal 9",
            32,
        ),
        (lambda _: os._exit(7), "died at start with exit code 7", 32),
        (lambda _: 0, "died at start with exit code 0", 32),
    ],
)
def test_failures_reach_the_parent(work: Callable[[Ready], int], message: str, code: int) -> None:
    with pytest.raises(Failure) as caught:
        run_detached(work)
    assert message in str(caught.value)
    assert caught.value.code == code
    with pytest.raises(ChildProcessError):
        os.wait()


def test_a_child_that_cannot_list_its_descriptors(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As without /proc: one word of it, from the parent."""

    def listed(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "listdir", listed)
    with pytest.raises(Failure, match=r"^/proc/self/fd: no such file or directory$"):
        run_detached(lambda _: 0)
    assert capfd.readouterr() == ("", "")


def test_interrupted_child() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_detached(fail(KeyboardInterrupt()))


def test_interrupted_parent_takes_the_child_along() -> None:
    """SIGINT reaches the parent alone, since the child has a session of its own."""
    script = textwrap.dedent("""
        import os, signal, sys
        from penstock.cli.daemon import run_detached

        def work(ready):
            signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"told"), os._exit(0)))
            os.write(1, b"begun ")
            signal.pause()

        try:
            run_detached(work)
        except KeyboardInterrupt:
            os.wait()
            sys.exit(130)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"begun "
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"told")


def test_child_whose_parent_died_stops() -> None:
    """Nobody waits for the mount any more: saying "ready" fails, and the work is undone."""
    script = textwrap.dedent("""
        import os, signal
        from penstock.cli.daemon import run_detached

        def work(ready):
            pipe = os.dup(1)
            os.kill(os.getppid(), signal.SIGKILL)
            while os.getppid() == parent:
                pass
            try:
                ready()
            except BrokenPipeError:
                os.write(pipe, b"undone")
                raise

        parent = os.getpid()
        run_detached(work)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"undone")
