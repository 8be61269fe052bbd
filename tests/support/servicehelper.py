# SPDX-License-Identifier: Apache-2.0
"""A mount helper for the fuse service protocol, version 1: the other end of ``penstock serve``.

Written from the protocol's description alone, sharing no code with the server's side. It does what
libfuse's helper does (opens what its command line names, mounts with fsopen and move_mount), checks
each packet, and can be told to send something else than it should.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.abi.mount import MountAttr
from penstock.sys import mount as sysmount

__all__ = ["Answer", "Helper", "arguments_file"]

Answer = tuple[bytes, list[int]]
"""A packet, and the descriptors that go with it."""

MAX_PACKET = 65536
ALLOW_OTHER = 1
FUSEBLK = 2


def be(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def arguments_file(words: Sequence[str]) -> bytes:
    """The helper's command line as the file ``argv`` holds it."""
    encoded = [os.fsencode(word) + b"\0" for word in words]
    position = 8 + 8 * len(encoded)
    table = b""
    for word in encoded:
        table += be(position, len(word))
        position += len(word)
    return b"ARGS" + be(len(encoded)) + table + b"".join(encoded)


def memory_file(data: bytes) -> int:
    fd = os.memfd_create("argv", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


@dataclass
class Helper:
    """One conversation.

    Attributes:
        socket: connected to the server.
        words: of the command line, the type first and without ``-t``.
        flags: of the hello.
        tamper: called with the name of what is to be sent (``hello``, ``argv``, ``fusedev``, the
            kind of command that is answered) and with it; what it returns is sent instead. An
            empty packet is not sent, None ends the conversation.
    """

    socket: socket.socket
    words: list[str]
    flags: int = ALLOW_OTHER | FUSEBLK
    tamper: Callable[[str, Answer], Answer | None] | None = None
    said: list[tuple[str, bytes]] = field(default_factory=list)
    """The server's commands."""
    mounted: bool = False
    _source: str = ""
    _target: str = ""
    _words: list[str] = field(default_factory=list)
    _device: int = -1

    def run(self) -> int | None:
        """Converse to the end; the exit code that the server says, None if it just went."""
        try:
            return self._run()
        finally:
            self.socket.close()
            if self._device >= 0:
                os.close(self._device)

    def _run(self) -> int | None:
        if not self._send("hello", b"SAFT" + struct.pack(">HHI", 1, 1, self.flags)):
            return None
        reply = self.socket.recv(MAX_PACKET + 1)
        if reply == b"":
            return None
        if reply[:4] == b"BYEE":
            return self._goodbye(reply)
        assert reply == b"LAST" + struct.pack(">HH", 1, 0), reply
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        argv = memory_file(arguments_file(self.words))
        try:
            if not self._send("argv", b"FILE" + be(0) + b"argv\0", argv):
                return None
        finally:
            os.close(argv)
        if not self._send("fusedev", b"FILE" + be(0) + b"fusedev\0", self._device):
            return None
        while packet := self.socket.recv(MAX_PACKET + 1):
            assert len(packet) <= MAX_PACKET
            kind, body = packet[:4].decode("ascii"), packet[4:]
            self.said.append((kind, body))
            if kind == "BYEE":
                return self._goodbye(packet)
            if not self._answer(kind, body):
                return None
        return None

    def _goodbye(self, packet: bytes) -> int:
        assert len(packet) == 8
        return int.from_bytes(packet[4:], "big")

    def _send(self, name: str, packet: bytes, *fds: int) -> bool:
        answer: Answer | None = packet, list(fds)
        if self.tamper is not None:
            answer = self.tamper(name, (packet, list(fds)))
        if answer is None:
            return False
        if not answer[0]:
            return True
        try:
            socket.send_fds(self.socket, [answer[0]], answer[1])
        except BrokenPipeError:
            return False
        return True

    def _answer(self, kind: str, body: bytes) -> bool:
        if kind in {"OPEN", "BDEV"}:
            return self._open(kind, body)
        code = 0
        try:
            getattr(self, f"_{kind.lower()}")(body)
        except OSError as error:
            code = error.errno or 0
        return self._send(kind, b"REPL" + be(code))

    def _open(self, kind: str, body: bytes) -> bool:
        flags, mode, request, size = struct.unpack_from(">IIII", body)
        path = body[16:]
        assert path.endswith(b"\0")
        assert request & ~1 == 0
        head = b"FILE"
        try:
            if os.fsdecode(path[:-1]) not in self.words:
                raise PermissionError(1, "not on the command line")
            fd = os.open(path[:-1], flags | os.O_CLOEXEC, mode)
        except OSError as error:
            return self._send(kind, head + be(error.errno or 0) + path)
        try:
            if kind == "BDEV" and not stat.S_ISBLK(os.fstat(fd).st_mode):
                return self._send(kind, head + be(15) + path)
            assert size == 0
            return self._send(kind, head + be(0) + path, fd)
        finally:
            os.close(fd)

    def _type(self, body: bytes) -> None:
        assert body == be(0)

    def _name(self, body: bytes) -> None:
        self._source = text(body)

    def _mntp(self, body: bytes) -> None:
        format, padding = struct.unpack_from(">HH", body)
        assert (format, padding) == (stat.S_IFDIR, 0)
        self._target = text(body[4:])
        assert self._target in self.words
        if not Path(self._target).is_dir():
            raise NotADirectoryError(20, "not a directory")

    def _opts(self, body: bytes) -> None:
        self._words = text(body).split(",")
        if "allow_other" in self._words and not self.flags & ALLOW_OTHER:
            raise PermissionError(1, "not allowed")

    def _mtab(self, body: bytes) -> None:
        assert text(body)

    def _doit(self, body: bytes) -> None:
        assert len(body) == 4
        assert self._source
        assert self._target
        flags = int.from_bytes(body, "big")
        context = sysmount.fsopen("fuse")
        try:
            sysmount.fsconfig_string(context, "source", self._source)
            sysmount.fsconfig_string(context, "subtype", self.words[0])
            if flags & 1:
                sysmount.fsconfig_flag(context, "ro")
            for word in self._words:
                key, _, value = word.partition("=")
                if value:
                    sysmount.fsconfig_string(context, key, value)
                else:
                    sysmount.fsconfig_flag(context, key)
            sysmount.fsconfig_string(context, "fd", str(self._device))
            sysmount.fsconfig_string(context, "rootmode", "40000")
            sysmount.fsconfig_string(context, "user_id", "0")
            sysmount.fsconfig_string(context, "group_id", "0")
            sysmount.fsconfig_create(context)
            # MS_* of the lowest bits are MOUNT_ATTR_* too; MS_NOSYMFOLLOW has moved.
            attributes = flags & 0xF | (0x200000 if flags & 0x100 else 0)
            made = sysmount.fsmount(context, MountAttr(attributes))
        finally:
            os.close(context)
        try:
            sysmount.move_mount(made, self._target)
        finally:
            os.close(made)
        self.mounted = True


def text(body: bytes) -> str:
    """A text of the server's: it has one NUL, at its end."""
    assert body.index(b"\0") == len(body) - 1
    return os.fsdecode(body[:-1])
