# SPDX-License-Identifier: Apache-2.0
"""The messages between a broker and its servers: what they hold, and how much of it.

One message is one packet of a SOCK_SEQPACKET socket: a header (kind, flags, serial), then the
fields of its class in order. Numbers are little-endian; a text is its length (u16) and UTF-8; a
list is its length (u16) and its items. Each field says how long it may be and what it may hold,
nothing may follow the last one, and descriptors come with the kinds that have them and with no
other.

The broker believes nothing that a server sends: whatever does not decode here, or comes in a state
in which it must not (:data:`MAY_SEND`), is a violation, and ends the mount. docs/broker-protocol.md
has the same as a table.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Any, Final, NamedTuple

from penstock.abi.layout import s64, u8, u16, u32, u64
from penstock.broker.codec import Cursor, Form, Longest, ProtocolError, put, take

__all__ = [
    "BECOMES",
    "MAX_EXTENTS",
    "MAX_EXTENTS_A_MESSAGE",
    "MAX_MESSAGE",
    "MAX_WORKERS",
    "MAY_SEND",
    "REGISTRY",
    "VERSION",
    "BackingClose",
    "BackingOpen",
    "BackingReply",
    "Body",
    "Description",
    "EndReason",
    "Ended",
    "Extent",
    "Failed",
    "FailureCode",
    "GetStatistics",
    "Hello",
    "Image",
    "Invalidate",
    "Invalidated",
    "Kind",
    "Layer",
    "Log",
    "Map",
    "Message",
    "OpenRow",
    "ProtocolError",
    "Purpose",
    "Read",
    "ReadRow",
    "Ready",
    "Reason",
    "RequestRow",
    "Serve",
    "Serving",
    "State",
    "Statistics",
    "Stop",
    "Tree",
    "Verdict",
    "Welcome",
    "Word",
    "decode",
    "encode",
    "kind_of",
]

VERSION: Final = 1
MAX_MESSAGE: Final = 64 * 1024
"""Bytes of one message, header included."""
MAX_WORKERS: Final = 64
MAX_EXTENTS: Final = 1 << 16
"""Of one file, in all the messages that it takes."""
MAX_EXTENTS_A_MESSAGE: Final = 2048
_HEADER: Final = struct.Struct("<HHI")


Name = Annotated[str, Longest(64, Form.NAME)]
Line = Annotated[str, Longest(2048, Form.LINE)]
Value = Annotated[str, Longest(4096)]
Piece = Annotated[str, Longest(32 * 1024)]


class Kind(enum.IntEnum):
    """What a message is; those below 16 go to the server."""

    HELLO = 1
    IMAGE = 2
    SERVE = 3
    READ = 4
    GET_STATISTICS = 5
    BACKING_REPLY = 6
    INVALIDATED = 7
    STOP = 8
    TREE = 9
    WELCOME = 16
    READY = 17
    FAILED = 18
    DESCRIPTION = 19
    SERVING = 20
    LOG = 21
    VERDICT = 22
    STATISTICS = 23
    BACKING_OPEN = 24
    BACKING_CLOSE = 25
    INVALIDATE = 26
    ENDED = 27
    MAP = 28


class Purpose(enum.IntEnum):
    """What a server is started for."""

    MOUNT = 1
    """Answer the kernel."""
    READ = 2
    """Answer one client over a stream."""
    DESCRIBE = 3
    """Say what the image is, and end."""


class FailureCode(enum.IntEnum):
    """Whose fault it is that an image is not served."""

    IMAGE = 1
    """It is damaged, or none that can be served."""
    CHECKSUM = 2
    """A checksum is wrong, and nothing else is known to be."""
    OPTION = 3
    """The caller's: a word of ``-o``."""
    SYSTEM = 4
    """The medium or the system failed."""
    MEMORY = 5
    """It takes more memory than the server may have."""
    INTERNAL = 6
    """The server's own."""


class EndReason(enum.IntEnum):
    """Why a server ends."""

    UNMOUNTED = 1
    """The connection to the kernel, or to the client, has ended."""
    ASKED = 2
    """STOP came."""


