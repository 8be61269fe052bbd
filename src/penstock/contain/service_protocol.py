# SPDX-License-Identifier: Apache-2.0
"""The packets of libfuse's fuse service protocol, version 1: bytes in, values out, and back.

A mount helper with the rights of its caller (``fuservicemount3``) and a filesystem server without
any speak it over a SOCK_SEQPACKET socket: the helper opens files and mounts, the server asks it to.
docs/service.md has the order of the packets; :mod:`penstock.contain.service` keeps it.

Invariants
    - One packet is one message of at most 65536 bytes; integers are big-endian; the first four
      bytes say what it is.
    - Text ends with its only NUL, which is the packet's last byte.
    - Whatever comes from the helper is checked before it is used: a packet that is too short, too
      long or of another kind raises :class:`ProtocolError`, and so does a value out of range.

Specification: libfuse, ``include/fuse_service_priv.h`` (interface version 3.19).
"""

from __future__ import annotations

import enum
import os
import struct
from typing import Final, NamedTuple

__all__ = [
    "ARGUMENTS",
    "DEVICE",
    "MAX_ARGUMENTS_FILE",
    "MAX_PACKET",
    "VERSION",
    "Hello",
    "HelloFlag",
    "Kind",
    "ProtocolError",
    "decode_arguments",
    "decode_file",
    "decode_hello",
    "decode_reply",
    "encode_goodbye",
    "encode_hello_reply",
    "encode_mount",
    "encode_mountpoint",
    "encode_open",
    "encode_text",
    "encode_type",
]

VERSION: Final = 1
MAX_PACKET: Final = 65536
MAX_ARGUMENTS_FILE: Final = 256 << 10
"""Bytes of the file with the helper's command line; more than a shell's line ever has."""
_MAX_ARGUMENTS: Final = 256
_MAX_ERRNO: Final = 4095

ARGUMENTS: Final = "argv"
"""The name under which the helper sends its command line, unasked and first."""
DEVICE: Final = "fusedev"
"""The name under which it sends /dev/fuse, opened and not mounted yet; second."""


class Kind(enum.IntEnum):
    """What a packet is; the number's bytes are ASCII."""

    HELLO = 0x53414654
    """``SAFT``, the helper's first packet."""
    HELLO_REPLY = 0x4C415354
    """``LAST``, the answer to it."""
    OPEN = 0x4F50454E
    BDEV = 0x42444556
    """As OPEN, and refused (ENOTBLK) for what is no block device."""
    TYPE = 0x54595045
    NAME = 0x4E414D45
    MNTP = 0x4D4E5450
    OPTS = 0x4F505453
    MTAB = 0x4D544142
    DOIT = 0x444F4954
    BYEE = 0x42594545
    FILE = 0x46494C45
    """The helper's answer to OPEN and BDEV, with the descriptor beside it."""
    REPLY = 0x5245504C
    """``REPL``, its answer to TYPE, NAME, MNTP, OPTS, MTAB and DOIT."""


class HelloFlag(enum.IntFlag):
    """What the helper's caller may do."""

    ALLOW_OTHER = 1
    FUSEBLK = 2


class ProtocolError(ValueError):
    """The helper does not speak this protocol. The message says what was wrong."""


class Hello(NamedTuple):
    """The helper's first packet, checked."""

    allow_other: bool
    """Whether its caller may let other users in."""
    fuseblk: bool
    """Whether its caller may mount as ``fuseblk``, which only root may."""


_MAGIC: Final = struct.Struct(">I")
_HELLO: Final = struct.Struct(">IHHI")
_HELLO_REPLY: Final = struct.Struct(">IHH")
_NUMBER: Final = struct.Struct(">II")
"""TYPE, DOIT, BYEE and REPLY: one number. FILE: errno, then text."""
_OPEN: Final = struct.Struct(">IIIII")
_MNTP: Final = struct.Struct(">IHH")
_ARGUMENTS: Final = struct.Struct(">II")
_ARGUMENT: Final = struct.Struct(">II")
_ARGUMENTS_MAGIC: Final = 0x41524753
_OPEN_QUIET: Final = 1
_HELLO_FLAGS: Final = int(HelloFlag.ALLOW_OTHER | HelloFlag.FUSEBLK)
_TEXT_KINDS: Final = frozenset({Kind.NAME, Kind.OPTS, Kind.MTAB})


# From the helper


def decode_hello(packet: bytes) -> Hello:
    """Check the helper's first packet.

    Raises:
        ProtocolError: it is none, or speaks no version of ours.
    """
    _, least, most, flags = _unpack(_HELLO, packet, Kind.HELLO)
    if least > most or not least <= VERSION <= most:
        raise ProtocolError(
            f"the helper speaks versions {least} to {most} of the fuse service protocol, "
            f"not {VERSION}"
        )
    if flags & ~_HELLO_FLAGS:
        raise ProtocolError(f"hello has unknown flags {flags:#x}")
    return Hello(bool(flags & HelloFlag.ALLOW_OTHER), bool(flags & HelloFlag.FUSEBLK))


