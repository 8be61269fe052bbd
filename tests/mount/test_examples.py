# SPDX-License-Identifier: Apache-2.0
"""The examples work as they stand, and the README shows what is in them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from penstock.sys.process import process_name
from tests.support.commands import refused
from tests.support.requirements import PROJECT

HELLO = PROJECT / "examples" / "hello.py"


def wait_mounted(point: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the kernel to say that its mounts have changed, until ``point`` is one of them."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        changes = select.poll()
        changes.register(mounts, select.POLLERR | select.POLLPRI)
        for _ in range(1000):
            mounts.seek(0)
            if f" {point} ".encode() in mounts.read():
                return
            assert process.poll() is None, "the example ended"
            changes.poll(1000)
    pytest.fail("not mounted")


@contextlib.contextmanager
def serving(program: list[str], point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that mounts at ``point``, once it has; ended the hard way if it is still there."""
    process = subprocess.Popen(
        [sys.executable, *program, str(point)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    try:
        wait_mounted(point, process)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if find_mount(str(point)) is not None:
            subprocess.run(["umount", "--lazy", str(point)], check=False)


@pytest.fixture
def hello(tmp_path: Path) -> Iterator[Path]:
    """The example, mounted; afterwards it must end by itself, and well."""
    with serving([str(HELLO)], tmp_path) as process:
        yield tmp_path
        subprocess.run(["umount", str(tmp_path)], check=True)
        assert process.communicate(timeout=20) == (b"mounted\n", b"")
        assert process.returncode == 0


def test_hello(hello: Path) -> None:
    assert [path.name for path in hello.iterdir()] == ["hello"]
    assert (hello / "hello").read_bytes() == b"Hello from Python.\n"
    assert (hello / "hello").stat().st_mode == 0o100444
    with pytest.raises(FileNotFoundError):
        (hello / "absent").stat()
    with pytest.raises(OSError) as refused:
        (hello / "new").mkdir()
    assert refused.value.errno == errno.ENOSYS


def test_stats_say_whose_mount_it_is(tmp_path: Path) -> None:
    with serving([str(HELLO)], tmp_path) as process:
        code, line = refused("stats", tmp_path)
        assert code == 2
        name = process_name(process.pid)
        told = f" by {name} (process {process.pid})" if connections_are_named(process.pid) else ""
        assert line == f"{tmp_path}: a filesystem mounted{told} that keeps no statistics here"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def connections_are_named(pid: int) -> bool:
    """Whether this kernel names the connection of a /dev/fuse descriptor."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return any("fuse_connection:" in text for text in texts)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_unmounts(tmp_path: Path, number: signal.Signals) -> None:
    """Also one that comes as soon as the mount can be seen, when ``mount`` has yet to return."""
    with serving([str(HELLO)], tmp_path) as process:
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == b""
        assert process.returncode == 0
        assert find_mount(str(tmp_path)) is None


def test_a_signal_unmounts_what_is_in_use(tmp_path: Path) -> None:
    with serving([str(HELLO)], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        user = os.open(tmp_path, os.O_RDONLY)
        try:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=20)[1]
        finally:
            os.close(user)
        assert process.returncode == 0
        assert said.count(b"\n") == 1
        assert said.endswith(b"busy; detaching it\n")
        assert find_mount(str(tmp_path)) is None


HANGS = """
import os, sys, penstock
from examples.hello import Hello
class Hangs(Hello):
    def init(self, connection):
        os.write(1, b"asked")
        os.read(0, 1)
penstock.run(Hangs(), sys.argv[1])
"""


def test_a_signal_while_mounting_undoes_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert process.stdout is not None
    try:
        assert os.read(process.stdout.fileno(), 5) == b"asked"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert find_mount(str(tmp_path)) is None
    finally:
        process.kill()
        assert process.communicate()[1] == b""


HANDLERS = """
import os, signal, sys, threading, penstock
from examples.hello import Hello
signal.signal(signal.SIGHUP, signal.SIG_IGN)
mine = signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"mine "))
def ready(mounted):
    assert mounted.mounted
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    mounted.unmount()
before = [signal.getsignal(each) for each in (1, 2, 15)]
penstock.run(Hello(), sys.argv[1], ready=ready)
assert [signal.getsignal(each) for each in (1, 2, 15)] == before
def ready(mounted):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Timer(0, mounted.unmount).start()
thread = threading.Thread(target=lambda: penstock.run(Hello(), sys.argv[1], ready=ready))
thread.start()
thread.join()
os.write(1, b"end")
"""


def test_handlers_are_the_callers_again(tmp_path: Path) -> None:
    """Ignored signals stay ignored, others are put back, and only the main thread's are taken."""
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS, str(tmp_path)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"mine end", b"")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: hello.py DIR"),
        (["a", "b"], "usage: hello.py DIR"),
        (["/nowhere"], "hello.py: /nowhere: No such file or directory"),
        ([str(HELLO)], f"hello.py: {HELLO}: Not a directory"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HELLO), *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{said}\n")


def test_readme_shows_the_example() -> None:
    shown = (PROJECT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2]
    code = HELLO.read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert shown.partition("```")[0] == code
