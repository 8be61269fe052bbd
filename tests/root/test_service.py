# SPDX-License-Identifier: Apache-2.0
"""The fuse service: a mount from the helper's hello to umount, and each way of going wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from penstock.sys.process import process_state
from tests.support.commands import mount_flags, wait_for
from tests.support.images import MIB, cached_image, make_tree, session_dir
from tests.support.servicehelper import Answer, Helper, arguments_file, be, memory_file
from tests.support.services import SERVE, Server, status, words

pytestmark = [pytest.mark.requires("fuse", "mke2fs")]

ALL = ["OPEN", "TYPE", "NAME", "MNTP", "OPTS", "MTAB", "DOIT", "BYEE"]


@pytest.fixture(scope="module")
def tree() -> Path:
    top = session_dir() / "service-tree"
    return top if top.exists() else make_tree(top, files=30)


@pytest.fixture(scope="module")
def image(tree: Path) -> Path:
    return cached_image(size=128 * MIB, tree=tree)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    while find_mount(str(path)) is not None:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


def kinds(helper: Helper) -> list[str]:
    return [kind for kind, _ in helper.said]


def said(helper: Helper, kind: str) -> bytes:
    (body,) = (body for each, body in helper.said if each == kind)
    return body


def test_from_hello_to_umount(server: Server, tree: Path, image: Path, place: Path) -> None:
    options = "ro,nofail,_netdev,user,x-systemd.automount,fsname=an image,noexec"
    helper = Helper(server.socket, words(image, place, options))
    assert helper.run() == 0
    assert kinds(helper) == ALL
    assert said(helper, "OPEN")[:16] == be(os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, 0, 0)
    assert said(helper, "NAME") == b"an image\0"
    assert said(helper, "OPTS") == b"default_permissions\0"
    assert said(helper, "DOIT") == be(1 | 2 | 4 | 8)  # ro, nosuid, nodev, noexec
    mounted = find_mount(str(place))
    assert mounted is not None
    assert (mounted.fstype, mounted.source) == ("fuse.penstock-ext4", "an image")
    assert {"ro", "nosuid", "nodev", "noexec"} <= mount_flags(place)
    readers = [
        subprocess.Popen(
            ["diff", "--recursive", "--no-dereference", "--exclude=lost+found", tree, place],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for reader in readers:
        output = reader.communicate(timeout=60)[0]
        # Devices and the like are not looked into.
        assert all(" while file " in line or " is a " in line for line in output.splitlines())
        assert "differ\n" not in output
    subprocess.run(["umount", str(place)], check=True)
    assert server.end() == (0, [f"{image} on {place}"])


def held(pid: int) -> set[str]:
    """What a process has open, but for pipes and event descriptors."""
    names = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.add(path.readlink().name)
    return {name for name in names if not name.startswith(("pipe:[", "anon_inode:[eventfd]"))}


def test_the_server_is_contained(server: Server, image: Path, place: Path) -> None:
    assert Helper(server.socket, words(image, place)).run() == 0
    pid = server.process.pid
    fields = status(pid)
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert Path(f"/proc/{pid}/root").readlink() != Path("/")
    # It waits with closing its socket until the helper is gone.
    wait_for(lambda: held(pid) == {"null", "fuse", image.name}, "no more descriptors")
    subprocess.run(["umount", str(place)], check=True)
    assert server.end()[0] == 0


def test_a_block_device(server: Server, image: Path, place: Path) -> None:
    command = ["losetup", "--find", "--show", "--read-only", str(image)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        helper = Helper(server.socket, words(Path(device), place))
        assert helper.run() == 0
        assert kinds(helper)[:2] == ["BDEV", "TYPE"]
        assert said(helper, "BDEV")[8:12] == be(1)  # quiet
        assert (place / "lost+found").is_dir()
        subprocess.run(["umount", str(place)], check=True)
        assert server.end()[0] == 0
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_file_in_dev(server: Server, image: Path, place: Path) -> None:
    """What is refused as block device is asked for as a file."""
    copy = Path("/dev/shm") / f"penstock-test-{secrets.token_hex(4)}"
    copy.write_bytes(image.read_bytes())
    try:
        helper = Helper(server.socket, words(copy, place))
        assert helper.run() == 0
        assert kinds(helper)[:3] == ["BDEV", "OPEN", "TYPE"]
    finally:
        copy.unlink()
    subprocess.run(["umount", str(place)], check=True)
    assert server.end()[0] == 0


# Words


def test_words_of_the_mount(server: Server, image: Path, place: Path) -> None:
    options = "suid,dev,allow_other,max_read=65536,nosymfollow,request_timeout=60,workers=3"
    helper = Helper(server.socket, [*words(image, place, options), "-n", "-v", "-s"])
    assert helper.run() == 0
    assert said(helper, "DOIT") == be(1 | 256)  # ro and nosymfollow: suid and dev are the caller's
    assert said(helper, "OPTS") == b"default_permissions,allow_other,max_read=65536\0"
    assert said(helper, "MTAB") == b"-n,default_permissions,allow_other,max_read=65536\0"
    # The first thread, the workers, and the one that wakes another worker in time.
    assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) == 1 + 3 + 1
    subprocess.run(["umount", str(place)], check=True)
    assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("bogus", 1, "unknown option 'bogus'"),
        ("sandbox=no", 1, "a service closes its sandbox always"),
        ("sandbox=strict", 32, "not in force: namespaces"),  # started without a pid namespace
        ("workers=0", 1, "is not in 1 to"),
        ("partition=1", 32, "no partition table"),
        ("remount", 1, "cannot be mounted anew"),
    ],
)
def test_words_that_are_refused(
    server: Server, image: Path, place: Path, options: str, code: int, says: str
) -> None:
    helper = Helper(server.socket, words(image, place, options))
    assert helper.run() == code
    returned, lines = server.end()
    assert (returned, len(lines)) == (code, 1)
    assert says in lines[0]
    assert not helper.mounted


def test_callers_without_allow_other(server: Server, image: Path, place: Path) -> None:
    helper = Helper(server.socket, words(image, place, "allow_other"), flags=0)
    assert helper.run() == 1
    assert kinds(helper) == ["BYEE"]
    assert server.end() == (1, ["-o allow_other: /etc/fuse.conf does not let this user"])


def test_fake(server: Server, image: Path, place: Path) -> None:
    helper = Helper(server.socket, [*words(image, place), "-f"])
    assert helper.run() == 0
    assert kinds(helper) == ["BYEE"]
    assert server.end() == (0, [])


def test_words_without_effect_are_named(server: Server, image: Path, place: Path) -> None:
    helper = Helper(server.socket, words(image, place, "crash=keep,subtype=x"))
    assert helper.run() == 0
    subprocess.run(["umount", str(place)], check=True)
    code, lines = server.end()
    assert code == 0
    assert lines[:2] == [
        "warning: -o crash: has no effect in a service",
        "warning: -o subtype: has no effect in a service",
    ]


# Images


@pytest.mark.parametrize("what", ["zeros", "damaged", "missing", "directory", "fifo"])
def test_images_that_are_none(
    server: Server, image: Path, place: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "image"
    if what == "zeros":
        path.write_bytes(bytes(MIB))
    elif what == "damaged":
        data = bytearray(image.read_bytes())
        data[1024 + 0x20] ^= 0xFF  # blocks per group
        path.write_bytes(data)
    elif what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    helper = Helper(server.socket, words(path, place))
    assert helper.run() == 32
    assert kinds(helper) == ["OPEN", "BYEE"]
    code, lines = server.end()
    assert (code, len(lines)) == (32, 1)
    assert lines[0].startswith(f"{path}: ")


# Malformed packets


def replace(name: str, packet: bytes) -> Callable[[str, Answer], Answer | None]:
    """Have one packet replaced; its descriptors stay."""
    return lambda each, answer: (packet, answer[1]) if each == name else answer


def change(name: str, how: Callable[[Answer], Answer]) -> Callable[[str, Answer], Answer | None]:
    return lambda each, answer: how(answer) if each == name else answer


def file_packet(name: bytes, code: int = 0) -> bytes:
    return b"FILE" + be(code) + name + b"\0"


def with_arguments(data: bytes) -> Callable[[Answer], Answer]:
    def how(answer: Answer) -> Answer:
        os.dup2(fd := memory_file(data), answer[1][0])
        os.close(fd)
        return answer

    return how


def with_other(path: str, flags: int = os.O_RDONLY) -> Callable[[Answer], Answer]:
    """Another file behind the same descriptor number."""

    def how(answer: Answer) -> Answer:
        os.dup2(fd := os.open(path, flags | os.O_CLOEXEC), answer[1][0])
        os.close(fd)
        return answer

    return how


HELLO = b"SAFT" + struct.pack(">HHI", 1, 1, 3)
MALFORMED: dict[str, tuple[Callable[[str, Answer], Answer | None], str]] = {
    "hello, short": (replace("hello", HELLO[:-1]), "HELLO has 11 bytes"),
    "hello, long": (replace("hello", HELLO + bytes(1)), "HELLO has 13 bytes"),
    "hello, another packet": (replace("hello", b"REPL" + be(0)), "REPLY instead of HELLO"),
    "hello, no packet": (replace("hello", b"\0"), "1 bytes instead of HELLO"),
    "hello, versions": (replace("hello", b"SAFT" + struct.pack(">HHI", 2, 9, 3)), "versions 2 to"),
    "hello, flags": (replace("hello", b"SAFT" + struct.pack(">HHI", 1, 1, 7)), "unknown flags"),
    "hello, with a descriptor": (
        change("hello", lambda answer: (answer[0], [0])), "descriptors unasked",
    ),
    "hello, huge": (replace("hello", HELLO + bytes(70000)), "too long"),
    "argv, another name": (replace("argv", file_packet(b"args")), "another file"),
    "argv, no descriptor": (change("argv", lambda a: (a[0], [])), "no descriptor"),
    "argv, two descriptors": (change("argv", lambda a: (a[0], a[1] * 2)), "descriptors unasked"),
    "argv, no file": (replace("argv", b"FILE" + be(0)), "has no name"),
    "argv, another packet": (replace("argv", HELLO), "HELLO instead of FILE"),
    "argv, an error": (replace("argv", file_packet(b"argv", 13)), "permission denied"),
    "argv, no errno": (replace("argv", file_packet(b"argv", 1 << 31)), "no errno"),
    "argv, empty": (change("argv", with_arguments(b"")), "no command line"),
    "argv, damaged": (
        change("argv", with_arguments(arguments_file(["x"])[:-1] + b"x")), "does not end",
    ),
    "argv, huge": (change("argv", with_arguments(bytes(1 << 20))), "no command line"),
    "argv, not to be read": (change("argv", with_other("/dev/null", os.O_WRONLY)), "Bad file"),
    "argv, a directory": (change("argv", with_other("/")), "is a directory"),
    "argv, no words": (change("argv", with_arguments(arguments_file(["x"]))), "SOURCE and DIR"),
    "fusedev, another": (change("fusedev", with_other("/dev/null", os.O_RDWR)), "not /dev/fuse"),
    "fusedev, no descriptor": (change("fusedev", lambda a: (a[0], [])), "no descriptor"),
    "fusedev, another name": (replace("fusedev", file_packet(b"argv")), "another file"),
    "image, another name": (replace("OPEN", file_packet(b"/etc/passwd")), "another file"),
    "image, no descriptor": (change("OPEN", lambda a: (a[0], [])), "no descriptor"),
    "image, two descriptors": (change("OPEN", lambda a: (a[0], a[1] * 2)), "descriptors unasked"),
    "image, a reply": (replace("OPEN", b"REPL" + be(0)), "no name"),
    "image, a device": (change("OPEN", with_other("/dev/zero")), "neither a regular file"),
    "image, a path": (change("OPEN", with_other("/etc/passwd", os.O_PATH)), "Bad file"),
    "image, not to be read": (change("OPEN", with_other("/dev/fuse", os.O_RDWR)), "neither"),
    **{
        f"{kind}, {what}": (replace(kind, packet), says)
        for kind in ALL[1:-1]
        for what, packet, says in (
            ("short", b"REPL" + bytes(3), "REPLY has 7 bytes"),
            ("long", b"REPL" + be(0, 0), "REPLY has 12 bytes"),
            ("no errno", b"REPL" + be(4096), "no errno"),
            ("another packet", b"FILE" + be(0), "FILE instead of REPLY"),
            ("huge", b"REPL" + bytes(66000), "too long"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_packets(server: Server, image: Path, place: Path, case: str) -> None:
    tamper, says = MALFORMED[case]
    helper = Helper(server.socket, words(image, place), tamper=tamper)
    code = helper.run()
    returned, lines = server.end()
    assert code == returned
    assert returned in {1, 2, 32}
    assert len(lines) == 1
    assert says in lines[0]
    assert kinds(helper)[-1:] in ([], ["BYEE"])


def test_no_descriptor_is_taken_after_the_image(server: Server, image: Path, place: Path) -> None:
    refused: list[int | None] = []

    def tamper(name: str, answer: Answer) -> Answer:
        if name == "TYPE":
            try:
                socket.send_fds(server.socket, [answer[0]], [0])
            except OSError as error:
                refused.append(error.errno)
                return answer
            return b"REPL" + be(5), []
        return answer

    helper = Helper(server.socket, words(image, place), tamper=tamper)
    code = helper.run()
    if refused:  # the kernel has SO_PASSRIGHTS
        assert (refused, code) == ([errno.EPERM], 0)
        subprocess.run(["umount", str(place)], check=True)
        assert server.end()[0] == 0
    else:
        assert code == 2
        assert "unasked" in server.end()[1][0]


@pytest.mark.parametrize("kind", ["argv", "fusedev", "OPEN", "TYPE", "MNTP"])
def test_answers_that_nobody_asked_for(server: Server, image: Path, place: Path, kind: str) -> None:
    pid = server.process.pid

    def tamper(name: str, answer: Answer) -> Answer:
        if name != kind:
            return answer
        os.kill(pid, signal.SIGSTOP)  # so that both are there when it looks
        wait_for(lambda: process_state(pid) == "T", "the server to stop")
        for _ in range(2):
            socket.send_fds(server.socket, [answer[0]], answer[1])
        os.kill(pid, signal.SIGCONT)
        return b"", []

    helper = Helper(server.socket, words(image, place), tamper=tamper)
    assert helper.run() == 2
    code, lines = server.end()
    assert (code, len(lines)) == (2, 1)
    assert "unasked" in lines[0] or "another file" in lines[0]
    assert not helper.mounted


@pytest.mark.parametrize("kind", ["hello", "argv", "fusedev", *ALL[:-1]])
def test_a_helper_that_goes(server: Server, image: Path, place: Path, kind: str) -> None:
    helper = Helper(
        server.socket, words(image, place), tamper=lambda name, a: None if name == kind else a
    )
    assert helper.run() is None
    code, lines = server.end()
    assert code == 2
    assert lines == [lines[0]]
    assert "the mount helper has gone" in lines[0]


@pytest.mark.parametrize("kind", ALL[1:-1])
def test_a_helper_that_cannot(server: Server, image: Path, place: Path, kind: str) -> None:
    helper = Helper(
        server.socket, words(image, place), tamper=replace(kind, b"REPL" + be(errno.EPERM))
    )
    assert helper.run() == 32
    code, lines = server.end()
    assert (code, len(lines)) == (32, 1)
    assert lines[0].startswith(f"{image}: the mount helper: ")
    assert kinds(helper)[-2:] == [kind, "BYEE"]


# The end


def test_sigterm_ends_what_is_served(server: Server, image: Path, place: Path) -> None:
    assert Helper(server.socket, words(image, place)).run() == 0
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
    with pytest.raises(OSError) as caught:
        os.stat(place / "lost+found")
    assert caught.value.errno == errno.ENOTCONN
    subprocess.run(["umount", str(place)], check=True)


def test_sigterm_while_the_helper_is_slow(server: Server, image: Path, place: Path) -> None:
    def tamper(name: str, answer: Answer) -> Answer:
        if name == "OPEN":
            server.process.send_signal(signal.SIGTERM)
            # Its goodbye is the event to wait for; then the helper is told what it knows already.
            assert server.socket.recv(65536) == b"BYEE" + be(130)
        return answer

    helper = Helper(server.socket, words(image, place), tamper=tamper)
    assert helper.run() is None
    code, lines = server.end()
    assert code == 130
    assert lines == [f"{image}: interrupted"]


def test_nobody_at_the_other_end(server: Server) -> None:
    server.socket.close()
    assert server.end() == (2, ["the mount helper: the mount helper has gone"])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (socket.SOCK_STREAM, "no local socket for packets"),
        (None, "is no socket"),
    ],
)
def test_descriptors_that_are_no_connection(kind: socket.SocketKind | None, says: str) -> None:
    with contextlib.ExitStack() as stack:
        if kind is None:
            fd = os.open("/dev/null", os.O_RDWR)
            stack.callback(os.close, fd)
        else:
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            stack.enter_context(ours)
            fd = stack.enter_context(theirs).fileno()
        done = subprocess.run(
            [*SERVE, "--fd", str(fd)], pass_fds=[fd], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert says in done.stderr


def test_listening_sockets_are_no_connections(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        done = subprocess.run(
            [*SERVE, "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()], capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Accept=yes is missing" in done.stderr


def test_without_a_service_manager() -> None:
    done = subprocess.run(SERVE, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "penstock: no service manager has passed one socket (LISTEN_FDS, LISTEN_PID)\n"
    )
