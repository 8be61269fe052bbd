# SPDX-License-Identifier: Apache-2.0
"""Attempts with what a server holds for its work: the connection to the kernel, a pipe."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct

from penstock.abi.fuse import (
    DEV_IOC_BACKING_OPEN,
    DEV_IOC_CLONE,
    InHeader,
    InitFlag,
    InitIn,
    InitOut,
    Opcode,
    OutHeader,
)
from penstock.abi.layout import pack, size_of, unpack
from tests.support.attacks import Held, call, dies, expect, section

__all__: list[str] = []

attempt = section("The connection to the kernel")

_F_SETSIG = 10
_F_SETPIPE_SZ = 1031
_O_ASYNC = 0o20000
_FIONREAD = 0x541B


@attempt("read write", by="broker", needs="fuse")
def choose_what_the_kernel_may_ask(held: Held) -> None:
    """Answers INIT itself: deeper stacks, data past the server, no deadline for its answers."""
    request = os.read(held.fuse, 1 << 16)
    header = unpack(InHeader, request)
    expect(header.opcode == Opcode.INIT, "the kernel asks for something else")
    offer = unpack(InitIn, request[size_of(InHeader) : header.len])
    answer = bytearray(size_of(InitOut))
    struct.pack_into("<IIII", answer, 0, 7, offer.minor, 0, offer.flags & InitFlag.INIT_EXT)
    os.write(held.fuse, pack(OutHeader(16 + len(answer), 0, header.unique)) + answer)


@attempt("openat ioctl", by="root landlock seccomp", needs="fuse")
def clone_the_connection(held: Held) -> None:
    """Opens /dev/fuse and makes it another channel of its mount."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    fcntl.ioctl(fd, DEV_IOC_CLONE, struct.pack("=I", held.fuse))


@attempt("ioctl", by="namespaces identity capabilities seccomp", needs="fuse",
         absent=(errno.ENOTTY,))  # fmt: skip
def register_a_backing_file(held: Held) -> None:
    """Has reads and writes of its mount go to the image itself, past the server and the broker."""
    arguments = ctypes.c_char_p(struct.pack("=iIQ", held.image, 0, 0))
    number = call("ioctl", held.fuse, ctypes.c_ulong(DEV_IOC_BACKING_OPEN), arguments)
    expect(number > 0, "no number")


@attempt("fcntl", by="namespaces identity landlock seccomp", needs="victims",
         confirm=dies("victim"), landlock=6)  # fmt: skip
def have_the_kernel_send_a_signal(held: Held) -> None:
    """Makes a process of root the owner of a held pipe, SIGKILL the pipe's signal, and writes."""
    reading, writing = held.pipe
    fcntl.fcntl(reading, fcntl.F_SETOWN, held.facts.victim)
    fcntl.fcntl(reading, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | _O_ASYNC)
    os.write(writing, b"x")


@attempt("fcntl", by="seccomp")
def switch_on_signals_of_a_pipe(held: Held) -> None:
    """Has events of a held pipe sent as signals to whoever its owner is."""
    flags = fcntl.fcntl(held.pipe[0], fcntl.F_GETFL)
    fcntl.fcntl(held.pipe[0], fcntl.F_SETFL, flags | _O_ASYNC)


@attempt("fcntl", by="seccomp")
def grow_a_pipe(held: Held) -> None:
    """Makes a held pipe sixteen times as large."""
    fcntl.fcntl(held.pipe[1], _F_SETPIPE_SZ, 1 << 20)


@attempt("ioctl", by="seccomp")
def ask_how_much_is_in_a_pipe(held: Held) -> None:
    """Any ioctl at all: FIONREAD of a held pipe."""
    fcntl.ioctl(held.pipe[0], _FIONREAD, bytes(4))
