# SPDX-License-Identifier: Apache-2.0
"""Notifications: round trips, the kernel's own checks, and hostile bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.abi.fuse import NotifyCode, NotifyInvalEntryOut, NotifyPruneOut, OutHeader
from penstock.abi.layout import pack
from penstock.wire import (
    NOTIFICATIONS,
    WireError,
    decode_notification,
    encode_error,
    encode_notification,
    notify,
)
from tests.support import messages

every_code = pytest.mark.parametrize("code", NOTIFICATIONS, ids=lambda c: NotifyCode(c).name)


def notification(code: int, body: bytes, unique: int = 0) -> bytes:
    """A message with a right length."""
    return pack(OutHeader(16 + len(body), code, unique)) + body


def test_every_code_has_a_notification() -> None:
    assert set(NOTIFICATIONS) == set(NotifyCode)


@every_code
@settings(max_examples=25)
@given(choice=st.data())
def test_round_trip(code: int, choice: st.DataObject) -> None:
    message = choice.draw(messages.bodies(NOTIFICATIONS[code]))
    raw = encode_notification(message)
    assert raw[:16] == struct.pack("<IiQ", len(raw), code, 0)
    decoded = decode_notification(raw)
    assert decoded == message
    assert type(decoded) is type(message)


@every_code
@settings(max_examples=25)
@given(choice=st.data())
def test_mutated_notifications_are_refused_or_mean_what_they_say(
    code: int, choice: st.DataObject
) -> None:
    message = choice.draw(messages.bodies(NOTIFICATIONS[code]))
    raw = choice.draw(messages.mutations(encode_notification(message)))
    raw = struct.pack("<I", len(raw)) + raw[4:]
    result = messages.outcome(decode_notification, raw)
    assert isinstance(result, WireError) or encode_notification(result) == raw


@settings(max_examples=300)
@given(code=st.integers(-1, 12), body=messages.garbage())
def test_any_body_decodes_or_is_refused(code: int, body: bytes) -> None:
    raw = notification(code, body)
    result = messages.outcome(decode_notification, raw)
    assert isinstance(result, WireError) or encode_notification(result) == raw


@given(raw=messages.garbage())
def test_any_bytes_decode_or_are_refused(raw: bytes) -> None:
    result = messages.outcome(decode_notification, raw)
    assert isinstance(result, WireError) or encode_notification(result) == raw


@pytest.mark.parametrize(
    ("raw", "code", "body"),
    [
        (notify.poll_wakeup(7), 1, struct.pack("<Q", 7)),
        (notify.inval_inode(5, -1, 0), 2, struct.pack("<Qqq", 5, -1, 0)),
        (notify.inval_entry(1, b"usr", 1), 3, struct.pack("<QII", 1, 3, 1) + b"usr\0"),
        (notify.store(5, 4096, b"abc"), 4, struct.pack("<QQII", 5, 4096, 3, 0) + b"abc"),
        (notify.retrieve(9, 5, 4096, 10), 5, struct.pack("<QQQII", 9, 5, 4096, 10, 0)),
        (notify.delete(1, 5, b"usr"), 6, struct.pack("<QQII", 1, 5, 3, 0) + b"usr\0"),
        (notify.resend(), 7, b""),
        (notify.inc_epoch(), 8, b""),
        (notify.prune([5, 6]), 9, struct.pack("<IIQQQ", 2, 0, 0, 5, 6)),
    ],
    ids=lambda value: value if isinstance(value, int) else "",
)
def test_byte_by_byte(raw: bytes, code: int, body: bytes) -> None:
    assert raw == notification(code, body)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (bytes(15), "15 bytes"),
        (notification(1, bytes(8), unique=4), "unique 4 marks a reply, 0 was expected"),
        (notification(0, b""), "code 0 is not known"),
        (notification(10, b""), "code 10 is not known"),
        (notification(-2, b""), "code -2 is not known"),
        (notification(1, bytes(7)), "NOTIFY_POLL: 7 bytes where 8"),
        (notification(2, bytes(25)), "NOTIFY_INVAL_INODE: 25 bytes"),
        (notification(3, struct.pack("<QII", 1, 4, 0) + b"usr\0"), "says namelen 4, but 3"),
        (notification(3, struct.pack("<QII", 1, 3, 0) + b"usr"), "no NUL"),
        (notification(3, struct.pack("<QII", 1, 3, 0) + b"usr\0\0"), "1 bytes behind the end"),
        (notification(3, struct.pack("<QII", 1, 3, 0) + b"u/r\0"), "is no name"),
        (notification(4, struct.pack("<QQII", 5, 0, 4, 0) + b"abc"), "says size 4, but 3"),
        (notification(7, b"x"), "NOTIFY_RESEND: 1 bytes where 0"),
        (notification(9, struct.pack("<IIQQ", 2, 0, 0, 5)), "says count 2, but 1"),
        (notification(9, struct.pack("<IIQ", 0, 0, 0) + bytes(7)), "a multiple of 8"),
    ],
)
def test_bad_notifications_are_refused_with_a_reason(raw: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        decode_notification(raw)


def test_an_error_is_no_notification() -> None:
    with pytest.raises(WireError, match="marks a reply"):
        decode_notification(encode_error(2, 5))


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (notify.InvalEntry(NotifyInvalEntryOut(1, 4, 0), b"usr"), "says namelen 4, but 3"),
        (notify.InvalEntry(NotifyInvalEntryOut(1, 3, 0), b"u/r"), "is no name"),
        (notify.Prune(NotifyPruneOut(1, 0, 0), ()), "says count 1, but 0"),
        (notify.Prune(NotifyPruneOut(1, 0, 0), (-1,)), "does not fit"),
        ((1,), "tuple is no notification"),
    ],
)
def test_what_cannot_be_sent_is_refused(message: Any, match: str) -> None:
    with pytest.raises(WireError, match=match):
        encode_notification(message)
