# SPDX-License-Identifier: Apache-2.0
"""Notifications: one tuple per code, their codec, and a function per notification that makes its
message.

What they do, and when they may be sent: :mod:`penstock.abi.fuse.notify`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from penstock.abi.fuse.notify import (
    NotifyCode,
    NotifyDeleteOut,
    NotifyInvalEntryOut,
    NotifyInvalInodeOut,
    NotifyPollOut,
    NotifyPruneOut,
    NotifyRetrieveOut,
    NotifyStoreOut,
)
from penstock.abi.fuse.structs import OutHeader
from penstock.abi.layout import struct_of, u64
from penstock.wire.codec import OUT_HEADER_SIZE, decode_out_header
from penstock.wire.errors import WireError
from penstock.wire.shapes import Buffer, Decoder, Encoder, Name, Payload, Table, decoder, encoder


class PollWakeup(NamedTuple):
    arg: NotifyPollOut


class InvalInode(NamedTuple):
    arg: NotifyInvalInodeOut


class InvalEntry(NamedTuple):
    arg: NotifyInvalEntryOut
    name: Annotated[Name, "namelen"]


class Store(NamedTuple):
    arg: NotifyStoreOut
    data: Annotated[Payload, "size"]


class Retrieve(NamedTuple):
    arg: NotifyRetrieveOut


class Delete(NamedTuple):
    arg: NotifyDeleteOut
    name: Annotated[Name, "namelen"]


class Resend(NamedTuple):
    pass


class IncEpoch(NamedTuple):
    pass


class Prune(NamedTuple):
    arg: NotifyPruneOut
    nodeids: tuple[u64, ...]


Notification: TypeAlias = tuple[Any, ...]
"""An instance of one of the classes above."""

NOTIFICATIONS: Final[dict[int, type[Notification]]] = {
    NotifyCode.POLL: PollWakeup,
    NotifyCode.INVAL_INODE: InvalInode,
    NotifyCode.INVAL_ENTRY: InvalEntry,
    NotifyCode.STORE: Store,
    NotifyCode.RETRIEVE: Retrieve,
    NotifyCode.DELETE: Delete,
    NotifyCode.RESEND: Resend,
    NotifyCode.INC_EPOCH: IncEpoch,
    NotifyCode.PRUNE: Prune,
}
"""Code to notification."""


def _title(code: int) -> str:
    return f"NOTIFY_{NotifyCode(code).name}"


def _decoder(code: int) -> Decoder | None:
    cls = NOTIFICATIONS.get(code)
    return cls and decoder(cls, _title(code), OUT_HEADER_SIZE)


def _encoder(cls: type) -> tuple[int, Encoder] | None:
    code = next((int(code) for code, known in NOTIFICATIONS.items() if known is cls), None)
    return None if code is None else (code, encoder(cls, _title(code)))


_DECODERS: Final = Table(_decoder)
_ENCODERS: Final = Table(_encoder)
_pack_header: Final = struct_of(OutHeader).pack


def encode_notification(notification: Notification) -> bytes:
    """The bytes of a notification.

    Raises:
        WireError: it cannot be sent; counts and lengths in it must be right.
    """
    kind = type(notification)
    known = _ENCODERS[kind]
    if known is None:
        raise WireError(f"{kind.__name__} is no notification")
    code, encode = known
    body, _ = encode(notification)
    return _pack_header(OUT_HEADER_SIZE + len(body), code, 0) + body


def decode_notification(buffer: Buffer) -> Notification:
    """One notification, with the checks of the kernel.

    Args:
        buffer: exactly one message; must be left alone as long as the payload is used.

    Raises:
        WireError: the message is malformed, or of a code that is not known here.
    """
    header = decode_out_header(buffer)
    if header.unique != 0:
        raise WireError(f"notification: unique {header.unique} marks a reply, 0 was expected")
    decode = _DECODERS[header.error]
    if decode is None:
        raise WireError(f"notification: code {header.error} is not known")
    notification: Notification = decode(buffer, len(buffer), 0)
    return notification


def poll_wakeup(kh: int) -> bytes:
    """Events changed; ``kh`` is that of the POLL."""
    return encode_notification(PollWakeup(NotifyPollOut(kh)))


def inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """Drop attributes and cached data of a range in bytes; ``offset`` < 0: attributes alone,
    ``length`` <= 0: to the end."""
    return encode_notification(InvalInode(NotifyInvalInodeOut(nodeid, offset, length)))


def inval_entry(parent: int, name: bytes, flags: int) -> bytes:
    """Drop a name; ``flags`` are :class:`penstock.abi.fuse.InvalEntryFlag`."""
    return encode_notification(InvalEntry(NotifyInvalEntryOut(parent, len(name), flags), name))


def delete(parent: int, child: int, name: bytes) -> bytes:
    """Drop a name whose inode was removed."""
    return encode_notification(Delete(NotifyDeleteOut(parent, child, len(name), 0), name))


def store(nodeid: int, offset: int, data: bytes | memoryview) -> bytes:
    """Put data into the page cache at a byte offset."""
    return encode_notification(Store(NotifyStoreOut(nodeid, offset, len(data), 0), data))


def retrieve(unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Ask for cached data, in bytes; ``unique`` comes back in the NOTIFY_REPLY."""
    return encode_notification(Retrieve(NotifyRetrieveOut(unique, nodeid, offset, size, 0)))


def resend() -> bytes:
    """Have requests that are not answered sent again."""
    return encode_notification(Resend())


def inc_epoch() -> bytes:
    """Have all names looked up again."""
    return encode_notification(IncEpoch())


def prune(nodeids: Iterable[int]) -> bytes:
    """Have unused inodes dropped, and forgotten."""
    nodes = tuple(nodeids)
    return encode_notification(Prune(NotifyPruneOut(len(nodes), 0, 0), nodes))
