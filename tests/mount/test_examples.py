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
from tests.support.ordinary import OrdinaryUser
from tests.support.requirements import PROJECT

HELLO = PROJECT / "examples" / "hello.py"
PASSTHROUGH = PROJECT / "examples" / "passthrough.py"


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


PASSING = """
import sys, penstock
from examples.passthrough import Visible
class Asked(Visible):
    def read(self, *words):
        asked.append("read")
        return super().read(*words)
    def write(self, *words):
        asked.append("write")
        return super().write(*words)
asked = []
mounted = []
options = penstock.MountOptions(datapath=sys.argv[2])
penstock.run(Asked(sys.argv[1]), sys.argv[3], options, ready=mounted.append)
said = mounted[0].statistics().datapath
print(said.datapath, said.opens.get("passthrough", 0), *sorted(set(asked)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the example shows: two files, and three things that it hides."""
    place = tmp_path / "folder"
    place.mkdir()
    (place / "large").write_bytes(bytes(range(256)) * 1024)
    (place / "small").write_bytes(b"small")
    (place / ".hidden").write_bytes(b"hidden")
    (place / "link").symlink_to("small")
    (place / "directory").mkdir()
    return place


@pytest.mark.requires("root")
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("auto", "passthrough 3 read"),  # the small file is read
        ("passthrough", "passthrough 4"),
        ("copy", "copy 0 read write"),
    ],
)
def test_passthrough(tmp_path: Path, folder: Path, word: str, said: str) -> None:
    point = tmp_path / "mount"
    point.mkdir()
    with serving(["-c", PASSING, str(folder), word], point) as process:
        assert sorted(os.listdir(point)) == ["large", "small"]
        for name in "large", "small":
            assert (point / name).read_bytes() == (folder / name).read_bytes()
            assert (point / name).stat().st_size == (folder / name).stat().st_size
        for name in ".hidden", "link", "directory", "absent":
            with pytest.raises(FileNotFoundError):
                (point / name).stat()
        with (point / "small").open("ab") as file:
            file.write(b", and appended to")
        assert (folder / "small").read_bytes() == b"small, and appended to"
        assert (point / "small").stat().st_size == 22
        (point / "large").write_bytes(b"truncated")
        assert (folder / "large").read_bytes() == b"truncated"
        with pytest.raises(PermissionError):
            (point / "small").chmod(0o777)
        subprocess.run(["umount", str(point)], check=True)
        assert process.communicate(timeout=20) == (f"{said}\n".encode(), b"")
        assert process.returncode == 0


@pytest.mark.requires("ordinary-user", "fusermount3")
def test_passthrough_as_an_ordinary_user(
    ordinary_user: OrdinaryUser, dev_fuse_for_all: None
) -> None:
    """Nothing can be registered, and the files can be read and written all the same."""
    folder, point = ordinary_user.folder("visible"), ordinary_user.folder("visible-mount")
    code = PASSTHROUGH.read_text(encoding="utf-8")
    program = ordinary_user.home / "passthrough.py"
    program.write_text(code, encoding="utf-8")
    process = ordinary_user.popen([ordinary_user.python, str(program), str(folder), str(point)])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        copy = "head -c 300000 /dev/zero > $0/f; cmp $0/f $1/f && echo x >> $1/f && cmp $0/f $1/f"
        done = ordinary_user.run(["sh", "-c", copy, str(folder), str(point)])
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        ordinary_user.run(["fusermount3", "-u", str(point)])
        assert process.communicate(timeout=20) == ("", "")


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
        ([str(PASSTHROUGH)], "usage: passthrough.py FOLDER DIR"),
        ([str(PASSTHROUGH), "/x", "/"], "passthrough.py: /x: No such file or directory"),
        ([str(PASSTHROUGH), "/", "/x"], "passthrough.py: /x: No such file or directory"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str) -> None:
    program = [] if words[:1] == [str(PASSTHROUGH)] else [str(HELLO)]
    done = subprocess.run(
        [sys.executable, *program, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{said}\n")


def test_readme_shows_the_example() -> None:
    shown = (PROJECT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2]
    code = HELLO.read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert shown.partition("```")[0] == code
