# SPDX-License-Identifier: Apache-2.0
"""The fuse service protocol: packets byte by byte, and each way in which one can be wrong."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.contain import service_protocol as protocol
from penstock.contain.service_protocol import Kind, ProtocolError


def be(*numbers: int) -> bytes:
    """32-bit numbers, big-endian."""
    return struct.pack(f">{len(numbers)}I", *numbers)


def test_kinds_are_ascii() -> None:
    assert {kind.to_bytes(4, "big").decode() for kind in Kind} == {
        "SAFT", "LAST", "OPEN", "BDEV", "TYPE", "NAME", "MNTP", "OPTS", "MTAB", "DOIT", "BYEE",
        "FILE", "REPL",
    }  # fmt: skip


def test_packets_to_the_helper() -> None:
    assert protocol.encode_hello_reply() == b"LAST\0\1\0\0"
    assert protocol.encode_open("img", 0x1234) == b"OPEN" + be(0x1234, 0, 0, 0) + b"img\0"
    assert protocol.encode_open("/dev/x", 2, device=True, quiet=True) == (
        b"BDEV" + be(2, 0, 1, 0) + b"/dev/x\0"
    )
    assert protocol.encode_type() == b"TYPE" + be(0)
    assert protocol.encode_text(Kind.NAME, "a b") == b"NAMEa b\0"
    assert protocol.encode_text(Kind.OPTS, "x") == b"OPTSx\0"
    assert protocol.encode_text(Kind.MTAB, "\udcff") == b"MTAB\xff\0"
    assert protocol.encode_mountpoint(0o040000, "/mnt") == b"MNTP\x40\0\0\0/mnt\0"
    assert protocol.encode_mount(0x106) == b"DOIT" + be(0x106)
    assert protocol.encode_goodbye(32) == b"BYEE" + be(32)


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 65536])
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: protocol.encode_open(text, 0),
        lambda text: protocol.encode_text(Kind.NAME, text),
        lambda text: protocol.encode_mountpoint(0, text),
    ],
)
def test_texts_that_no_packet_takes(encode: Callable[[str], bytes], text: str) -> None:
    with pytest.raises(ValueError):
        encode(text)


def test_text_of_a_kind_without_text() -> None:
    with pytest.raises(ValueError):
        protocol.encode_text(Kind.DOIT, "x")


def test_the_longest_path_fits() -> None:
    assert len(protocol.encode_open("x" * 4096, 0)) == 20 + 4096 + 1


HELLO = b"SAFT\0\1\0\1" + be(0)


def test_hello() -> None:
    assert protocol.decode_hello(HELLO) == (False, False)
    assert protocol.decode_hello(b"SAFT\0\1\0\1" + be(1)) == (True, False)
    assert protocol.decode_hello(b"SAFT\0\0\xff\xff" + be(3)) == (True, True)


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "0 bytes"),
        (b"SAF", "3 bytes"),
        (HELLO[:-1], "11 bytes"),
        (HELLO + b"\0", "13 bytes"),
        (b"LAST" + HELLO[4:], "HELLO_REPLY instead of HELLO"),
        (b"\0\0\0\0" + HELLO[4:], "0x00000000"),
        (b"SAFT\0\2\0\1" + be(0), "versions 2 to 1"),
        (b"SAFT\0\2\0\3" + be(0), "versions 2 to 3"),
        (b"SAFT\0\0\0\0" + be(0), "versions 0 to 0"),
        (b"SAFT\0\1\0\1" + be(4), "unknown flags 0x4"),
        (b"SAFT\0\1\0\1" + be(0x80000001), "unknown flags"),
    ],
)
def test_malformed_hello(packet: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocol.decode_hello(packet)


def test_file() -> None:
    assert protocol.decode_file(b"FILE" + be(0) + b"img\0", "img") == 0
    assert protocol.decode_file(b"FILE" + be(13) + b"\xff\0", "\udcff") == 13


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "no name"),
        (b"FILE" + be(0), "no name"),
        (b"FILE" + be(0) + b"img", "another file"),
        (b"FILE" + be(0) + b"img\0\0", "another file"),
        (b"FILE" + be(0) + b"im\0", "another file"),
        (b"FILE" + be(0) + b"img\0img\0", "another file"),
        (b"REPL" + be(0) + b"img\0", "REPLY instead of FILE"),
        (b"FILE" + be(4096) + b"img\0", "no errno"),
        (b"FILE" + be(0xFFFFFFF3) + b"img\0", "no errno"),
    ],
)
def test_malformed_file(packet: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocol.decode_file(packet, "img")


def test_reply() -> None:
    assert protocol.decode_reply(b"REPL" + be(0)) == 0
    assert protocol.decode_reply(b"REPL" + be(4095)) == 4095


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "0 bytes"),
        (b"REPL", "4 bytes"),
        (b"REPL" + be(0, 0), "12 bytes"),
        (b"FILE" + be(0), "FILE instead of REPLY"),
        (b"REPL" + be(4096), "no errno"),
    ],
)
def test_malformed_reply(packet: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocol.decode_reply(packet)


def arguments(*words: bytes, spare: int = 0) -> bytes:
    """The file as a helper writes it; ``spare`` entries of its table stay empty."""
    position = 8 + 8 * (len(words) + spare)
    table, texts = b"", b""
    for word in words:
        table += be(position + len(texts), len(word) + 1)
        texts += word + b"\0"
    return b"ARGS" + be(len(words)) + table + bytes(8 * spare) + texts


def test_arguments() -> None:
    assert protocol.decode_arguments(arguments(b"ext4")) == ["ext4"]
    data = arguments(b"ext4", b"/img", b"", b"\xff", b"-o", b"ro,x", spare=2)
    assert protocol.decode_arguments(data) == ["ext4", "/img", "", "\udcff", "-o", "ro,x"]
    assert len(protocol.decode_arguments(arguments(*[b"x"] * 256))) == 256


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no command line"),
        (b"ARGS\0\0\0", "no command line"),
        (b"ARGS" + bytes(protocol.MAX_ARGUMENTS_FILE), "no command line"),
        (b"SGRA" + be(1, 16, 1) + b"\0", "begins with 0x53475241"),
        (b"ARGS" + be(0), "0 words"),
        (arguments(*[b"x"] * 257), "257 words"),
        (b"ARGS" + be(2, 16, 1) + b"\0", "2 words"),
        (b"ARGS" + be(0xFFFFFFFF, 16, 1) + b"\0", "4294967295 words"),
        (b"ARGS" + be(1, 16, 0) + b"\0", "word 0 .* outside"),
        (b"ARGS" + be(1, 16, 2) + b"\0", "word 0 .* outside"),
        (b"ARGS" + be(1, 17, 1) + b"\0", "word 0 .* outside"),
        (b"ARGS" + be(1, 0, 1) + b"\0", "word 0 .* outside"),
        (b"ARGS" + be(1, 0xFFFFFFFF, 0xFFFFFFFF) + b"\0", "word 0 .* outside"),
        (b"ARGS" + be(1, 16, 1) + b"x", "word 0 .* NUL"),
        (b"ARGS" + be(1, 16, 3) + b"x\0\0", "word 0 .* NUL"),
        (b"ARGS" + be(3, *[32, 200] * 3) + b"x" * 199 + b"\0", "word 1 .* outside"),
    ],
)
def test_malformed_arguments(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocol.decode_arguments(data)


@given(st.binary(max_size=300), st.sampled_from([b"", b"SAFT", b"FILE", b"REPL", b"ARGS"]))
def test_no_bytes_raise_anything_else(data: bytes, begin: bytes) -> None:
    decoders: list[Callable[[bytes], object]] = [
        protocol.decode_hello,
        protocol.decode_reply,
        protocol.decode_arguments,
        lambda packet: protocol.decode_file(packet, "x"),
    ]
    for decode in decoders:
        with contextlib.suppress(ProtocolError):
            decode(begin + data)
