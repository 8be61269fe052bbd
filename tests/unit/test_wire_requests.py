# SPDX-License-Identifier: Apache-2.0
"""Requests: round trips of all of them, messages spelled out byte by byte, and hostile bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.abi.fuse import (
    BatchForgetIn,
    CreateIn,
    ForgetOne,
    GetattrIn,
    InHeader,
    InitFlag,
    IoctlIn,
    MkdirIn,
    Opcode,
    ReadIn,
    SetxattrIn,
    WriteIn,
)
from penstock.abi.layout import pack
from penstock.wire import (
    REPLIES,
    REQUESTS,
    Extensions,
    Features,
    WireError,
    decode_header,
    decode_request,
    encode_request,
    requests,
)
from tests.support import messages

EXTENDED = Features(setxattr_ext=True)
CREATES = (Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.CREATE, Opcode.TMPFILE)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
every_opcode = pytest.mark.parametrize("opcode", REQUESTS, ids=lambda o: Opcode(o).name)


def request(opcode: int, body: bytes, extlen: int = 0) -> bytes:
    """A message with a right header."""
    return pack(InHeader(40 + len(body), opcode, 2, 1, 0, 0, 7, extlen, 0)) + body


def refused(opcode: int, body: bytes, match: str, extlen: int = 0) -> None:
    """Assert that the message is refused with these words."""
    with pytest.raises(WireError, match=match):
        decode_request(request(opcode, body, extlen), EXTENDED)


def test_every_operation_has_a_request_and_a_reply() -> None:
    markers = {Opcode.INIT_BSWAP_RESERVED, Opcode.CUSE_INIT_BSWAP_RESERVED}
    assert set(REQUESTS) == set(REPLIES) == set(Opcode) - markers
    assert len(set(REQUESTS.values())) == len(REQUESTS)


@every_opcode
@settings(max_examples=25)
@given(choice=st.data())
def test_round_trip(opcode: int, choice: st.DataObject) -> None:
    message = choice.draw(messages.bodies(REQUESTS[opcode]))
    fields = dict(zip(("uid", "gid", "pid"), choice.draw(st.tuples(u32, u32, u32)), strict=True))
    unique, nodeid = choice.draw(st.tuples(u64, u64))
    raw = encode_request(message, EXTENDED, unique=unique, nodeid=nodeid, **fields)
    header, decoded = decode_request(raw, EXTENDED)
    assert decoded == message
    assert type(decoded) is REQUESTS[opcode]
    assert header[:7] == (len(raw), opcode, unique, nodeid, *fields.values())
    assert header == decode_header(raw)
    in_a_ring = memoryview(bytearray(b"\xff" * 3 + raw + b"\xff"))[3:-1]
    assert decode_request(in_a_ring, EXTENDED) == (header, message)


@every_opcode
@settings(max_examples=25)
@given(choice=st.data())
def test_mutated_messages_are_refused_or_mean_what_they_say(
    opcode: int, choice: st.DataObject
) -> None:
    message = choice.draw(messages.bodies(REQUESTS[opcode]))
    raw = choice.draw(messages.mutations(encode_request(message, EXTENDED, unique=2)))
    raw = struct.pack("<I", len(raw)) + raw[4:]
    features = choice.draw(st.sampled_from([EXTENDED, Features()]))
    result = messages.outcome(decode_request, raw, features)
    if isinstance(result, WireError):
        return
    header, decoded = result
    again = encode_request(decoded, features, unique=header.unique)
    if header.opcode == Opcode.INIT:
        assert (again[40:] + bytes(len(raw)))[: min(64, len(raw) - 40)] == raw[40:104]
    elif header.opcode in CREATES:
        assert decode_request(again, features)[1] == decoded
    else:
        assert again[40:] == raw[40:]


@every_opcode
@settings(max_examples=25)
@given(
    body=messages.garbage(),
    extlen=st.integers(0, 40),
    features=st.sampled_from([EXTENDED, Features()]),
)
def test_any_body_decodes_or_is_refused(
    opcode: int, body: bytes, extlen: int, features: Features
) -> None:
    result = messages.outcome(decode_request, request(opcode, body, extlen), features)
    if not isinstance(result, WireError):
        assert result[0].opcode == opcode
        assert type(result[1]) is REQUESTS[opcode]


@given(raw=messages.garbage(), features=st.sampled_from([EXTENDED, Features()]))
def test_any_bytes_decode_or_are_refused(raw: bytes, features: Features) -> None:
    result = messages.outcome(decode_request, raw, features)
    whole = len(raw) >= 40 and int.from_bytes(raw[:4], "little") == len(raw)
    assert whole or isinstance(result, WireError)


def test_lookup_byte_by_byte() -> None:
    raw = bytes.fromhex(
        "2c000000 01000000 2a00000000000000 0100000000000000 e8030000 64000000 4d000000 0000 0000"
        "75737200"
    )
    header, decoded = decode_request(raw)
    assert header == InHeader(44, 1, 42, 1, 1000, 100, 77, 0, 0)
    assert decoded == requests.Lookup(b"usr")
    assert encode_request(decoded, unique=42, nodeid=1, uid=1000, gid=100, pid=77) == raw


def test_write_byte_by_byte() -> None:
    body = bytes.fromhex(
        "0500000000000000 0010000000000000 03000000 01000000 0700000000000000 02800000 00000000"
        "616263"
    )
    _, decoded = decode_request(request(16, body))
    assert decoded == requests.Write(WriteIn(5, 4096, 3, 1, 7, 0o100002, 0), b"abc")


def test_data_is_a_view_into_the_message() -> None:
    buffer = bytearray(
        encode_request(requests.Write(WriteIn(0, 0, 3, 0, 0, 0, 0), b"abc"), unique=2)
    )
    _, decoded = decode_request(memoryview(buffer))
    assert isinstance(decoded, requests.Write)
    buffer[-1:] = b"X"
    assert bytes(decoded.data) == b"abX"


def test_names_are_copies() -> None:
    buffer = bytearray(encode_request(requests.Lookup(b"abc"), unique=2))
    _, decoded = decode_request(memoryview(buffer))
    buffer[-2:] = b"XX"
    assert decoded == requests.Lookup(b"abc")


def test_init_as_a_7_45_kernel_sends_it() -> None:
    body = struct.pack("<16I", 7, 45, 131072, 0x73FFFFFB, 0x5FD, *[0] * 11)
    header, decoded = decode_request(request(26, body))
    assert header.len == 104
    assert isinstance(decoded, requests.Init)
    flags = InitFlag(decoded.arg.flags | decoded.arg.flags2 << 32)
    assert InitFlag.PASSTHROUGH in flags
    assert InitFlag.OVER_IO_URING not in flags


@pytest.mark.parametrize("size", [16, 20, 64, 80])
def test_init_may_be_shorter_or_longer(size: int) -> None:
    """Kernels before 7.36 send 16 bytes; those to come may send more."""
    body = struct.pack("<5I", 7, 31, 65536, 1, 9) + b"\xee" * 60
    _, decoded = decode_request(request(26, body[:size]))
    assert isinstance(decoded, requests.Init)
    assert decoded.arg[:4] == (7, 31, 65536, 1)
    assert decoded.arg.flags2 == (9 if size > 16 else 0)
    assert decoded.arg.unused == (b"\xee" * 44)[: max(0, size - 20)].ljust(44, b"\0")
    refused(26, body[:15], "INIT: 15 bytes where 16 or more")


@pytest.mark.parametrize("opcode", [Opcode.INIT_BSWAP_RESERVED, Opcode.CUSE_INIT_BSWAP_RESERVED])
def test_other_endianness_is_named(opcode: int) -> None:
    refused(opcode, bytes(64), "endianness")


def test_unknown_operation_is_no_error() -> None:
    header, decoded = decode_request(request(4000, b"body"))
    assert header.opcode == 4000
    assert decoded == requests.Unknown(4000, b"body")
    assert encode_request(decoded, unique=2, nodeid=1, pid=7) == request(4000, b"body")


def test_setxattr_has_the_negotiated_size() -> None:
    short = struct.pack("<II", 3, 1) + b"user.a\0xyz"
    _, decoded = decode_request(request(21, short))
    assert decoded == requests.Setxattr(SetxattrIn(3, 1, 0, 0), b"user.a", b"xyz")
    assert encode_request(decoded, unique=2, nodeid=1, pid=7) == request(21, short)
    long = struct.pack("<IIII", 3, 1, 1, 0) + b"user.a\0xyz"
    _, decoded = decode_request(request(21, long), EXTENDED)
    assert decoded == requests.Setxattr(SetxattrIn(3, 1, 1, 0), b"user.a", b"xyz")
    assert encode_request(decoded, EXTENDED, unique=2, nodeid=1, pid=7) == request(21, long)
    for size in range(8):
        with pytest.raises(WireError, match="SETXATTR"):
            decode_request(request(21, short[:size]))


SECURITY = (
    struct.pack("<II", 48, 1)
    + struct.pack("<II", 11, 0)
    + b"security.selinux\0"
    + b"u:object_r:"
    + bytes(4)
)
GROUPS = struct.pack("<IIII", 16, 32, 1, 1000)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", Extensions()),
        (struct.pack("<II", 8, 0), Extensions()),
        (SECURITY, Extensions(((b"security.selinux", b"u:object_r:"),))),
        (GROUPS, Extensions((), (1000,))),
        (SECURITY + GROUPS, Extensions(((b"security.selinux", b"u:object_r:"),), (1000,))),
        (struct.pack("<IIIIII", 20, 32, 2, 5, 6, 0), Extensions((), (5, 6))),
    ],
)
def test_extensions_byte_by_byte(raw: bytes, expected: Extensions) -> None:
    assert len(raw) % 8 == 0
    body = struct.pack("<II", 0o755, 0o22) + b"directory\0" + raw
    for extlen in {len(raw) // 8, 0}:  # kernels before 7.38 leave the length zero
        _, decoded = decode_request(request(9, body, extlen))
        assert decoded == requests.Mkdir(MkdirIn(0o755, 0o22), b"directory", expected)


def test_extensions_are_written_as_the_kernel_does() -> None:
    both = Extensions(((b"security.selinux", b"u:object_r:"),), (1000,))
    raw = encode_request(requests.Mkdir(MkdirIn(0o755, 0), b"d", both), unique=2)
    assert raw[48:] == b"d\0" + SECURITY + GROUPS
    assert decode_header(raw).total_extlen == len(SECURITY + GROUPS) // 8


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"\0" * 4, "a header has 8"),
        (struct.pack("<II", 4, 0), "size 4"),
        (struct.pack("<II", 0, 0), "size 0"),
        (struct.pack("<II", 16, 0), "size 16"),
        (struct.pack("<II", 0xFFFF_FFFF, 0), "size 4294967295"),
        (struct.pack("<II", 8, 33), "kind 33"),
        (struct.pack("<IIII", 8, 0, 8, 0), "kind 0 unknown or repeated"),
        (GROUPS + GROUPS, "kind 32 unknown or repeated"),
        (struct.pack("<II", 8, 1), "without its header"),
        (struct.pack("<II", 8, 31), "without its header"),
        (struct.pack("<IIII", 16, 1, 0, 0), "without a name"),
        (struct.pack("<IIII", 24, 1, 0, 0) + bytes(8), "without a name"),
        (struct.pack("<IIII", 24, 1, 9, 0) + b"a\0" + bytes(6), "context of 9 bytes, 6 fit"),
        (struct.pack("<IIII", 24, 1, 9, 0) + b"abcdefgh", "without a name"),
        (struct.pack("<II", 8, 32), "groups without their number"),
        (struct.pack("<IIII", 16, 32, 2, 1), "2 groups, 1 fit"),
        (struct.pack("<IIII", 16, 32, 0xFFFF_FFFF, 1), "4294967295 groups"),
    ],
)
def test_bad_extensions_are_refused(raw: bytes, match: str) -> None:
    refused(9, struct.pack("<II", 0, 0) + b"d\0" + raw, match)


def test_extension_length_must_agree() -> None:
    body = struct.pack("<II", 0, 0) + b"d\0" + GROUPS
    refused(9, body, r"16 bytes where total_extlen = 24", extlen=3)


@pytest.mark.parametrize(
    ("opcode", "body", "match"),
    [
        (Opcode.LOOKUP, b"", "LOOKUP: no NUL in the 0 bytes"),
        (Opcode.LOOKUP, b"usr", "LOOKUP: no NUL"),
        (Opcode.LOOKUP, b"\0", "LOOKUP: b'' is no name"),
        (Opcode.LOOKUP, b"a/b\0", "is no name"),
        (Opcode.LOOKUP, b"usr\0x", "LOOKUP: 1 bytes behind the end"),
        (Opcode.LOOKUP, b"x" * 4096 + b"\0", "no NUL in the 4096 bytes"),
        (Opcode.GETATTR, bytes(15), r"GETATTR: 15 bytes where 16 \(GetattrIn\) were expected"),
        (Opcode.GETATTR, bytes(17), "GETATTR: 17 bytes"),
        (Opcode.READLINK, b"x", "READLINK: 1 bytes where 0"),
        (Opcode.WRITE, bytes(39), "WRITE: 39 bytes where 40 or more"),
        (Opcode.WRITE, pack(WriteIn(0, 0, 4, 0, 0, 0, 0)) + b"abc", "WriteIn says size 4, but 3"),
        (Opcode.WRITE, pack(WriteIn(0, 0, 2, 0, 0, 0, 0)) + b"abc", "WriteIn says size 2, but 3"),
        (Opcode.IOCTL, pack(IoctlIn(0, 0, 0, 0, 1, 0)), "IoctlIn says in_size 1, but 0"),
        (Opcode.RENAME, bytes(8) + b"a\0", "RENAME: no NUL in the 0 bytes"),
        (Opcode.RENAME, bytes(8) + b"a\0/\0", "RENAME: b'/' is no name"),
        (Opcode.RENAME2, bytes(8), "RENAME2: 8 bytes where 16 or more"),
        (Opcode.SYMLINK, b"a\0b", "SYMLINK: no NUL"),
        (Opcode.SYMLINK, b"\0b\0", "SYMLINK: b'' is no name"),
        (Opcode.SETXATTR, pack(SetxattrIn(2, 0, 0, 0)) + b"a\0b", "SetxattrIn says size 2, but 1"),
        (Opcode.BATCH_FORGET, struct.pack("<II", 2, 0) + bytes(16), "says count 2, but 1"),
        (Opcode.BATCH_FORGET, struct.pack("<II", 1, 0) + bytes(15), "a multiple of 16"),
        (Opcode.BATCH_FORGET, struct.pack("<II", 0xFFFF_FFFF, 0), "says count 4294967295"),
        (Opcode.REMOVEMAPPING, bytes(3), "REMOVEMAPPING: 3 bytes where 4 or more"),
        (Opcode.NOTIFY_REPLY, bytes(40) + b"x", "says size 0, but 1"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(opcode: int, body: bytes, match: str) -> None:
    refused(opcode, body, match)


@pytest.mark.parametrize("said", [0, 39, 55, 57, 0xFFFF_FFFF])
def test_header_length_must_be_that_of_the_message(said: int) -> None:
    raw = encode_request(requests.Getattr(GetattrIn(0, 0, 0)), unique=2)
    with pytest.raises(WireError, match=f"header says {said} bytes, 56 came"):
        decode_request(struct.pack("<I", said) + raw[4:])


def test_short_messages_have_no_header() -> None:
    for size in range(40):
        with pytest.raises(WireError, match=f"{size} bytes, its header alone has 40"):
            decode_request(bytes(size))
        with pytest.raises(WireError, match="header alone has 40"):
            decode_header(bytes(size))


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (requests.Lookup(b"a\0b"), "is no name"),
        (requests.Lookup(b""), "is no name"),
        (requests.Lookup(b"a/b"), "is no name"),
        (requests.Lookup(b"x" * 4096), "is no name"),
        (requests.Symlink(b"a", b"b\0"), "is no name"),
        (requests.Write(WriteIn(0, 0, 9, 0, 0, 0, 0), b"abc"), "says size 9, but 3"),
        (requests.BatchForget(BatchForgetIn(1, 0), ()), "says count 1, but 0"),
        (requests.Read(ReadIn(-1, 0, 0, 0, 0, 0, 0)), "does not fit"),
        (requests.Read(ReadIn(0, 0, 1 << 32, 0, 0, 0, 0)), "does not fit"),
        (requests.Mkdir(MkdirIn(0, 0), b"d", Extensions(((b"a", b""),) * 32)), "at most 31"),
        (requests.Mkdir(MkdirIn(0, 0), b"d", Extensions(((b"", b""),))), "does not name"),
        (requests.Mkdir(MkdirIn(0, 0), b"d", Extensions(((b"a\0", b""),))), "does not name"),
        (requests.Mkdir(MkdirIn(0, 0), b"d", Extensions((), (1,) * 131072)), "at most 524280"),
        (requests.Mkdir(MkdirIn(0, 0), b"d", Extensions((), (-1,))), "does not fit"),
        (ForgetOne(1, 2), "ForgetOne is no request"),
    ],
)
def test_what_cannot_be_sent_is_refused(message: Any, match: str) -> None:
    with pytest.raises(WireError, match=match):
        encode_request(message, unique=2)


@pytest.mark.parametrize("field", ["unique", "nodeid", "uid", "gid", "pid"])
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_header_fields_must_fit(field: str, value: int) -> None:
    fields: dict[str, Any] = {"unique": 2, field: value}
    with pytest.raises(WireError, match="does not fit"):
        encode_request(requests.Statfs(), **fields)


def test_create_without_extensions() -> None:
    message = requests.Create(CreateIn(1, 2, 3, 4), b"name")
    raw = encode_request(message, unique=2)
    assert raw[40:] == pack(message.arg) + b"name\0"
    assert decode_request(raw)[1] == message
    assert message.ext == Extensions((), ())


def test_longest_name_is_accepted() -> None:
    raw = encode_request(requests.Lookup(b"x" * 4095), unique=2)
    assert decode_request(raw)[1] == requests.Lookup(b"x" * 4095)
