# SPDX-License-Identifier: Apache-2.0
"""Servers that lie to a command which reads an image: one for each way.

A command whose server is such a one is started with :func:`penstock_with`. The server is this file,
run as a program in the place of ``penstock/contain/__main__.py``, in no sandbox: what it does is
what a server could do that has been taken over.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["ENDS", "ESCAPE", "FORBIDDEN_NAMES", "ODD_NAMES", "penstock_with"]

PROJECT = Path(__file__).resolve().parents[2]
LONG: Final = 30.0
SHORT: Final = 0.5
"""Seconds to wait for a server that hangs."""
ESCAPE: Final = "\x1b]0;owned\x07"
FORBIDDEN_NAMES: Final = (
    b"../escaped", b"/tmp/penstock-escaped", b"sub/../../escaped", b"nul\0name", b".", b"..", b"",
    b"x" * 256,
)  # fmt: skip
"""What no file can be called."""
ODD_NAMES: Final = (ESCAPE.encode(), b"new\nline", b"\xff\xfe", "\u202egnp.exe".encode(), b"-rf")
"""What one can, though one had better not."""


def penstock_with(
    way: str, *words: str | Path, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a command of penstock with a server that lies in this way (``WAY`` or ``WAY:ARGUMENT``).

    One that hangs gets a short time, whatever it is to be done in.
    """
    hangs = way in ENDS and 124 in ENDS[way].codes
    opening = SHORT if way in {"silent", "endless_log"} else LONG
    request = SHORT if hangs else LONG
    paths = [str(PROJECT / "src"), str(PROJECT)]
    program = [sys.executable, "-I", "-S", "-B", str(Path(__file__)), way, *paths]
    start = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "from penstock.broker import launch\n"
        "from penstock.contain import reading\n"
        "from penstock.cli.main import main\n"
        f"launch._start = lambda fds, kind: launch.spawn({program!r}, fds=fds)\n"
        f"reading.OPENING_SECONDS, reading.REQUEST_SECONDS = {opening}, {request}\n"
        "sys.exit(main())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=60,
    )


Way = Callable[..., None]
WAYS: Final[dict[str, Way]] = {}


class End(NamedTuple):
    """How a command may end."""

    text: str
    """What the last line of its messages has in it, a pattern."""
    codes: tuple[int, ...]


ENDS: Final[dict[str, End]] = {}
"""For each way of lying after which a command cannot go on."""


def _way(end: str, *codes: int) -> Callable[[Way], Way]:
    """A way to lie; which words (a pattern) and exit codes the command may end with."""

    def add(function: Way) -> Way:
        WAYS[function.__name__] = function
        if end:
            ENDS[function.__name__] = End(end, codes or (4,))
        return function

    return add


class Server:
    """The honest half of a server."""

    def __init__(self) -> None:
        from penstock.broker.channel import Channel

        self.sock = socket.socket(fileno=3)
        self.channel = Channel(self.sock, max_fds=1)

    def welcome(self) -> Any:
        """Take HELLO, say welcome; the HELLO."""
        from penstock.broker.protocol import VERSION, Welcome

        message = self.channel.receive()
        assert message is not None
        self.channel.send(Welcome(VERSION, ()))
        return message.body

    def image(self) -> Any:
        """To where the image has come."""
        self.welcome()
        message = self.channel.receive()
        assert message is not None
        return message

    def stream(self) -> socket.socket:
        """To where the stream has come."""
        from penstock.broker.protocol import Ready

        image = self.image()
        self.channel.send(Ready("ext4", 0, image.body.size, 1024, ()))
        message = self.channel.receive()
        assert message is not None
        return socket.socket(fileno=message.fds[0])

    def serve(
        self,
        tree: dict[str | bytes, Any],
        extra: Callable[[bytes], Iterable[bytes]],
        kind: Any = None,
    ) -> None:
        """Serve a tree; ``extra`` says by which further names the root's entries are listed."""
        from penstock.datapath import Paths
        from penstock.transport.stream import StreamServer
        from tests.support.trees import Item, PlusTreeFilesystem

        base: type[PlusTreeFilesystem] = kind or PlusTreeFilesystem

        class Lying(base):  # type: ignore[misc, valid-type]
            def listing(self, item: Item) -> list[tuple[bytes, Item]]:
                honest: list[tuple[bytes, Item]] = super().listing(item)
                if item.nodeid == 1:
                    honest += [(name, below) for real, below in honest for name in extra(real)]
                return honest

        stream = self.stream()
        StreamServer(Lying(tree), stream.fileno(), datapaths=Paths("copy")).serve()

    def describe(self, *pieces: str, more: bool = False) -> None:
        """Send a description."""
        from penstock.broker.protocol import Description, Ended, EndReason

        self.image()
        for number, piece in enumerate(pieces):
            self.channel.send(Description(more or number + 1 < len(pieces), piece))
        if not more:
            self.channel.send(Ended(EndReason.ASKED))
        wait()


