# SPDX-License-Identifier: Apache-2.0
"""Whole messages: bytes to header and tuple, and back.

A message from a kernel, or from whoever plays its part, is untrusted: every length is checked, and
decoding raises :class:`WireError` and nothing else. Data is not copied: a decoded ``Payload`` is a
view into the message and dies when the buffer is used again.

Specification: ``linux/fuse.h`` 7.46 and ``fs/fuse/dev.c``. Messages are little-endian; a host of
the other endianness shows as an INIT of opcode INIT_BSWAP_RESERVED and is not served.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from penstock.abi.fuse.flags import IOCTL_MAX_IOV, IoctlFlag
from penstock.abi.fuse.opcodes import (
    COMPAT_INIT_IN_SIZE,
    COMPAT_INIT_OUT_SIZE,
    COMPAT_SETXATTR_IN_SIZE,
    Opcode,
)
from penstock.abi.fuse.structs import InHeader, IoctlOut, OutHeader, SetxattrIn
from penstock.abi.layout import size_of, struct_of
from penstock.wire.errors import WireError
from penstock.wire.replies import (
    REPLIES,
    GetxattrReply,
    IoctlReply,
    IoctlRetryReply,
    Reply,
)
from penstock.wire.requests import REQUESTS, Request, Setxattr, Unknown
from penstock.wire.shapes import Buffer, Decoder, Encoder, Table, decoder, encoder

__all__ = [
    "IN_HEADER_SIZE",
    "OUT_HEADER_SIZE",
    "Features",
    "decode_header",
    "decode_out_header",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
]

IN_HEADER_SIZE: Final = size_of(InHeader)
OUT_HEADER_SIZE: Final = size_of(OutHeader)

_MAX_ERRNO: Final = 511
"""The kernel refuses replies beyond it."""

_new: Final = tuple.__new__
_in_header: Final = struct_of(InHeader).unpack_from
_pack_in_header: Final = struct_of(InHeader).pack
_pack_out_header: Final = struct_of(OutHeader).pack
_LONGEST: Final = 0xFFFF_FFFF


class Features(NamedTuple):
    """What was negotiated, as far as the layout of messages depends on it."""

    setxattr_ext: bool = False
    """SETXATTR_EXT: SetxattrIn has 16 bytes instead of 8."""


_DEFAULT: Final = Features()


def _request_decoder(opcode: int) -> Decoder | None:
    cls = REQUESTS.get(opcode)
    if cls is not None:
        shortest = COMPAT_INIT_IN_SIZE if opcode == Opcode.INIT else None
        return decoder(cls, _name(opcode), IN_HEADER_SIZE, shortest)
    if opcode in {Opcode.INIT_BSWAP_RESERVED, Opcode.CUSE_INIT_BSWAP_RESERVED}:
        return _refuse_other_endianness
    return None


def _refuse_other_endianness(_buffer: Buffer, _size: int, _extlen: int) -> Any:
    raise WireError("INIT: the other side is of the other endianness; little-endian is expected")


_SETXATTR_TAIL: Final = bytes(size_of(SetxattrIn) - COMPAT_SETXATTR_IN_SIZE)
_SETXATTR_CUT: Final = IN_HEADER_SIZE + COMPAT_SETXATTR_IN_SIZE


def _short_setxattr(buffer: Buffer, size: int, extlen: int) -> Any:
    """SETXATTR without SETXATTR_EXT: as if the missing half were zero."""
    if size < _SETXATTR_CUT:
        raise WireError(f"SETXATTR: {size - IN_HEADER_SIZE} bytes where 8 or more were expected")
    longer = bytes(buffer[:_SETXATTR_CUT]) + _SETXATTR_TAIL + bytes(buffer[_SETXATTR_CUT:])
    decode: Decoder = _WITH_EXT[Opcode.SETXATTR]  # type: ignore[assignment]
    return decode(longer, size + len(_SETXATTR_TAIL), extlen)


_WITH_EXT: Final[Table[int, Decoder | None]] = Table(_request_decoder)
_WITHOUT_EXT: Final[Table[int, Decoder | None]] = Table(_request_decoder)
_WITHOUT_EXT[int(Opcode.SETXATTR)] = _short_setxattr


def _request_encoder(cls: type) -> tuple[int, Encoder] | None:
    opcode = next((int(opcode) for opcode, known in REQUESTS.items() if known is cls), None)
    return None if opcode is None else (opcode, encoder(cls, _name(opcode)))


def _reply_decoder(opcode: int) -> Decoder | None:
    cls = REPLIES.get(opcode)
    shortest = COMPAT_INIT_OUT_SIZE if opcode == Opcode.INIT else None
    return cls and decoder(cls, f"reply to {_name(opcode)}", OUT_HEADER_SIZE, shortest)


_VARIANTS: Final = (GetxattrReply, IoctlRetryReply)


def _variant_decoder(cls: type) -> Decoder:
    return decoder(cls, cls.__name__, OUT_HEADER_SIZE)


def _reply_encoder(cls: type) -> Encoder | None:
    known = cls in _VARIANTS or cls in REPLIES.values()
    return encoder(cls, cls.__name__) if known else None


_REQUEST_ENCODERS: Final = Table(_request_encoder)
_REPLY_DECODERS: Final = Table(_reply_decoder)
_VARIANT_DECODERS: Final = Table(_variant_decoder)
_REPLY_ENCODERS: Final = Table(_reply_encoder)
_SIZED: Final = frozenset({Opcode.GETXATTR, Opcode.LISTXATTR})


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"operation {opcode}"


def decode_header(buffer: Buffer) -> InHeader:
    """The header of a request, without a look at the rest.

    Raises:
        WireError: there are less than 40 bytes.
    """
    if len(buffer) < IN_HEADER_SIZE:
        raise WireError(f"request: {len(buffer)} bytes, its header alone has {IN_HEADER_SIZE}")
    return _new(InHeader, _in_header(buffer))


def decode_request(buffer: Buffer, features: Features = _DEFAULT) -> tuple[InHeader, Request]:
    """One request.

    Args:
        buffer: exactly one message; must be left alone as long as the payload is used.
        features: what was negotiated.

    Returns:
        Header and body. The body of an operation that is not known here is an ``Unknown``.

    Raises:
        WireError: the message is malformed.
    """
    size = len(buffer)
    if size < IN_HEADER_SIZE:
        raise WireError(f"request: {size} bytes, its header alone has {IN_HEADER_SIZE}")
    header = _new(InHeader, _in_header(buffer))
    if header[0] != size:
        raise WireError(f"request: its header says {header[0]} bytes, {size} came")
    decode = (_WITH_EXT if features[0] else _WITHOUT_EXT)[header[1]]
    if decode is None:
        return header, Unknown(header[1], memoryview(buffer)[IN_HEADER_SIZE:])
    return header, decode(buffer, size, header[7])


def encode_request(
    request: Request,
    features: Features = _DEFAULT,
    *,
    unique: int,
    nodeid: int = 0,
    uid: int = 0,
    gid: int = 0,
    pid: int = 0,
) -> bytes:
    """The bytes of one request, as the kernel sends them.

    Args:
        request: an instance of a class of :mod:`penstock.wire.requests`. Counts and lengths in it
            must be right.
        features: what was negotiated.
        unique, nodeid, uid, gid, pid: fields of the header; the others are computed.

    Raises:
        WireError: the request cannot be sent.
    """
    kind = type(request)
    if kind is Unknown:
        opcode, body, extlen = request[0], bytes(request[1]), 0
    else:
        known = _REQUEST_ENCODERS[kind]
        if known is None:
            raise WireError(f"{kind.__name__} is no request")
        opcode, encode = known
        body, extlen = encode(request)
        if kind is Setxattr and not features.setxattr_ext:
            body = body[:COMPAT_SETXATTR_IN_SIZE] + body[size_of(SetxattrIn) :]
    size = IN_HEADER_SIZE + len(body)
    numbers = (size, opcode, unique, nodeid, uid, gid, pid)
    if size > _LONGEST or any(not 0 <= n <= _LONGEST for n in (opcode, uid, gid, pid)):
        raise WireError(f"{kind.__name__}: a number in {numbers} does not fit 32 bits")
    if any(not 0 <= n < 1 << 64 for n in (unique, nodeid)):
        raise WireError(f"{kind.__name__}: a number in {numbers} does not fit 64 bits")
    return _pack_in_header(*numbers, extlen, 0) + body


def decode_out_header(buffer: Buffer) -> OutHeader:
    """The header of a reply or a notification; its length is checked.

    Raises:
        WireError: there are less than 16 bytes, or not as many as it says.
    """
    if len(buffer) < OUT_HEADER_SIZE:
        raise WireError(f"reply: {len(buffer)} bytes, its header alone has {OUT_HEADER_SIZE}")
    header = _new(OutHeader, struct_of(OutHeader).unpack_from(buffer))
    if header[0] != len(buffer):
        raise WireError(f"reply: its header says {header[0]} bytes, {len(buffer)} came")
    return header


def decode_reply(
    opcode: int, buffer: Buffer, *, size_query: bool = False
) -> tuple[OutHeader, Reply | None]:
    """One reply, with the checks of the kernel.

    Args:
        opcode: of the request.
        buffer: exactly one message; must be left alone as long as the payload is used.
        size_query: the request was a GETXATTR or LISTXATTR of size 0.

    Returns:
        Header and body; the body is None if ``header.error`` is not 0.

    Raises:
        WireError: the message is malformed, or no reply to such a request.
    """
    header = decode_out_header(buffer)
    name = _name(opcode)
    if header.unique == 0:
        raise WireError(f"reply to {name}: unique 0 marks a notification")
    if not -_MAX_ERRNO <= header.error <= 0:
        raise WireError(f"reply to {name}: error {header.error} is not in -{_MAX_ERRNO} to 0")
    size = len(buffer)
    if header.error:
        if size != OUT_HEADER_SIZE:
            raise WireError(f"reply to {name}: {size - OUT_HEADER_SIZE} bytes behind an error")
        return header, None
    if size_query and opcode in _SIZED:
        return header, _VARIANT_DECODERS[GetxattrReply](buffer, size, 0)
    decode = _REPLY_DECODERS[opcode]
    if decode is None:
        raise WireError(f"reply to {name}: there is none")
    reply = decode(buffer, size, 0)
    if type(reply) is IoctlReply and reply.arg.flags & IoctlFlag.RETRY:
        _check_retry(reply.arg)
        reply = _VARIANT_DECODERS[IoctlRetryReply](buffer, size, 0)
    return header, reply


def _check_retry(arg: IoctlOut) -> None:
    if arg.in_iovs + arg.out_iovs > IOCTL_MAX_IOV:
        raise WireError(
            f"reply to IOCTL: {arg.in_iovs} + {arg.out_iovs} ranges, at most {IOCTL_MAX_IOV}"
        )


def encode_reply(unique: int, reply: Reply) -> bytes:
    """The bytes of a reply that is no error.

    Args:
        unique: of the request.
        reply: an instance of a class of :mod:`penstock.wire.replies`.

    Raises:
        WireError: the reply cannot be sent.
    """
    kind = type(reply)
    encode = _REPLY_ENCODERS[kind]
    if encode is None:
        raise WireError(f"{kind.__name__} is no reply")
    if isinstance(reply, IoctlRetryReply):
        _check_retry(reply.arg)
    body, _ = encode(reply)
    size = OUT_HEADER_SIZE + len(body)
    if size > _LONGEST or not 0 < unique < 1 << 64:
        raise WireError(f"{kind.__name__}: size {size} or unique {unique} does not fit")
    return _pack_out_header(size, 0, unique) + body


def encode_error(unique: int, errno: int) -> bytes:
    """The bytes of a reply that is an error.

    Args:
        unique: of the request.
        errno: positive, at most 511.

    Raises:
        WireError: there is no such errno, or no such unique.
    """
    if not 0 < errno <= _MAX_ERRNO or not 0 < unique < 1 << 64:
        raise WireError(f"errno {errno} or unique {unique} is out of range")
    return _pack_out_header(OUT_HEADER_SIZE, -errno, unique)
