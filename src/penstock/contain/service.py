# SPDX-License-Identifier: Apache-2.0
"""A fuse service: one mount, made by a mount helper at the other end of a socket.

The helper (``fuservicemount3``) has its caller's rights and does what takes rights: it opens the
image and /dev/fuse, and mounts. This process has none; a service manager started it with the socket
and nothing else. The packets are :mod:`penstock.contain.service_protocol`'s.

Order
    1. hello, the helper's command line, /dev/fuse, the image: nothing of the image is read yet;
    2. no more descriptors are taken, and the sandbox is closed;
    3. the image is judged, then the helper is told what to mount, and mounts;
    4. INIT is answered here (the helper only mounts), on the one descriptor that there is: it
       cannot be cloned without opening /dev/fuse, so all workers read and answer on it;
    5. no more threads can be started, and the helper is told to end.

Facts about the helper
    - It opens what stands on its command line, word for word, and nothing else.
    - It takes the end of the connection for a failure, so success takes a goodbye as well.
    - It waits as long as this process does; either learns of the other's end at once.
    - Its answers have no numbers. One that nobody asked for is noticed if it is there when the next
      question is asked; if it comes later it counts as that one's answer, which harms its sender.
    - What is mounted is not ours to unmount: when this process ends first, the mount answers
      ENOTCONN until somebody unmounts it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

from penstock.abi.mount import MountFlag
from penstock.abi.socket import SO_PASSRIGHTS
from penstock.broker.options import MountOptions
from penstock.contain import service_protocol as protocol
from penstock.contain.sandbox import IMAGE_SERVER, LayerReport, close, close_threads
from penstock.contain.service_protocol import Hello, Kind, ProtocolError
from penstock.datapath import Paths
from penstock.formats.source import device_size
from penstock.servers import open_server
from penstock.servers.ext4.server import open_ext4
from penstock.servers.images import open_image
from penstock.session import Limits, Session
from penstock.sys.files import IMAGE_FLAGS, large_pipe
from penstock.transport import DevFuse, Prepared

__all__ = ["MountHelper", "Request", "Service", "inherited_socket"]

_log = logging.getLogger(__name__)

_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""
_DEVICE_NUMBER: Final = (10, 229)
_MAX_PAGES: Final = 255
"""With a header they fill the largest pipe that a process without rights gets."""
_GOODBYE_SECONDS: Final = 2.0
_LOADED: Final = (open_image, open_ext4)
"""Servers are imported when they are first used; here that would be too late."""


class Request(NamedTuple):
    """What the helper's command line asks for."""

    source: str
    """As it stands there."""
    mountpoint: str
    """As it stands there."""
    type: str
    options: MountOptions
    words: dict[str, str]
    """The filesystem's own."""
    mtab: bool = True
    """Whether the helper may put the mount on record where there is an /etc/mtab."""
    request_timeout: int = 0
    """Seconds after which the kernel gives up a mount that does not answer; 0 = never."""


class _Step(enum.IntEnum):
    """Where the conversation is; it only goes forward."""

    HELLO = 0
    ARGUMENTS = 1
    DEVICE = 2
    FILES = 3
    COMMANDS = 4
    ENDED = 5