def wait() -> None:
    """Stay until killed."""
    while True:
        signal.pause()


# Before there is a stream


@_way("takes too long to open the image", 124)
def silent(server: Server) -> None:
    wait()


@_way("ended with exit code 0", 2)
def ends(server: Server) -> None:
    os._exit(0)


@_way("ended with exit code 3", 2)
def fails(server: Server) -> None:
    os._exit(3)


@_way("crashed .SIGSEGV")
def crashes(server: Server) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@_way("ended by its sandbox")
def leaves_the_sandbox(server: Server) -> None:
    os.kill(os.getpid(), signal.SIGSYS)


@_way("was killed .SIGKILL", 137)
def is_killed(server: Server) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@_way("used up the memory", 71)
def has_no_memory(server: Server) -> None:
    server.image()
    os._exit(71)


@_way("breaks the protocol")
def noise(server: Server) -> None:
    for _ in range(10):
        server.sock.send(os.urandom(200))
    wait()


@_way("that is too long")
def too_large(server: Server) -> None:
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    server.sock.send(bytes(70_000))
    wait()


@_way("a message of 0 bytes")
def empty_packets(server: Server) -> None:
    server.sock.send(b"")
    wait()


@_way("closes its connection")
def closes(server: Server) -> None:
    server.sock.close()
    wait()


@_way("READY from a server that is started")
def too_early(server: Server) -> None:
    from penstock.broker.protocol import Ready

    server.channel.send(Ready("ext4", 0, 1, 1024, ()))
    wait()


@_way("version 9, not 1")
def another_version(server: Server) -> None:
    from penstock.broker.protocol import Welcome

    server.channel.send(Welcome(9, ()))
    wait()


@_way("descriptors|exit code 1", 2, 4)  # refused here, or by the kernel where the server sends it
def with_a_descriptor(server: Server) -> None:
    from penstock.broker.protocol import VERSION, Welcome, encode

    fds = array.array("i", [0])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    server.sock.sendmsg([encode(Welcome(VERSION, ()))], rights)
    wait()


@_way("a message of another process")
def somebody_else(server: Server) -> None:
    if os.fork() == 0:
        server.welcome()
        os._exit(0)
    wait()


@_way("bytes at 4096 of an image")
def outside_the_image(server: Server) -> None:
    from penstock.broker.protocol import Ready

    image = server.image()
    server.channel.send(Ready("ext4", 4096, image.body.size, 1024, ()))
    wait()


@_way("too long to open|too often", 4, 124)
def endless_log(server: Server) -> None:
    from penstock.broker.protocol import Log

    server.welcome()
    while True:
        server.channel.send(Log(40, "again and again"))


@_way("FAILED: text is no line")
def escapes_in_a_failure(server: Server) -> None:
    packet = struct.pack("<HHIBH", 18, 0, 0, 1, len(ESCAPE)) + ESCAPE.encode()
    server.image()
    server.sock.send(packet)
    wait()


# Over the stream


