# SPDX-License-Identifier: Apache-2.0
"""Messages between broker and server: what is one, and that nothing else is taken for one."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.broker.codec import Field, Form, fields_of
from penstock.broker.protocol import (
    BECOMES,
    MAX_MESSAGE,
    MAY_SEND,
    REGISTRY,
    BackingOpen,
    Description,
    Ended,
    EndReason,
    Extent,
    Failed,
    FailureCode,
    GetStatistics,
    Hello,
    Image,
    Kind,
    Layer,
    Log,
    Map,
    Message,
    ProtocolError,
    Purpose,
    Ready,
    RequestRow,
    Serving,
    State,
    Statistics,
    Stop,
    Tree,
    Welcome,
    Word,
    decode,
    encode,
    kind_of,
)
from tests.support import brokertables
from tests.support.brokermessages import BODIES, bodies, fds_of, packets, ruined

KINDS = list(Kind)
ANY_PACKET = st.sampled_from(KINDS).flatmap(packets)
SECONDS = 0.25
"""More than any packet may take to read, on a machine that is busy."""


def fields_below(cls: type[Any]) -> Iterator[Field]:
    for field in fields_of(cls):
        yield field
        if isinstance(field.item, Field):
            yield field.item
        elif field.item is not None and field.item is not str:
            yield from fields_below(field.item)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_written_is_read(kind: Kind, data: st.DataObject) -> None:
    body = data.draw(bodies(kind))
    serial = data.draw(st.integers(0, 0xFFFF_FFFF))
    fds = tuple(range(100, 100 + data.draw(st.sampled_from([fds_of(kind)[0], fds_of(kind)[-1]]))))
    message = decode(encode(body, serial), fds)
    assert message == Message(serial, body, fds)
    assert message.kind is kind_of(body) is kind


def attempt(packet: bytes, fds: tuple[int, ...] = ()) -> None:
    """Read a packet; what comes out is right, or it is refused, and soon."""
    begun = time.perf_counter()
    refusal = ""
    try:
        message = decode(packet, fds)
    except ProtocolError as error:
        refusal = str(error)
    else:
        assert isinstance(message.body, BODIES[message.kind])
        assert encode(message.body, message.serial) == packet
    assert time.perf_counter() - begun < SECONDS
    assert len(refusal) < 200
    assert refusal.isprintable()


@given(st.binary(max_size=4000))
@settings(max_examples=500)
def test_any_bytes(packet: bytes) -> None:
    attempt(packet)


@given(ruined(ANY_PACKET), st.integers(0, 3))
@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
def test_ruined_packets(packet: bytes, fds: int) -> None:
    """Whatever is read says the same again, byte for byte: there is one way to say anything."""
    attempt(packet, tuple(range(fds)))


@given(ANY_PACKET)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_each_prefix_is_refused(packet: bytes) -> None:
    kind = Kind(struct.unpack_from("<H", packet)[0])
    fds = tuple(range(fds_of(kind)[0]))
    ends = range(len(packet)) if len(packet) < 400 else range(0, len(packet), len(packet) // 400)
    for end in ends:
        with pytest.raises(ProtocolError):
            decode(packet[:end], fds)


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_that_do_not_belong(kind: Kind) -> None:
    packet = encode(example(kind))
    allowed = fds_of(kind)
    for count in {0, 1, 2, 3, allowed[-1], allowed[-1] + 1, 253} - set(allowed):
        with pytest.raises(ProtocolError, match=f"with {count} descriptors"):
            decode(packet, tuple(range(count)))


def example(kind: Kind) -> Any:
    """The shortest body of a kind."""
    return BODIES[kind]._make(_least(field) for field in fields_of(BODIES[kind]))


def _least(field: Field) -> Any:
    if field.number is not None:
        return list(field.kind)[0] if field.kind not in (None, bool) else 0  # type: ignore[call-overload] # noqa: RUF015
    return "" if field.item is str else ()


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_last_field(kind: Kind) -> None:
    packet = encode(example(kind))
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        decode(packet + b"\0", tuple(range(fds_of(kind)[0])))


@pytest.mark.parametrize("number", [0, 10, 15, 29, 255, 0xFFFF])
def test_unknown_kinds(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown kind {number}"):
        decode(struct.pack("<HHI", number, 0, 0))


@pytest.mark.parametrize("flags", [1, 0x8000, 0xFFFF])
def test_flags_that_have_no_meaning(flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        decode(struct.pack("<HHI", Kind.STOP, flags, 0))


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (Log(20, ""), 2048),
        (Description(False, ""), 32768),
        (Failed(FailureCode.IMAGE, ""), 2048),
        (Welcome(1, ()), 32),
        (Serving(()), 32),
        (Ready("", 0, 0, 0, ()), 16),
        (Statistics(0, 0, 0, "", (), (), (), ()), 16),
        (Image(0, "", ()), 64),
        (Tree("", ()), 64),
        (Map(1, 1, False, ()), 2048),
    ],
)
def test_lengths_beyond_the_limit(body: Any, most: int) -> None:
    """Said to be longer than may be, with all the bytes that this takes, or with none."""
    fds = (0,) if isinstance(body, Image) else ()
    for length in (most + 1, 0xFFFF):
        for packet in (
            encode(body)[:-2] + struct.pack("<H", length),
            encode(body)[:-2] + struct.pack("<H", length) + bytes(MAX_MESSAGE - 100),
        ):
            begun = time.perf_counter()
            with pytest.raises(ProtocolError, match=f"of length {length}"):
                decode(packet, fds)
            assert time.perf_counter() - begun < SECONDS


def test_the_largest_lists_take_no_time() -> None:
    """As much work as one packet can make."""
    packets = [
        encode(Statistics(0, 0, 0, "x", (RequestRow(1, 2, 3, 4),) * 128, (), (), ())),
        encode(Welcome(1, (Layer("x", True, ""),) * 32)),
        encode(Description(False, "é" * 16384)),
        encode(Map(1, 1 << 62, True, (Extent(1 << 63, 1 << 63, 1 << 63),) * 2048)),
    ]
    for packet in packets:
        begun = time.perf_counter()
        decode(packet)
        assert time.perf_counter() - begun < SECONDS


@pytest.mark.parametrize(
    "text", ["\0", "\n", "a\rb", "\x1b[2J", "\x7f", "\x9b", "\u202e", "\u2028", "\ufeff", "\ue000"]
)
def test_what_does_not_print(text: str) -> None:
    """A line has none of it: written it is an escape, and read it is refused."""
    line = decode(encode(Log(20, text))).body
    assert isinstance(line, Log)
    assert line.text.isascii()
    assert line.text.isprintable()
    raw = text.encode()
    packet = struct.pack("<HHIBH", Kind.LOG, 0, 0, 20, len(raw)) + raw
    with pytest.raises(ProtocolError, match="text is no line"):
        decode(packet)


@pytest.mark.parametrize("name", ["a b", "a,b", "a\n", "ä", "a/b", "a=b", "\0", "x" * 65])
def test_what_is_no_name(name: str) -> None:
    """A name may become a word of a mount's options."""
    with pytest.raises(ValueError, match="no name"):
        encode(Ready(name, 0, 0, 0, ()))
    raw = name.encode()
    packet = struct.pack("<HHIH", Kind.READY, 0, 0, len(raw)) + raw + bytes(22)
    with pytest.raises(ProtocolError, match="type"):
        decode(packet)