def inherited_socket(fd: int | None = None) -> socket.socket:
    """The connection to the helper that this process was started with.

    Args:
        fd: its descriptor; None: as the service manager says in LISTEN_FDS and LISTEN_PID.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    if fd is None:
        count, pid = os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID")
        if pid != str(os.getpid()) or count != "1":
            raise ValueError("no service manager has passed one socket (LISTEN_FDS, LISTEN_PID)")
        fd = _FIRST_FD
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ValueError(f"descriptor {fd} is no socket")
    except OSError as error:
        raise ValueError(f"descriptor {fd} is not open") from error
    connection = socket.socket(fileno=fd)
    if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ValueError(f"descriptor {fd} is no local socket for packets (SOCK_SEQPACKET)")
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"descriptor {fd} takes connections and is none (Accept=yes is missing)")
    connection.setblocking(True)
    os.set_inheritable(fd, False)
    return connection


class MountHelper:
    """The conversation with the helper. A context manager, which ends it.

    Args:
        connection: to the helper; owned from here on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._step = _Step.HELLO

    def greet(self) -> Hello:
        """Accept the helper's hello.

        Raises:
            ProtocolError: it says something else.
            EOFError: it has gone.
        """
        self._at(_Step.HELLO)
        hello = protocol.decode_hello(self._receive(fds=0)[0])
        self._send(protocol.encode_hello_reply())
        self._step = _Step.ARGUMENTS
        return hello

    def receive_arguments(self) -> list[str]:
        """The helper's command line: the filesystem's type, then the words.

        Raises:
            ProtocolError, EOFError: as :meth:`greet`.
            OSError: the helper could not pass it, or it cannot be read.
        """
        self._at(_Step.ARGUMENTS)
        fd = self._receive_file(protocol.ARGUMENTS)
        self._step = _Step.DEVICE
        try:
            data = os.pread(fd, protocol.MAX_ARGUMENTS_FILE + 1, 0)
        finally:
            os.close(fd)
        return protocol.decode_arguments(data)

    def receive_device(self) -> int:
        """/dev/fuse, not mounted yet; the caller owns it.

        Raises:
            As :meth:`receive_arguments`.
        """
        self._at(_Step.DEVICE)
        fd = self._receive_file(protocol.DEVICE)
        info = os.fstat(fd)
        device = os.major(info.st_rdev), os.minor(info.st_rdev)
        if not stat.S_ISCHR(info.st_mode) or device != _DEVICE_NUMBER:
            os.close(fd)
            raise ProtocolError(f"{protocol.DEVICE} is not /dev/fuse")
        self._step = _Step.FILES
        return fd

    def open(self, path: str, flags: int, *, device: bool = False, quiet: bool = False) -> int:
        """Have the helper open a file with its caller's rights.

        Args:
            path: as it stands on the helper's command line.
            flags: of open(2).
            device: only a block device will do; ENOTBLK otherwise.
            quiet: the helper prints nothing if it fails.

        Raises:
            OSError: why it was not opened.
            ProtocolError, EOFError: as :meth:`greet`.
        """
        self._at(_Step.FILES)
        self._send(protocol.encode_open(path, flags, device=device, quiet=quiet))
        return self._receive_file(path)

    def refuse_files(self) -> None:
        """Take no descriptors from here on. Kernels before 6.16 cannot refuse them at the sender's;
        there they are closed on arrival, and the packet is refused."""
        self._at(_Step.FILES)
        self._step = _Step.COMMANDS
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise

    def mount(self, request: Request) -> None:
        """Have the helper mount.

        Raises:
            OSError: which step it could not do, and why.
            ProtocolError, EOFError: as :meth:`greet`.
        """
        self._at(_Step.COMMANDS)
        options = request.options
        words = kernel_words(options)
        record = [] if request.mtab else ["-n"]
        self._command("fsopen", protocol.encode_type())
        self._command("source", protocol.encode_text(Kind.NAME, options.source))
        where = protocol.encode_mountpoint(stat.S_IFDIR, request.mountpoint)
        self._command(request.mountpoint, where)
        if words:
            self._command("options", protocol.encode_text(Kind.OPTS, ",".join(words)))
        if record or words:
            self._command("mtab", protocol.encode_text(Kind.MTAB, ",".join(record + words)))
        self._command("mount", protocol.encode_mount(mount_flags(options)))

    def goodbye(self, code: int) -> None:
        """End the conversation; the helper ends with this exit code. A helper that has gone does
        not matter any more.

        What the helper was still saying is taken until it goes: closing a socket with unread
        packets would take the goodbye from it.
        """
        if self._step is _Step.ENDED:
            return
        self._step = _Step.ENDED
        with contextlib.suppress(OSError), self._socket:
            self._socket.sendmsg([protocol.encode_goodbye(code)], [], socket.MSG_NOSIGNAL)
            waiter = select.poll()
            waiter.register(self._socket, select.POLLIN)
            deadline = time.monotonic() + _GOODBYE_SECONDS
            while (left := deadline - time.monotonic()) > 0 and waiter.poll(left * 1000):
                if not self._socket.recv(1):
                    break

    def _at(self, step: _Step) -> None:
        if self._step is not step:
            raise RuntimeError(f"the conversation is at {self._step.name}, not at {step.name}")

    def _send(self, packet: bytes) -> None:
        """Send a packet; the helper only speaks when asked, so nothing may have come before."""
        self._expect_silence()
        self._socket.sendmsg([packet], [], socket.MSG_NOSIGNAL)

    def _expect_silence(self) -> None:
        waiter = select.poll()
        waiter.register(self._socket, select.POLLIN)
        for _, events in waiter.poll(0):
            if events & select.POLLHUP:
                raise EOFError("the mount helper has gone")
            raise ProtocolError("the mount helper speaks unasked")

    def _receive(self, fds: int) -> tuple[bytes, int]:
        """A packet and the one descriptor that came with it, or -1.

        Args:
            fds: how many descriptors are taken; more are closed by the kernel.
        """
        space = socket.CMSG_LEN(4 * fds) if fds else 0
        try:
            packet, ancillary, flags, _ = self._socket.recvmsg(
                protocol.MAX_PACKET, space, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:
            raise EOFError("the mount helper has gone") from error
        received = [
            int.from_bytes(data[i : i + 4], "little")
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for i in range(0, len(data) - 3, 4)
        ]
        wrong = flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(received) > fds
        if wrong or not packet:
            for fd in received:
                os.close(fd)
        if wrong:
            raise ProtocolError("a packet is too long or brings descriptors unasked")
        if not packet:
            raise EOFError("the mount helper has gone")
        return packet, received[0] if received else -1

    def _receive_file(self, name: str) -> int:
        packet, fd = self._receive(fds=1)
        try:
            error = protocol.decode_file(packet, name)
            if error:
                raise OSError(error, os.strerror(error), name)
            if fd < 0:
                raise ProtocolError(f"FILE for {name!r} brings no descriptor")
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def _command(self, what: str, packet: bytes) -> None:
        self._send(packet)
        error = protocol.decode_reply(self._receive(fds=0)[0])
        if error:
            raise OSError(error, f"the mount helper: {what}: {os.strerror(error)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._step = _Step.ENDED
        self._socket.close()


def kernel_words(options: MountOptions) -> list[str]:
    """The options that are the kernel's own."""
    words = []
    if options.default_permissions or options.allow_other:
        words.append("default_permissions")
    if options.allow_other:
        words.append("allow_other")
    if options.max_read:
        words.append(f"max_read={options.max_read}")
    return words


def mount_flags(options: MountOptions) -> MountFlag:
    """The flags of the mount. The helper lets only root be without nosuid and nodev."""
    flags = MountFlag(0)
    for wanted, flag in (
        (options.read_only, MountFlag.RDONLY),
        (not options.suid, MountFlag.NOSUID),
        (not options.dev, MountFlag.NODEV),
        (not options.exec, MountFlag.NOEXEC),
        (not options.symfollow, MountFlag.NOSYMFOLLOW),
    ):
        if wanted:
            flags |= flag
    return flags


class Service:
    """A mount from the first packet to its end.

    Args:
        helper: at the other end.
        parse: makes a request of the helper's command line, and of what its caller may do.

    The steps are :meth:`prepare`, :meth:`close_sandbox`, :meth:`begin` and :meth:`wait`, each for
    once.
    """

    def __init__(self, helper: MountHelper, parse: Callable[[list[str], Hello], Request]) -> None:
        self._helper = helper
        self._parse = parse
        self.request: Request | None = None

    @property
    def description(self) -> str:
        """What is mounted where, as far as it is known."""
        request = self.request
        return f"{request.source} on {request.mountpoint}" if request else "nothing yet"

    def prepare(self) -> None:
        """Get everything from the helper, and make what can only be made outside the sandbox.

        Raises:
            OSError: the image cannot be opened, or is neither a file nor a block device.
            ProtocolError, EOFError: the helper.
            Exception: whatever ``parse`` raises.
        """
        hello = self._helper.greet()
        words = self._helper.receive_arguments()
        device = self._helper.receive_device()
        request = self.request = self._parse(words, hello)
        self._image = _open_image(self._helper, request.source)
        self._size = device_size(self._image)
        self._helper.refuse_files()
        self._paths = Paths(request.options.datapath)
        self._transport = self._make_transport(device, request.options)

    def _make_transport(self, device: int, options: MountOptions) -> DevFuse:
        count = options.workers
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        pipes = tuple(large_pipe() for _ in range(count))
        return DevFuse(
            device,
            workers=count,
            poll=options.poll,
            max_write=options.max_write,
            on_splice_refused=self._paths.refuse_splice,
            prepared=Prepared((device,) * (count - 1), pipes, wake),
        )

    def close_sandbox(self) -> Sequence[LayerReport]:
        """Close it; what became of each layer."""
        return close(IMAGE_SERVER)

    def begin(self) -> LayerReport:
        """Judge the image, have it mounted, and answer from now on.

        Returns:
            What became of the layer that forbids threads.

        Raises:
            ValueError: the image or an option is wrong.
            OSError: the image cannot be read, or the helper cannot mount.
            ProtocolError, EOFError: the helper.
        """
        request = self.request
        assert request is not None
        server = open_server(self._image, request.type, request.words, size=self._size)
        for warning in server.warnings:
            _log.warning("%s: %s", request.source, warning)
        operations = server.operations
        transport = self._transport
        session = Session(
            operations,
            sink=transport,
            datapaths=self._paths,
            limits=Limits(
                max_write=request.options.max_write,
                max_pages=_MAX_PAGES,
                request_timeout=request.request_timeout,
            ),
        )
        transport.attach(session)
        if request.options.workers > 1:
            operations.before_wait = transport.before_wait
        self._helper.mount(request)
        transport.handshake()
        transport.start()
        return close_threads(IMAGE_SERVER)

    def wait(self) -> None:
        """Wait until the mount has ended, by an unmount or by :meth:`stop`."""
        self._transport.ended.wait()
        self._transport.close()
        os.close(self._image)

    def stop(self) -> None:
        """Have the connection end; returns at once. For signal handlers."""
        self._transport.stop()


def _open_image(helper: MountHelper, path: str) -> int:
    """What stands in /dev is asked for as a block device first, which the helper then makes sure
    of; the rest may be a file."""
    if path.startswith("/dev/"):
        try:
            return helper.open(path, IMAGE_FLAGS, device=True, quiet=True)
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
    return helper.open(path, IMAGE_FLAGS)