class State(enum.Enum):
    """Where a server is, as the broker sees it: what came from it last, or went to it."""

    STARTED = "started"
    """Nothing has come from it."""
    WELCOMED = "welcomed"
    """It has closed its sandbox, and waits for the image, or for what to do with its directory."""
    JUDGING = "judging"
    """It has the image or the directory."""
    DESCRIBING = "describing"
    """It has the image, and has only to say what it is."""
    READY = "ready"
    """The image is good; it waits for what it is to serve."""
    STARTING = "starting"
    """It has the connection."""
    SERVING = "serving"
    """All its threads run."""
    READING = "reading"
    """It has a stream to serve."""
    ENDED = "ended"
    """It has said goodbye, or failed; nothing more may come."""


# To the server


class Hello(NamedTuple):
    """The first message. The server answers with :class:`Welcome` once its sandbox is closed.

    For a server of a directory it comes with that directory's descriptor: the sandbox is closed
    around it."""

    minimum: u16
    """Oldest version of the protocol that the broker speaks."""
    maximum: u16
    purpose: Annotated[Purpose, "B"]
    number: u16
    """Which of its servers this one is, from 0."""
    servers: u16
    """How many there are."""
    log_level: u8 = 20
    """Lines of the log below this are not wanted; 10 asks for one about each request."""


class Word(NamedTuple):
    """One ``-o`` word of the filesystem."""

    name: Name
    value: Value


class Image(NamedTuple):
    """The image to serve; comes with its descriptor, open for reading."""

    size: u64
    """Bytes."""
    type: Name
    """What to take it for; empty: find out."""
    words: Annotated[tuple[Word, ...], Longest(64)]


class Tree(NamedTuple):
    """Serve the directory that came with :class:`Hello`."""

    type: Name
    words: Annotated[tuple[Word, ...], Longest(64)]


class Serve(NamedTuple):
    """A connection to serve, its INIT answered.

    Comes with descriptors: one of /dev/fuse for each worker, then two of a pipe for each worker,
    read end first; and where ``files`` is not empty, the socket of the registry
    (:data:`REGISTRY`).
    """

    minor: u32
    """Of FUSE's version 7, as INIT was answered; so are the fields up to ``time_gran``."""
    flags: u64
    max_write: u32
    max_pages: u32
    max_readahead: u32
    time_gran: u32
    workers: u16
    """Threads to start."""
    poll: Name
    """The word of ``-o poll=``."""
    datapath: Name
    """The word of ``-o datapath=``."""
    files: Name
    """The data path by which whole files can be carried, empty: none."""
    reasons: Annotated[tuple[Reason, ...], Longest(16)]
    """Why the other data paths for whole files are not there."""


class Read(NamedTuple):
    """A stream to serve; comes with the descriptor of its socket."""


class GetStatistics(NamedTuple):
    """Send :class:`Statistics` with the same serial."""


class BackingReply(NamedTuple):
    """The answer to :class:`BackingOpen` or :class:`Map` with the same serial."""

    error: u32
    """An errno; 0 = registered."""
    backing_id: u32


class Invalidated(NamedTuple):
    """Another server of the mount has said :class:`Invalidate`: forget what is cached."""

    node: u64
    offset: s64
    length: s64


class Stop(NamedTuple):
    """End."""


# To the broker


class Layer(NamedTuple):
    """One layer of the sandbox."""

    name: Name
    in_force: Annotated[bool, "B"]
    detail: Line
    """What is in force, or why it is not."""


class Welcome(NamedTuple):
    """The sandbox is closed, the image may come."""

    version: u16
    layers: Annotated[tuple[Layer, ...], Longest(32)]


class Ready(NamedTuple):
    """The image is good, and this is where the filesystem lies in it."""

    type: Name
    offset: u64
    length: u64
    block_size: u32
    warnings: Annotated[tuple[Line, ...], Longest(16)]


class Failed(NamedTuple):
    """The image is not served; the server ends."""

    code: Annotated[FailureCode, "B"]
    text: Line


class Description(NamedTuple):
    """A piece of a JSON text."""

    more: Annotated[bool, "B"]
    """Whether pieces follow."""
    text: Piece


class Serving(NamedTuple):
    """All threads run, and no more can be started: the mount may be attached."""

    layers: Annotated[tuple[Layer, ...], Longest(32)]


