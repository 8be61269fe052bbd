# SPDX-License-Identifier: Apache-2.0
"""Attempts to make sockets and to reach somebody through them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import signal
import socket
import struct

from tests.support.attacks import STRANGER, Facts, Held, call, section

__all__: list[str] = []

attempt = section("Network and sockets")

_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SO_PEERPIDFD = 77
_SO_SNDBUFFORCE = 32
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


@attempt("socket", by="seccomp")
def make_an_internet_socket(held: Held) -> None:
    """Makes a TCP socket."""
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


@attempt("socket", by="seccomp", absent=_NO_FAMILY)
def make_an_internet_6_socket(held: Held) -> None:
    """Makes a UDP socket of IPv6."""
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()


@attempt("socket", by="seccomp")
def make_a_unix_socket(held: Held) -> None:
    """Makes a unix socket."""
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()


@attempt("socket", by="seccomp")
def make_a_netlink_socket(held: Held) -> None:
    """Makes a socket to the kernel's routing code."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


@attempt("socket", by="identity capabilities seccomp", absent=_NO_FAMILY)
def make_a_packet_socket(held: Held) -> None:
    """Makes a socket that sees every packet."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()


@attempt("socket", by="identity capabilities seccomp")
def make_a_raw_socket(held: Held) -> None:
    """Makes a socket for ICMP messages of its own making."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@attempt("socket", by="seccomp", absent=_NO_FAMILY)
def make_a_socket_to_the_hypervisor(held: Held) -> None:
    """Makes a vsock socket."""
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


@attempt("socketpair", by="seccomp")
def make_a_pair_of_sockets(held: Held) -> None:
    """Makes two sockets that are connected."""
    for end in socket.socketpair():
        end.close()


@attempt("socket connect", by="namespaces landlock seccomp", landlock=4)
def connect_to_the_loopback(held: Held) -> None:
    """Connects to a TCP port that the host listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("127.0.0.1", held.facts.tcp))


@attempt("socket sendto", by="namespaces seccomp")
def send_a_datagram(held: Held) -> None:
    """Sends a UDP datagram to the host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"attack", ("127.0.0.1", held.facts.udp))


@attempt("socket bind listen", by="landlock seccomp", landlock=4)
def listen_on_a_port(held: Held) -> None:
    """Offers a service on a TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("0.0.0.0", 20000 + held.facts.nonce))  # noqa: S104 - that is the attack
        sock.listen()


@attempt("socket bind", by="identity landlock capabilities seccomp", landlock=4)
def take_a_port_of_the_system(held: Held) -> None:
    """Takes TCP port 111, which only root may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", 111))  # noqa: S104 - that is the attack


@attempt("socket connect", by="namespaces landlock seccomp", landlock=6)
def connect_to_an_abstract_socket(held: Held) -> None:
    """Connects to a unix socket in the abstract namespace that the host listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\0" + held.facts.abstract)


@attempt("socket connect", by="root seccomp")
def connect_to_a_socket_by_path(held: Held) -> None:
    """Connects to a unix socket in a folder that the host listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(held.facts.listener)


@attempt("socket bind", by="root landlock seccomp")
def listen_on_a_path(held: Held) -> None:
    """Makes a unix socket in a folder that everybody may write to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(f"{held.facts.shared}/socket")


@attempt("socket connect sendmsg", by="namespaces landlock seccomp", landlock=6)
def hand_the_image_to_a_helper(held: Held) -> None:
    """Sends the held image through an abstract socket to a colluding process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\0" + held.facts.abstract)
        socket.send_fds(sock, [b"x"], [held.image])


def _loopback_is_changed(facts: Facts) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("16si12x", b"lo", 0))
    return bool(struct.unpack("16si12x", answer)[1] == 20000 + facts.nonce)


@attempt(
    "socket ioctl", by="namespaces identity capabilities seccomp", confirm=_loopback_is_changed
)
def configure_the_network(held: Held) -> None:
    """Sets the largest packet of the host's loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16si12x", b"lo", 20000 + held.facts.nonce)
        fcntl.ioctl(sock, _SIOCSIFMTU, request)


attempt = section("The socket to the broker")


def _getsockopt(fd: int, option: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint(size)
    call("getsockopt", fd, socket.SOL_SOCKET, option, buffer, ctypes.byref(length))
    return buffer.raw


@attempt("getsockopt", by="seccomp")
def learn_who_the_broker_is(held: Held) -> None:
    """Asks the held socket for the process and user at its other end."""
    _getsockopt(held.broker, socket.SO_PEERCRED, 12)


@attempt("getsockopt pidfd_send_signal", by="namespaces identity landlock seccomp", landlock=6,
         absent=(errno.ENOPROTOOPT,))  # fmt: skip
def signal_the_broker_through_its_socket(held: Held) -> None:
    """Has the held socket give a process descriptor of its other end, and sends it SIGURG."""
    (pidfd,) = struct.unpack("<i", _getsockopt(held.broker, _SO_PEERPIDFD, 4))
    signal.pidfd_send_signal(pidfd, signal.SIGURG)


@attempt("sendmsg", by="namespaces identity capabilities", needs="victims")
def forge_the_sender_of_a_message(held: Held) -> None:
    """Sends the broker a message in the name of another process and user."""
    data = ctypes.create_string_buffer(b"forged")
    part = (ctypes.c_size_t * 2)(ctypes.addressof(data), 6)
    credentials = struct.pack("=iII", held.facts.victim, STRANGER, STRANGER)
    control = struct.pack("<Qii", 28, socket.SOL_SOCKET, socket.SCM_CREDENTIALS) + credentials
    control_buffer = ctypes.create_string_buffer(control.ljust(32, b"\0"), 32)
    message = struct.pack(
        "<QI4xQQQQi4x", 0, 0, ctypes.addressof(part), 1, ctypes.addressof(control_buffer), 32, 0
    )
    call("sendmsg", held.broker, ctypes.c_char_p(message), 0)


@attempt("setsockopt", by="namespaces identity capabilities seccomp")
def enlarge_the_buffer_of_the_socket(held: Held) -> None:
    """Sets the held socket's buffer to 64 MiB of kernel memory, whatever the system's limit."""
    size = ctypes.byref(ctypes.c_int(64 << 20))
    call("setsockopt", held.broker, socket.SOL_SOCKET, _SO_SNDBUFFORCE, size, 4)