def decode_file(packet: bytes, name: str) -> int:
    """Check the answer to a request for a file.

    Args:
        packet: without its descriptor.
        name: the file that was asked for.

    Returns:
        0 if the file was opened, else the errno.

    Raises:
        ProtocolError: it is no such answer, or one for another file.
    """
    if len(packet) <= _NUMBER.size:
        raise ProtocolError(f"FILE of {len(packet)} bytes has no name")
    _, error = _unpack(_NUMBER, packet[: _NUMBER.size], Kind.FILE)
    if packet[_NUMBER.size :] != os.fsencode(name) + b"\0":
        raise ProtocolError(f"FILE answers for another file than {name!r}")
    return _errno(error)


def decode_reply(packet: bytes) -> int:
    """Check the answer to a command; 0 or its errno.

    Raises:
        ProtocolError: it is none.
    """
    _, error = _unpack(_NUMBER, packet, Kind.REPLY)
    return _errno(error)


def decode_arguments(data: bytes) -> list[str]:
    """Read the helper's command line from its file: the filesystem's type, then the words.

    Args:
        data: the whole file.

    Raises:
        ProtocolError: it is damaged or too large.
    """
    if not _ARGUMENTS.size <= len(data) <= MAX_ARGUMENTS_FILE:
        raise ProtocolError(f"a file of {len(data)} bytes is no command line")
    magic, count = _ARGUMENTS.unpack_from(data)
    if magic != _ARGUMENTS_MAGIC:
        raise ProtocolError(f"the command line begins with {magic:#010x}")
    begin = _ARGUMENTS.size + count * _ARGUMENT.size
    if not 1 <= count <= _MAX_ARGUMENTS or begin > len(data):
        raise ProtocolError(f"a command line of {count} words in {len(data)} bytes")
    words: list[str] = []
    left = len(data)
    for position, length in _ARGUMENT.iter_unpack(data[_ARGUMENTS.size : begin]):
        left -= length  # words that overlap could take far more memory than the file
        if position < begin or not 1 <= length <= len(data) - position or left < 0:
            raise ProtocolError(f"word {len(words)} of the command line is outside its file")
        word = data[position : position + length]
        if word.find(b"\0") != length - 1:
            raise ProtocolError(f"word {len(words)} of the command line does not end with a NUL")
        words.append(os.fsdecode(word[:-1]))
    return words


# To the helper


def encode_hello_reply() -> bytes:
    """Accept version 1."""
    return _HELLO_REPLY.pack(Kind.HELLO_REPLY, VERSION, 0)


def encode_open(path: str, flags: int, *, device: bool = False, quiet: bool = False) -> bytes:
    """Ask for a file that is named on the helper's command line.

    Args:
        path: exactly as it stands there.
        flags: of open(2).
        device: refuse what is no block device.
        quiet: the helper prints no error of its own.
    """
    kind = Kind.BDEV if device else Kind.OPEN
    return _with_text(_OPEN.pack(kind, flags, 0, _OPEN_QUIET if quiet else 0, 0), path)


def encode_type() -> bytes:
    """Begin a mount of type ``fuse`` (not ``fuseblk``)."""
    return _NUMBER.pack(Kind.TYPE, 0)


def encode_text(kind: Kind, text: str) -> bytes:
    """NAME (the mount's source), OPTS (options for the kernel) or MTAB (options on record)."""
    if kind not in _TEXT_KINDS:
        raise ValueError(f"{kind.name} takes no text")
    return _with_text(_MAGIC.pack(kind), text)


def encode_mountpoint(format: int, path: str) -> bytes:
    """Name the mount point.

    Args:
        format: what it must be, as in ``st_mode`` (``S_IFDIR``).
        path: exactly as on the helper's command line.
    """
    return _with_text(_MNTP.pack(Kind.MNTP, format, 0), path)


def encode_mount(flags: int) -> bytes:
    """Mount, with these flags of mount(2)."""
    return _NUMBER.pack(Kind.DOIT, flags)


def encode_goodbye(code: int) -> bytes:
    """The end of the conversation; the helper ends with this exit code."""
    return _NUMBER.pack(Kind.BYEE, code)


def _unpack(layout: struct.Struct, packet: bytes, kind: Kind) -> tuple[int, ...]:
    """The fields of a packet that must have this kind and exactly this layout."""
    if len(packet) < _MAGIC.size:
        raise ProtocolError(f"a packet of {len(packet)} bytes instead of {kind.name}")
    (magic,) = _MAGIC.unpack_from(packet)
    if magic != kind:
        raise ProtocolError(f"packet {_name(magic)} instead of {kind.name}")
    if len(packet) != layout.size:
        raise ProtocolError(f"{kind.name} has {len(packet)} bytes, expected {layout.size}")
    return layout.unpack(packet)


def _name(magic: int) -> str:
    try:
        return Kind(magic).name
    except ValueError:
        return f"{magic:#010x}"


def _errno(number: int) -> int:
    if number > _MAX_ERRNO:
        raise ProtocolError(f"{number} is no errno")
    return number


def _with_text(head: bytes, text: str) -> bytes:
    """A packet that ends with a text.

    Raises:
        ValueError: the text is empty, has a NUL, or is too long.
    """
    encoded = os.fsencode(text)
    if not encoded or b"\0" in encoded:
        raise ValueError(f"{text!r}: is empty or has a NUL")
    packet = head + encoded + b"\0"
    if len(packet) > MAX_PACKET:
        raise ValueError(f"a text of {len(encoded)} bytes is too long for a packet")
    return packet