class Log(NamedTuple):
    """A line for the log."""

    level: u8
    """As Python's logging: 10 debug, 20 info, 30 warning, 40 error."""
    text: Line


class Verdict(NamedTuple):
    """Why the reply that comes next over the stream is an error."""

    text: Line


class RequestRow(NamedTuple):
    """What was done of one opcode."""

    opcode: u32
    done: u64
    errors: u64
    nanoseconds: u64


class ReadRow(NamedTuple):
    """What went one data path."""

    datapath: Name
    reads: u64
    bytes: u64


class OpenRow(NamedTuple):
    """How many opened files went one data path."""

    datapath: Name
    opens: u64


class Reason(NamedTuple):
    """Why a data path is not taken."""

    datapath: Name
    text: Line


class Statistics(NamedTuple):
    """Counters of one server."""

    pending: u32
    nodes: u64
    malformed: u64
    datapath: Name
    requests: Annotated[tuple[RequestRow, ...], Longest(128)]
    reads: Annotated[tuple[ReadRow, ...], Longest(16)]
    opens: Annotated[tuple[OpenRow, ...], Longest(16)]
    reasons: Annotated[tuple[Reason, ...], Longest(16)]


class BackingOpen(NamedTuple):
    """Register a backing file for an inode; comes with its descriptor."""

    node: u64


class BackingClose(NamedTuple):
    """The backing files of these inodes are not needed any more. Not answered."""

    nodes: Annotated[tuple[u64, ...], Longest(256)]


class Extent(NamedTuple):
    """``length`` bytes of a file from ``offset`` lie at ``address`` of the image."""

    offset: u64
    length: u64
    address: u64


class Map(NamedTuple):
    """Register a file whose bytes lie in the image; what no extent covers is a hole.

    A file of many extents takes several messages; the last is answered."""

    node: u64
    length: u64
    """Bytes of the file."""
    more: Annotated[bool, "B"]
    """Whether another message goes on with the extents."""
    extents: Annotated[tuple[Extent, ...], Longest(MAX_EXTENTS_A_MESSAGE)]
    """In ascending order, none over another."""


class Invalidate(NamedTuple):
    """An inode has changed: tell the other servers. The kernel is told by the server itself."""

    node: u64
    offset: s64
    """First byte whose cache is dropped; negative: attributes only."""
    length: s64
    """Bytes; 0 or less: to the end."""


class Ended(NamedTuple):
    """The server ends."""

    reason: Annotated[EndReason, "B"]


Body = (
    Hello | Image | Tree | Serve | Read | GetStatistics | BackingReply | Invalidated | Stop
    | Welcome | Ready | Failed | Description | Serving | Log | Verdict | Statistics
    | BackingOpen | BackingClose | Map | Invalidate | Ended
)  # fmt: skip


class _Rule(NamedTuple):
    """What belongs to a kind."""

    body: type[Any]
    fds: range = range(1)
    """How many descriptors come with it."""


_ONE: Final = range(1, 2)
_RULES: Final[dict[Kind, _Rule]] = {
    Kind.HELLO: _Rule(Hello, range(2)),
    Kind.IMAGE: _Rule(Image, _ONE),
    Kind.TREE: _Rule(Tree),
    Kind.SERVE: _Rule(Serve, range(3, 3 * MAX_WORKERS + 2)),
    Kind.READ: _Rule(Read, _ONE),
    Kind.GET_STATISTICS: _Rule(GetStatistics),
    Kind.BACKING_REPLY: _Rule(BackingReply),
    Kind.INVALIDATED: _Rule(Invalidated),
    Kind.STOP: _Rule(Stop),
    Kind.WELCOME: _Rule(Welcome),
    Kind.READY: _Rule(Ready),
    Kind.FAILED: _Rule(Failed),
    Kind.DESCRIPTION: _Rule(Description),
    Kind.SERVING: _Rule(Serving),
    Kind.LOG: _Rule(Log),
    Kind.VERDICT: _Rule(Verdict),
    Kind.STATISTICS: _Rule(Statistics),
    Kind.BACKING_OPEN: _Rule(BackingOpen, _ONE),
    Kind.BACKING_CLOSE: _Rule(BackingClose),
    Kind.MAP: _Rule(Map),
    Kind.INVALIDATE: _Rule(Invalidate),
    Kind.ENDED: _Rule(Ended),
}
_KINDS: Final = {rule.body: kind for kind, rule in _RULES.items()}

