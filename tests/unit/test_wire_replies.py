# SPDX-License-Identifier: Apache-2.0
"""Replies: round trips of all of them, the kernel's own checks, and hostile bytes."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.abi.fuse import (
    Attr,
    EntryOut,
    GetxattrOut,
    InitOut,
    IoctlFlag,
    IoctlIovec,
    IoctlOut,
    Opcode,
    OpenOut,
    OutHeader,
    WriteOut,
)
from penstock.abi.layout import pack
from penstock.wire import (
    REPLIES,
    WireError,
    decode_out_header,
    decode_reply,
    encode_error,
    encode_reply,
    replies,
)
from tests.support import messages

ANSWERED = {opcode: cls for opcode, cls in REPLIES.items() if cls is not None}
uniques = st.integers(1, (1 << 64) - 1)
every_answer = pytest.mark.parametrize("opcode", ANSWERED, ids=lambda o: Opcode(o).name)


def reply(body: bytes, error: int = 0, unique: int = 2) -> bytes:
    """A message with a right length."""
    return pack(OutHeader(16 + len(body), error, unique)) + body


@every_answer
@settings(max_examples=25)
@given(choice=st.data())
def test_round_trip(opcode: int, choice: st.DataObject) -> None:
    message = choice.draw(messages.bodies(ANSWERED[opcode]))
    unique = choice.draw(uniques)
    raw = encode_reply(unique, message)
    header, decoded = decode_reply(opcode, raw)
    assert header == (len(raw), 0, unique)
    assert decoded == message
    assert type(decoded) is type(message)
    in_a_ring = memoryview(bytearray(b"\xff" * 5 + raw + b"\xff"))[5:-1]
    assert decode_reply(opcode, in_a_ring) == (header, message)


@every_answer
@settings(max_examples=25)
@given(choice=st.data())
def test_mutated_replies_are_refused_or_mean_what_they_say(
    opcode: int, choice: st.DataObject
) -> None:
    message = choice.draw(messages.bodies(ANSWERED[opcode]))
    raw = choice.draw(messages.mutations(encode_reply(2, message)))
    raw = struct.pack("<I", len(raw)) + raw[4:]
    result = messages.outcome(decode_reply, opcode, raw)
    if isinstance(result, WireError):
        return
    header, decoded = result
    if decoded is None:
        assert encode_error(header.unique, -header.error) == raw
    elif opcode == Opcode.INIT:
        assert encode_reply(header.unique, decoded)[4 : len(raw)] == raw[4:80]
    else:
        assert encode_reply(header.unique, decoded) == raw


@settings(max_examples=300)
@given(
    opcode=st.sampled_from([*REPLIES, 3999]),
    raw=messages.garbage(),
    whole=st.booleans(),
    size_query=st.booleans(),
)
def test_any_bytes_decode_or_are_refused(
    opcode: int, raw: bytes, whole: bool, size_query: bool
) -> None:
    if whole:
        raw = reply(raw)
    result = messages.outcome(lambda: decode_reply(opcode, raw, size_query=size_query))
    assert isinstance(result, WireError) or result[0].len == len(raw)


@given(message=messages.bodies(replies.IoctlRetryReply))
def test_ioctl_retry_round_trip(message: replies.IoctlRetryReply) -> None:
    assert decode_reply(Opcode.IOCTL, encode_reply(2, message))[1] == message


def test_ioctl_retry_is_bounded() -> None:
    one = IoctlIovec(0x7000, 8)
    arg = IoctlOut(0, int(IoctlFlag.RETRY), 128, 128)
    longest = replies.IoctlRetryReply(arg, (one,) * 256)
    assert decode_reply(Opcode.IOCTL, encode_reply(2, longest))[1] == longest
    longer = replies.IoctlRetryReply(arg._replace(in_iovs=129), (one,) * 257)
    with pytest.raises(WireError, match=r"129 \+ 128 ranges, at most 256"):
        encode_reply(2, longer)
    with pytest.raises(WireError, match=r"129 \+ 128 ranges, at most 256"):
        decode_reply(Opcode.IOCTL, reply(pack(longer.arg) + pack(one) * 257))
    with pytest.raises(WireError, match=r"says in_iovs 128 \+ out_iovs 128, but 2"):
        decode_reply(Opcode.IOCTL, reply(pack(arg) + pack(one) * 2))
    with pytest.raises(WireError, match="a multiple of 16"):
        decode_reply(Opcode.IOCTL, reply(pack(arg) + bytes(15)))


@pytest.mark.parametrize("opcode", [Opcode.GETXATTR, Opcode.LISTXATTR])
def test_size_question_of_xattr(opcode: int) -> None:
    raw = encode_reply(2, replies.GetxattrReply(GetxattrOut(300, 0)))
    assert decode_reply(opcode, raw, size_query=True)[1] == replies.GetxattrReply(
        GetxattrOut(300, 0)
    )
    assert decode_reply(opcode, raw)[1] == replies.DataReply(pack(GetxattrOut(300, 0)))
    with pytest.raises(WireError, match="7 bytes where 8"):
        decode_reply(opcode, reply(bytes(7)), size_query=True)


def test_size_question_changes_nothing_else() -> None:
    raw = encode_reply(2, replies.WriteReply(WriteOut(3, 0)))
    assert decode_reply(Opcode.WRITE, raw, size_query=True)[1] == replies.WriteReply(WriteOut(3, 0))


def test_create_byte_by_byte() -> None:
    attr = Attr(12, 3, 8, -1, 2, 3, 4, 5, 6, 0o100644, 1, 1000, 100, 0, 4096, 0)
    entry = EntryOut(5, 6, 1, 2, 3, 4, attr)
    raw = encode_reply(9, replies.CreateReply(entry, OpenOut(77, 1, -1)))
    assert len(raw) == 16 + 144
    expected = struct.pack("<IiQ", 160, 0, 9) + struct.pack("<4QII", 5, 6, 1, 2, 3, 4)
    expected += struct.pack("<3Q3q", 12, 3, 8, -1, 2, 3)
    expected += struct.pack("<10I", 4, 5, 6, 0o100644, 1, 1000, 100, 0, 4096, 0)
    assert raw == expected + struct.pack("<QIi", 77, 1, -1)


def test_time_before_1970() -> None:
    attr = Attr(1, 0, 0, -(1 << 63), -1, 0, 0, 999_999_999, 0, 0o100644, 1, 0, 0, 0, 0, 0)
    raw = encode_reply(2, replies.EntryReply(EntryOut(1, 0, 0, 0, 0, 0, attr)))
    _, decoded = decode_reply(Opcode.LOOKUP, raw)
    assert isinstance(decoded, replies.EntryReply)
    assert (decoded.entry.attr.atime, decoded.entry.attr.mtime) == (-(1 << 63), -1)


@pytest.mark.parametrize("size", [8, 24, 64])
def test_init_reply_may_be_cut(size: int) -> None:
    whole = InitOut(7, 45, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, b"\xaa" * 22)
    _, decoded = decode_reply(Opcode.INIT, reply(pack(whole)[:size]))
    assert isinstance(decoded, replies.InitReply)
    assert pack(decoded.arg) == pack(whole)[:size].ljust(64, b"\0")


def test_init_reply_has_a_version() -> None:
    with pytest.raises(WireError, match="reply to INIT: 7 bytes where 8 or more"):
        decode_reply(Opcode.INIT, reply(bytes(7)))


class Entry(EntryOut):
    """An application's own kind of entry."""

    __slots__ = ()


