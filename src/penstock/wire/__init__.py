# SPDX-License-Identifier: Apache-2.0
"""The FUSE protocol as messages: bytes to typed requests and replies, and back. No I/O.

- :mod:`~penstock.wire.requests` and :mod:`~penstock.wire.replies` declare a tuple per message;
- :mod:`~penstock.wire.codec` encodes and decodes whole messages;
- :mod:`~penstock.wire.dirents` packs and reads directory listings;
- :mod:`~penstock.wire.notify` has the notifications;
- :mod:`~penstock.wire.printer` writes a message as one line of text.

Both directions are here: a server decodes requests and encodes replies, a client (or a test that
plays the kernel) does the opposite. All that comes from outside is untrusted, and decoding raises
:class:`WireError` and nothing else.

The classes of messages have the operations' names (``Read``, ``Open``), so they are reached through
their modules: ``wire.requests.Read``, ``wire.replies.EntryReply``, ``wire.notify.InvalEntry``.
"""

from penstock.wire import notify, replies, requests
from penstock.wire.codec import (
    IN_HEADER_SIZE,
    OUT_HEADER_SIZE,
    Features,
    decode_header,
    decode_out_header,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from penstock.wire.dirents import (
    DirentPlusRecord,
    DirentRecord,
    decode_direntplus,
    decode_dirents,
    dirent_size,
    direntplus_size,
    pack_dirent,
    pack_direntplus,
)
from penstock.wire.errors import WireError
from penstock.wire.extensions import NO_EXTENSIONS, Extensions
from penstock.wire.notify import (
    NOTIFICATIONS,
    Notification,
    decode_notification,
    encode_notification,
)
from penstock.wire.printer import format_notification, format_reply, format_request
from penstock.wire.replies import REPLIES, Reply
from penstock.wire.requests import REQUESTS, Request
from penstock.wire.shapes import Buffer, Name, Payload, String

__all__ = [
    "IN_HEADER_SIZE",
    "NOTIFICATIONS",
    "NO_EXTENSIONS",
    "OUT_HEADER_SIZE",
    "REPLIES",
    "REQUESTS",
    "Buffer",
    "DirentPlusRecord",
    "DirentRecord",
    "Extensions",
    "Features",
    "Name",
    "Notification",
    "Payload",
    "Reply",
    "Request",
    "String",
    "WireError",
    "decode_direntplus",
    "decode_dirents",
    "decode_header",
    "decode_notification",
    "decode_out_header",
    "decode_reply",
    "decode_request",
    "dirent_size",
    "direntplus_size",
    "encode_error",
    "encode_notification",
    "encode_reply",
    "encode_request",
    "format_notification",
    "format_reply",
    "format_request",
    "notify",
    "pack_dirent",
    "pack_direntplus",
    "replies",
    "requests",
]