_ANYTIME: Final = {Kind.LOG, Kind.FAILED}
MAY_SEND: Final[dict[State, frozenset[Kind]]] = {
    State.STARTED: frozenset({Kind.WELCOME, *_ANYTIME}),
    State.WELCOMED: frozenset(_ANYTIME),
    State.JUDGING: frozenset({Kind.READY, *_ANYTIME}),
    State.DESCRIBING: frozenset({Kind.DESCRIPTION, Kind.ENDED, *_ANYTIME}),
    State.READY: frozenset(_ANYTIME),
    State.STARTING: frozenset({Kind.SERVING, *_ANYTIME}),
    State.SERVING: frozenset({Kind.LOG, Kind.STATISTICS, Kind.INVALIDATE, Kind.ENDED}),
    State.READING: frozenset({Kind.LOG, Kind.VERDICT, Kind.ENDED}),
    State.ENDED: frozenset(),
}
"""What a server may send in each state."""

REGISTRY: Final = frozenset({Kind.BACKING_OPEN, Kind.BACKING_CLOSE, Kind.MAP})
"""What a server may send through the socket of the registry, while it serves. It is another than
the one that everything else goes through, so that nobody waits there for anything but files."""

BECOMES: Final[dict[State, dict[Kind, State]]] = {
    State.STARTED: {Kind.WELCOME: State.WELCOMED, Kind.FAILED: State.ENDED},
    State.WELCOMED: {
        Kind.IMAGE: State.JUDGING, Kind.TREE: State.JUDGING, Kind.FAILED: State.ENDED,
    },
    State.JUDGING: {Kind.READY: State.READY, Kind.FAILED: State.ENDED},
    State.DESCRIBING: {Kind.FAILED: State.ENDED, Kind.ENDED: State.ENDED},
    State.READY: {
        Kind.SERVE: State.STARTING, Kind.READ: State.READING, Kind.FAILED: State.ENDED,
    },
    State.STARTING: {Kind.SERVING: State.SERVING, Kind.FAILED: State.ENDED},
    State.SERVING: {Kind.ENDED: State.ENDED},
    State.READING: {Kind.ENDED: State.ENDED},
    State.ENDED: {},
}  # fmt: skip
"""What a message makes of a state, whoever sent it; with :attr:`Purpose.DESCRIBE` an IMAGE makes
:attr:`State.DESCRIBING`. Others leave it as it is."""


def kind_of(body: Body) -> Kind:
    """The kind of message that a body belongs to."""
    return _KINDS[type(body)]


class Message(NamedTuple):
    """A message with its descriptors, which belong to whoever got it."""

    serial: int
    body: Body
    fds: tuple[int, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is."""
        return kind_of(self.body)


def encode(body: Body, serial: int = 0) -> bytes:
    """The packet for a message. Lines and texts that are too long are cut.

    Raises:
        ValueError: a field cannot hold its value, or the whole is too long.
    """
    packet = bytearray(_HEADER.pack(_KINDS[type(body)], 0, serial))
    put(packet, body)
    if len(packet) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(packet)} bytes")
    return bytes(packet)


def decode(packet: bytes, fds: tuple[int, ...] = ()) -> Message:
    """A packet as a message. The descriptors stay the caller's if this raises.

    Raises:
        ProtocolError: it is none.
    """
    if len(packet) < _HEADER.size:
        raise ProtocolError(f"a message of {len(packet)} bytes")
    number, flags, serial = _HEADER.unpack_from(packet)
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"a message of unknown kind {number}") from None
    rule = _RULES[kind]
    if flags:
        raise ProtocolError(f"{kind.name}: unknown flags {flags:#x}")
    if len(fds) not in rule.fds:
        raise ProtocolError(f"{kind.name}: with {len(fds)} descriptors")
    cursor = Cursor(packet, _HEADER.size, kind.name)
    body = take(cursor, rule.body)
    if cursor.position != len(packet):
        raise ProtocolError(f"{kind.name}: {len(packet) - cursor.position} bytes too many")
    return Message(serial, body, fds)