class Attributes(Attr):
    """An application's own kind of attributes."""

    __slots__ = ()


def test_subclasses_of_structures_are_encoded() -> None:
    attr = Attributes(*range(16))
    entry = Entry(1, 2, 3, 4, 5, 6, attr)
    plain = EntryOut(1, 2, 3, 4, 5, 6, Attr(*range(16)))
    assert encode_reply(2, replies.EntryReply(entry)) == encode_reply(2, replies.EntryReply(plain))


@pytest.mark.parametrize("code", [1, errno.ENOENT, errno.ENOSYS, 511])
def test_error_round_trip(code: int) -> None:
    raw = encode_error(1 << 63 | 4, code)
    assert raw == struct.pack("<IiQ", 16, -code, 1 << 63 | 4)
    header, decoded = decode_reply(Opcode.LOOKUP, raw)
    assert (header.error, decoded) == (-code, None)


@pytest.mark.parametrize(
    ("unique", "code"), [(2, 0), (2, -2), (2, 512), (0, 2), (-1, 2), (1 << 64, 2)]
)
def test_error_that_the_kernel_refuses_is_not_sent(unique: int, code: int) -> None:
    with pytest.raises(WireError, match="out of range"):
        encode_error(unique, code)


@pytest.mark.parametrize(
    ("opcode", "raw", "match"),
    [
        (Opcode.LOOKUP, b"", "reply: 0 bytes, its header alone has 16"),
        (Opcode.LOOKUP, bytes(15), "reply: 15 bytes"),
        (Opcode.LOOKUP, struct.pack("<IiQ", 17, 0, 2), "header says 17 bytes, 16 came"),
        (Opcode.LOOKUP, reply(b"", unique=0), "unique 0 marks a notification"),
        (Opcode.LOOKUP, reply(b"", error=1), "error 1 is not in -511 to 0"),
        (Opcode.LOOKUP, reply(b"", error=-512), "error -512"),
        (Opcode.LOOKUP, reply(b"x", error=-2), "1 bytes behind an error"),
        (Opcode.LOOKUP, reply(b""), r"reply to LOOKUP: 0 bytes where 128 \(EntryOut\)"),
        (Opcode.LOOKUP, reply(bytes(129)), "129 bytes where 128"),
        (Opcode.CREATE, reply(bytes(128)), "reply to CREATE: 128 bytes where 144 or more"),
        (Opcode.CREATE, reply(bytes(145)), "1 bytes behind the end"),
        (Opcode.RELEASE, reply(b"x"), "reply to RELEASE: 1 bytes where 0"),
        (Opcode.IOCTL, reply(bytes(15)), "15 bytes where 16 or more"),
        (Opcode.FORGET, reply(b""), "reply to FORGET: there is none"),
        (Opcode.BATCH_FORGET, reply(b""), "there is none"),
        (Opcode.NOTIFY_REPLY, reply(b""), "there is none"),
        (3999, reply(b""), "reply to operation 3999: there is none"),
    ],
)
def test_bad_replies_are_refused_with_a_reason(opcode: int, raw: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        decode_reply(opcode, raw)


@pytest.mark.parametrize(
    ("unique", "message", "match"),
    [
        (0, replies.EmptyReply(), "unique 0 does not fit"),
        (1 << 64, replies.EmptyReply(), "does not fit"),
        (2, replies.WriteReply(WriteOut(-1, 0)), "does not fit its field"),
        (2, replies.WriteReply(WriteOut(1 << 32, 0)), "does not fit its field"),
        (2, (b"data",), "tuple is no reply"),
    ],
)
def test_what_cannot_be_sent_is_refused(unique: int, message: Any, match: str) -> None:
    with pytest.raises(WireError, match=match):
        encode_reply(unique, message)


def test_data_of_a_reply_is_a_view() -> None:
    buffer = bytearray(encode_reply(2, replies.DataReply(b"abc")))
    _, decoded = decode_reply(Opcode.READ, buffer)
    assert isinstance(decoded, replies.DataReply)
    buffer[-1:] = b"X"
    assert bytes(decoded.data) == b"abX"


def test_out_header_alone() -> None:
    assert decode_out_header(reply(b"abc", unique=7)) == OutHeader(19, 0, 7)