@pytest.mark.parametrize(
    ("packet", "field"),
    [
        (struct.pack("<HHIB", Kind.ENDED, 0, 0, 3), "reason"),
        (struct.pack("<HHIB", Kind.ENDED, 0, 0, 0), "reason"),
        (struct.pack("<HHIBH", Kind.FAILED, 0, 0, 99, 0), "code"),
        (struct.pack("<HHIBH", Kind.DESCRIPTION, 0, 0, 2, 0), "more"),
    ],
)
def test_numbers_outside_their_enumeration(packet: bytes, field: str) -> None:
    with pytest.raises(ProtocolError, match=field):
        decode(packet)


def test_enumerations_come_as_such() -> None:
    ended = decode(encode(Ended(EndReason.ASKED))).body
    assert isinstance(ended, Ended)
    assert isinstance(ended.reason, EndReason)
    described = decode(encode(Description(True, "x"))).body
    assert isinstance(described, Description)
    assert described.more is True


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_what_is_no_utf8(raw: bytes) -> None:
    packet = struct.pack("<HHIBH", Kind.LOG, 0, 0, 20, len(raw)) + raw
    with pytest.raises(ProtocolError, match="no UTF-8"):
        decode(packet)


def test_long_lines_are_cut_and_stay_text() -> None:
    line = decode(encode(Log(20, "é" * 5000))).body
    assert line == Log(20, "é" * 1024)
    line = decode(encode(Log(20, "x" + "é" * 5000))).body
    assert line == Log(20, "x" + "é" * 1023)