@_way("has not answered for 0.5 s", 124)
def silent_stream(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    wait()


@_way("closes its connection")
def closed_stream(server: Server) -> None:
    server.stream().close()
    wait()


@_way("a message of 4294967295 bytes")
def stream_of_noise(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    stream.sendall(b"\xff" * 4096)
    wait()


@_way("an answer to request 1234")
def another_request(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    stream.sendall(struct.pack("<IiQ", 16, 0, 1234))
    wait()


@_way("error 7 is not in")
def impossible_error(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    stream.sendall(struct.pack("<IiQ", 16, 7, 2))
    wait()


@_way("has not answered", 124)
def dribble(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    stream.sendall(struct.pack("<IiQ", 1 << 20, 0, 2))
    while True:
        stream.send(b"x")
        time.sleep(0.01)


@_way("has not answered", 124)
def endless_notifications(server: Server) -> None:
    stream = server.stream()
    while True:
        stream.sendall(struct.pack("<IiQ", 16, 1, 0) * 1000)


@_way("has not answered|too often", 4, 124)
def endless_verdicts(server: Server) -> None:
    from penstock.broker.protocol import Verdict

    stream = server.stream()
    stream.recv(200)
    while True:
        server.channel.send(Verdict("worse and worse"))


@_way("was killed .SIGKILL", 137)
def dies_in_the_middle(server: Server) -> None:
    stream = server.stream()
    stream.recv(200)
    stream.sendall(struct.pack("<IiQ", 100, 0, 2))
    os.kill(os.getpid(), signal.SIGKILL)


@_way("SERVING from a server that is reading")
def connection_of_a_mount(server: Server) -> None:
    from penstock.broker.protocol import Serving

    stream = server.stream()
    stream.recv(200)
    server.channel.send(Serving(()))
    wait()


# Names and trees; these answer as they should


@_way("")
def hostile_name(server: Server, number: str) -> None:
    name = (FORBIDDEN_NAMES + ODD_NAMES)[int(number)]
    server.serve({"good": b"g"}, lambda real: [name] if real == b"good" else [])


@_way("")
def hostile_links(server: Server) -> None:
    """A link out of the tree, then a directory and a file of its name, and special files."""
    from tests.support.trees import Item

    tree: dict[str | bytes, Any] = {
        "link": "../victim",
        "dir": {"evil": b"e"},
        "file": b"f",
        "shown": "to\x1b]0;owned\x07",
        "suid": Item(b"#!", mode=0o6755),
        "disk": Item(b"", kind=stat.S_IFBLK, rdev=0x800),
        "null": Item(b"", kind=stat.S_IFCHR, rdev=0x103),
    }
    server.serve(tree, lambda real: [b"link"] if real in {b"dir", b"file"} else [])


@_way("")
def dies_later(server: Server) -> None:
    """Of the file or directory that is called ``fatal``."""
    from tests.support.trees import Item, PlusTreeFilesystem

    class Mortal(PlusTreeFilesystem):
        def listing(self, item: Item) -> list[tuple[bytes, Item]]:
            if item.mode == 0o700:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().listing(item)

        def read(self, ctx: Any, nodeid: Any, *rest: Any) -> bytes:
            if self.nodes[nodeid].content == b"fatal":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(ctx, nodeid, *rest)

    tree: dict[str | bytes, Any] = {
        "a": {"x": b"x", "y": "x"},
        "b": {"fatal": b"fatal"},
        "c": Item({f"link{number}": "x" for number in range(9)}, mode=0o700),
        "d": {f"sub{number}": {"more": b""} for number in range(9)},
    }
    server.serve(tree, lambda _: [], Mortal)


# Descriptions

_PLAIN: Final = {"size": 1, "type": "ext4", "label": "", "uuid": ""}


@_way("no JSON")
def description_too_deep(server: Server) -> None:
    server.describe(*["[" * 30_000] * 10)


@_way("too long")
def description_too_long(server: Server) -> None:
    while True:
        server.describe(*['"' + "x" * 30_000] * 1000, more=True)


@_way("a piece of it empty")
def description_in_no_pieces(server: Server) -> None:
    server.describe(*[""] * 10, more=True)


@_way("is not a number")
def description_of_another_shape(server: Server) -> None:
    server.describe(json.dumps({"size": "large", "type": ["ext4"], "label": 7, "uuid": None}))


@_way("filesystem. has .*, which is no name")
def description_of_odd_names(server: Server) -> None:
    filesystem = {"type": "ext4", "warnings": [], ESCAPE: 1}
    server.describe(json.dumps({**_PLAIN, "filesystem": filesystem}))


@_way("")
def description_with_escapes(server: Server) -> None:
    filesystem = {"type": ESCAPE, "warnings": [ESCAPE], "state": {"a": [ESCAPE]}, "size": -1}
    row = {
        "number": 1, "start": 1, "size": 1, "type": ESCAPE, "type_name": ESCAPE, "name": ESCAPE,
        "uuid": ESCAPE, "holds": ESCAPE, "label": None,
    }  # fmt: skip
    odd = {"type": ESCAPE, "label": ESCAPE, "uuid": "\ud800\x9b", "size": 7}
    server.describe(json.dumps({**odd, "filesystem": filesystem, "partitions": [row]}))


@_way("")
def without_a_layer(server: Server) -> None:
    from penstock.broker.protocol import VERSION, Failed, FailureCode, Layer, Welcome

    server.channel.receive()
    server.channel.send(Welcome(VERSION, (Layer("landlock", False, "not here"),)))
    server.channel.receive()
    server.channel.send(Failed(FailureCode.IMAGE, "seen"))
    wait()


def main() -> None:
    """Lie in the way that the first argument names: ``WAY`` or ``WAY:ARGUMENT``."""
    sys.path[:0] = sys.argv[2:]
    way, *argument = sys.argv[1].split(":")
    WAYS[way](Server(), *argument)


if __name__ == "__main__":
    main()