def test_names_of_files_that_are_no_text() -> None:
    """As Python has them: with surrogates for bytes that are no UTF-8."""
    line = decode(encode(Log(20, "caf\udce9"))).body
    assert line == Log(20, "caf\\udce9")


@pytest.mark.parametrize(
    "body",
    [
        BackingOpen(-1),
        BackingOpen(1 << 64),
        Log(256, "x"),
        Log(-1, "x"),
        Hello(1, 1 << 16, Purpose.MOUNT, 0, 1),
        Failed(77, "x"),  # type: ignore[arg-type]
        Serving((Layer("x", 7, ""),) * 33),  # type: ignore[arg-type]
        Image(0, "", (Word("x", "y"),) * 65),
    ],
)
def test_what_cannot_be_written(body: Any) -> None:
    with pytest.raises(ValueError):
        encode(body)


def test_what_is_too_long_as_a_whole() -> None:
    words = (Word("x" * 64, "y" * 4096),) * 64
    with pytest.raises(ValueError, match="bytes"):
        encode(Image(0, "", words))


def test_no_list_can_exceed_a_message_by_its_declaration() -> None:
    """Limits are there for every text and list, and none allows more than a packet holds."""
    for kind in Kind:
        for field in fields_below(BODIES[kind]):
            if field.number is None:
                assert 0 < field.longest <= MAX_MESSAGE
            else:
                assert field.longest == 0
                assert field.form is Form.TEXT


# States


def to_server(kind: Kind) -> bool:
    return kind < 16


def test_each_kind_has_its_way() -> None:
    """What goes to a server comes from none, and everything else may come at some time, or through
    the socket of the registry, and nothing through both."""
    assert not REGISTRY & set().union(*MAY_SEND.values())
    may_come = REGISTRY.union(*MAY_SEND.values())
    assert may_come == {kind for kind in Kind if not to_server(kind)}
    assert set(BODIES) == set(Kind)


def test_states_lead_to_an_end() -> None:
    assert MAY_SEND.keys() == BECOMES.keys() == set(State)
    for state, steps in BECOMES.items():
        for kind in steps:
            assert to_server(kind) or kind in MAY_SEND[state]
    reached = {State.STARTED}
    while more := {s for state in reached for s in BECOMES[state].values()} - reached:
        reached |= more
    assert set(State) - reached == {State.DESCRIBING}  # by the purpose, not by the kind alone
    assert not MAY_SEND[State.ENDED]
    assert not BECOMES[State.ENDED]


def test_nothing_serves_before_it_was_asked_to() -> None:
    """The mount is attached once SERVING has come; that takes an image, and the connection."""
    for state, kinds in MAY_SEND.items():
        assert (Kind.SERVING in kinds) == (state is State.STARTING)
        assert (Kind.READY in kinds) == (state is State.JUDGING)
    assert {
        (state, kind)
        for state, steps in BECOMES.items()
        for kind, to in steps.items()
        if to is State.STARTING
    } == {(State.READY, Kind.SERVE)}


def test_the_shortest_messages() -> None:
    assert encode(Stop()) == struct.pack("<HHI", 8, 0, 0)
    assert decode(encode(GetStatistics(), 5)) == Message(5, GetStatistics())


def test_the_page_has_the_tables_of_the_protocol() -> None:
    """Written by ``python -m tests.support.brokertables``."""
    page = brokertables.PAGE.read_text(encoding="utf-8")
    assert brokertables.filled(page) == page
