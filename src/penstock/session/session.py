# SPDX-License-Identifier: Apache-2.0
"""The engine: a message comes in, the filesystem is asked, a reply goes out. No I/O.

A transport reads messages and calls :meth:`Session.handle` with each, from as many threads as it
likes, and sends what comes back. What has no immediate answer goes out later through the
:class:`Sink`.

Invariants
    - Every request that takes a reply gets exactly one, whatever the filesystem raises.
    - A request is in ``_active`` from before its operation is called until it is answered; that
      is where INTERRUPT and unmount find it.
    - A lookup is counted before its reply can reach the kernel, and taken back if it did not.

Facts about interrupts (fs/fuse/dev.c)
    - INTERRUPT is sent only after its target was read, but with several readers it may be
      handled before the target is entered here: such early ones are remembered for a while.
    - An operation that is running cannot be interrupted; one that answers later can.
"""

from __future__ import annotations

import collections
import errno
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from penstock.abi.fuse import FOpen, InHeader, InitFlag, InitIn, Opcode, OutHeader
from penstock.abi.layout import pack, struct_of
from penstock.fs import (
    Backing,
    Connection,
    Context,
    FileHandle,
    FsError,
    Mapped,
    NodeId,
    OpenReply,
    Operations,
    Pending,
    Unique,
)
from penstock.negotiate import Limits, Profile, When, negotiate
from penstock.session.handlers import ENTRY_OPCODES, ROWS, Row
from penstock.session.listings import Listings
from penstock.session.lookups import LookupCounts
from penstock.session.notifier import Notifier
from penstock.session.ports import DataPaths, FileBody, Origin, Reply, Sink
from penstock.session.statistics import RequestCounts, SessionStatistics
from penstock.session.trace import trace_line
from penstock.wire import (
    Features,
    WireError,
    decode_header,
    decode_request,
    encode_error,
    format_request,
)

__all__ = ["Session"]

_log = logging.getLogger(__name__)

_OUT_HEADER: Final = struct_of(OutHeader).pack
_OUT_HEADER_SIZE: Final = 16
_READ: Final = int(Opcode.READ)
_READDIRPLUS: Final = int(Opcode.READDIRPLUS)
_RELEASE: Final = int(Opcode.RELEASE)
_OPEN: Final = int(Opcode.OPEN)
_OPENDIR: Final = int(Opcode.OPENDIR)
_PASSTHROUGH: Final = int(FOpen.PASSTHROUGH)
_new: Final = tuple.__new__
_NO_REPLY: Final = frozenset(
    {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
)
_QUIET: Final = frozenset({errno.ENOENT, errno.ENODATA, errno.ENOSYS, errno.EINTR, errno.ERANGE})


def _overridden(operations: Operations, method: str) -> bool:
    return getattr(type(operations), method) is not getattr(Operations, method)


class Session:
    """One connection to a kernel (or to a client that plays its part).

    Args:
        operations: the filesystem.
        sink: takes late answers and notifications.
        datapaths: puts mapped data into file ranges.
        limits: sizes to negotiate.
        trace: called with one line for each request that was carried out.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        sink: Sink,
        datapaths: DataPaths,
        limits: Limits = Limits(),
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self._operations = operations
        self._sink = sink
        self._datapaths = datapaths
        self._limits = limits
        self._trace = trace
        self._rows: dict[int, Row] = {
            int(opcode): row
            for opcode, row in ROWS.items()
            if opcode == Opcode.STATFS or _overridden(operations, row.method)
        }
        self._features = Features(setxattr_ext=False)
        self._counts = RequestCounts()
        self._lookups = LookupCounts(self._forget) if operations.forgettable else None
        self.carries = False
        """Whether to ask that the kernel may carry the data of files."""
        self._carries = False
        """Whether it may."""
        self._listings = self._ahead()
        self._prepare = operations.idle if _overridden(operations, "idle") else None
        self._active: dict[int, Pending[Any] | None] = {}
        self._interrupted: collections.deque[int] = collections.deque(maxlen=64)
        self._malformed = 0
        self._ended = False
        self.on_verdict: Callable[[Exception], None] | None = None
        """Given a reader's verdict on the image, which otherwise is logged."""
        self.connection: Connection | None = None
        self.notifier = Notifier(sink)

    def _ahead(self) -> Listings | None:
        """Have listings prepared ahead, where the filesystem keeps nothing for what it lists."""
        if self._operations.forgettable or _READDIRPLUS not in self._rows:
            return None
        listings = Listings(self._operations)
        self._rows[_READDIRPLUS] = Row(
            "readdirplus", listings.call, lambda answer, _request: (answer, ())
        )
        return listings

    # Messages

    def handle(self, message: memoryview | bytes, origin: Origin = None) -> Reply | None:
        """Carry one message out.

        Args:
            message: exactly one message; may be reused by the caller after return.
            origin: given back to the sink with a late answer.

        Returns:
            The reply, or None if there is none or it comes later. Never raises for what a
            message holds or what the filesystem does.
        """
        started = time.perf_counter_ns()
        try:
            header, request = decode_request(message, self._features)
        except WireError as error:
            return self._undecodable(message, error)
        opcode = header.opcode
        unique = header.unique
        if opcode == _RELEASE and self._carries:
            self._datapaths.released(header.nodeid)
        row = self._rows.get(opcode)
        if row is None:
            return self._without_row(header, request, started)
        self._active[unique] = None
        if self._lookups is not None and opcode in ENTRY_OPCODES:
            self._lookups.enter()
        try:
            context = _new(Context, (unique, header.uid, header.gid, header.pid))
            answer = row.call(self._operations, context, NodeId(header.nodeid), request)
        except Exception as error:  # noqa: BLE001 - whatever it is becomes an errno
            return self._finish(header, request, row, started, None, error)
        if isinstance(answer, Pending):
            self._later(header, request, row, started, answer, origin)
            return None
        return self._finish(header, request, row, started, answer, None)

    def adopt(self, connection: Connection) -> None:
        """Serve a connection whose INIT has been answered, by whomever."""
        self._features = Features(setxattr_ext=bool(connection.flags & InitFlag.SETXATTR_EXT))
        self._carries = bool(connection.flags & InitFlag.PASSTHROUGH)
        self.connection = connection
        self._operations.init(connection)

    def idle(self) -> bool:
        """Use a moment in which no request waits; whether there is more to do. Some 100 µs."""
        if self._carries:
            self._datapaths.idle()
        if self._listings is not None and self._listings.prepare():
            return True
        if self._prepare is None:
            return False
        try:
            return self._prepare()
        except Exception:  # noqa: BLE001 - it must not take the worker along
            _log.exception("preparing failed and is given up")
            self._prepare = None
            return False

    def undelivered(self, reply: Reply) -> None:
        """The kernel did not take this reply (it was interrupted, or the mount has ended)."""
        if reply.opened is not None:
            self._close(*reply.opened)
        if reply.nodes and self._lookups is not None:
            self._lookups.subtract((nodeid, 1) for nodeid in reply.nodes)

    def end(self) -> None:
        """The connection has ended: cancel what is pending, then destroy. Idempotent."""
        if self._ended:
            return
        self._ended = True
        for pending in list(self._active.values()):
            if pending is not None:
                pending.cancel(errno.ENODEV)
        self.notifier.close()
        try:
            self._operations.destroy()
        except Exception:  # noqa: BLE001 - the connection is gone, no one is left to tell
            _log.exception("destroy failed")

    def statistics(self) -> SessionStatistics:
        """A snapshot; may be taken at any time from any thread."""
        connection = self.connection
        return SessionStatistics(
            requests=self._counts.snapshot(),
            pending=sum(1 for pending in list(self._active.values()) if pending is not None),
            nodes=len(self._lookups) if self._lookups is not None else 0,
            malformed=self._malformed,
            minor=connection.minor if connection else 0,
            flags=int(connection.flags) if connection else 0,
        )

    # Answers

    def _later(
        self,
        header: InHeader,
        request: Any,
        row: Row,
        started: int,
        pending: Pending[Any],
        origin: Origin,
    ) -> None:
        unique = header.unique
        request = _detached(request)
        self._active[unique] = pending

        def finished(value: Any, error: BaseException | None) -> None:
            reply = self._finish(header, request, row, started, value, error)
            self._sink.reply(reply, origin)

        pending.then(finished)
        if unique in self._interrupted or self._ended:
            pending.cancel()

    def _finish(
        self,
        header: InHeader,
        request: Any,
        row: Row,
        started: int,
        answer: Any,
        error: BaseException | None,
    ) -> Reply:
        if error is None:
            try:
                reply = self._encode(header, request, row, answer)
            except Exception as raised:  # noqa: BLE001 - whatever it is becomes an errno
                error = raised
        if error is not None:
            code = self._errno(error, header, request)
            reply = Reply(header.unique, encode_error(header.unique, code))
        if self._lookups is not None and header.opcode in ENTRY_OPCODES:
            self._lookups.leave(reply.nodes)
        self._active.pop(header.unique, None)
        self._counts.add(header.opcode, time.perf_counter_ns() - started, error=error is not None)
        if self._trace is not None:
            self._trace(trace_line(header, request, reply, time.perf_counter_ns() - started))
        return reply

    def _encode(self, header: InHeader, request: Any, row: Row, answer: Any) -> Reply:
        opcode = header.opcode
        unique = header.unique
        if opcode == _READ:
            return self._read_reply(unique, request, answer)
        nodes: tuple[int, ...] = ()
        opened: tuple[int, int, int] | None = None
        store: FileBody | bytes | None = None
        if opcode in _OPENS:
            answer, opened = self._opened(header, request, answer)
            if opcode == _OPEN and self._carries:
                store = self._content(header, answer)
        try:
            body = row.encode(answer, request)
        except Exception:
            if opened is not None:
                self._close(*opened)
            raise
        if opcode == _READDIRPLUS:
            body, nodes = body
        elif opcode in ENTRY_OPCODES:
            entry = answer if opcode not in _CREATES else answer[0]
            nodes = (entry.nodeid,) if entry.nodeid else ()
        head = _OUT_HEADER(_OUT_HEADER_SIZE + len(body), 0, unique) + body
        return Reply(unique, head, b"", nodes, opened, store)

    def _opened(
        self, header: InHeader, request: Any, answer: Any
    ) -> tuple[Any, tuple[int, int, int]]:
        """The answer to what opens a file or directory, and what would undo it."""
        creates = header.opcode in _CREATES
        reply = answer[1] if creates else answer
        nodeid = NodeId(answer[0].nodeid if creates else header.nodeid)
        opened = (header.opcode, nodeid, reply.fh)
        if self._carries and header.opcode != _OPENDIR:
            counted = False
            try:
                reply = self._datapaths.opened(nodeid, request.arg.flags, reply)
                counted = True
                if reply.flags & _PASSTHROUGH:
                    self._operations.carried(nodeid, reply.fh)
            except Exception:
                self._close(header.opcode, nodeid, reply.fh, counted=counted)
                raise
            answer = (answer[0], reply) if creates else reply
        return answer, opened

    def _content(self, header: InHeader, reply: OpenReply) -> FileBody | bytes | None:
        """The content of a small file that was just opened, to be sent along."""
        nodeid = NodeId(header.nodeid)
        size = self._datapaths.stored(nodeid, reply)
        if not size:
            return None
        context = Context(Unique(header.unique), header.uid, header.gid, header.pid)
        try:
            data = self._operations.read(context, nodeid, reply.fh, 0, size, 0, None)
            if isinstance(data, Mapped):
                return self._datapaths.content(data, self._operations.devices)
        except Exception:  # noqa: BLE001 - who reads it is told
            return None
        return data if isinstance(data, bytes) and len(data) == size else None

    def _close(self, opcode: int, nodeid: int, fh: int, *, counted: bool = True) -> None:
        """Undo an opening that the kernel does not know of."""
        ops, handle = self._operations, FileHandle(fh)
        directory = opcode == _OPENDIR
        if counted and self._carries and not directory:
            self._datapaths.released(nodeid)
        if _overridden(ops, "releasedir" if directory else "release"):
            context = Context(Unique(0), 0, 0, 0)
            try:
                if directory:
                    ops.releasedir(context, NodeId(nodeid), handle, 0)
                else:
                    ops.release(context, NodeId(nodeid), handle, 0, 0, 0)
            except Exception:  # noqa: BLE001 - nobody waits for it
                _log.debug("closing what was not opened failed", exc_info=True)

    def _forget(self, nodeid: NodeId) -> None:
        if self._carries:
            self._datapaths.forgotten(nodeid)
        self._operations.forget(nodeid)

    def _read_reply(self, unique: int, request: Any, answer: Any) -> Reply:
        asked = request.arg
        kind = type(answer)
        if kind is Mapped:
            body: Any = self._datapaths.mapped(answer, asked.offset, self._operations.devices)
            length = body.length
        elif kind is Backing:
            body = self._datapaths.backing(answer, asked.offset, asked.size)
            length = body.length
        else:
            body = answer
            length = len(body)
        if length > asked.size:
            raise FsError(errno.EIO, f"{length} bytes answered to a read of {asked.size}")
        return Reply(unique, _OUT_HEADER(_OUT_HEADER_SIZE + length, 0, unique), body)

    def _errno(self, error: BaseException, header: InHeader, request: Any) -> int:
        """The errno for whatever an operation raised; what is no OSError is logged once here."""
        if isinstance(error, OSError) and error.errno and 0 < error.errno < 512:
            if error.errno not in _QUIET:
                _log.debug("%s: %s", format_request(header, request), error)
            return error.errno
        code = getattr(error, "errno", None)
        if isinstance(error, ValueError) and isinstance(code, int) and 0 < code < 512:
            # A reader's verdict on the image (penstock.formats.errors): expected, worth a line.
            if self.on_verdict is not None:
                self.on_verdict(error)
            else:
                _log.warning("%s: %s", format_request(header, request), error)
            return code
        _log.error("%s failed", format_request(header, request), exc_info=error)
        return errno.EIO

    # Messages that are no operation

    def _without_row(self, header: InHeader, request: Any, started: int) -> Reply | None:
        reply = self._answer_without_row(header, request, started)
        if self._trace is not None:
            self._trace(trace_line(header, request, reply, time.perf_counter_ns() - started))
        return reply

    def _answer_without_row(self, header: InHeader, request: Any, started: int) -> Reply | None:
        opcode = header.opcode
        if opcode in _NO_REPLY:
            self._no_reply(opcode, request, header)
            self._counts.add(opcode, time.perf_counter_ns() - started, error=False)
            return None
        unique = header.unique
        body = b""
        code = 0
        if opcode == Opcode.INIT:
            try:
                body = self._init(request.arg)
            except Exception as error:  # noqa: BLE001 - whatever it is becomes an errno
                code = self._errno(error, header, request)
        elif opcode != Opcode.DESTROY:
            code = errno.ENOSYS
        self._counts.add(opcode, time.perf_counter_ns() - started, error=code != 0)
        if code:
            return Reply(unique, encode_error(unique, code))
        return Reply(unique, _OUT_HEADER(_OUT_HEADER_SIZE + len(body), 0, unique) + body)

    def _no_reply(self, opcode: int, request: Any, header: InHeader) -> None:
        if opcode == Opcode.FORGET:
            if self._lookups is not None:
                self._lookups.subtract(((header.nodeid, request.arg.nlookup),))
            elif self._carries:
                self._datapaths.forgotten(header.nodeid)
        elif opcode == Opcode.BATCH_FORGET:
            if self._lookups is not None:
                self._lookups.subtract(request.items)
            elif self._carries:
                for nodeid, _ in request.items:
                    self._datapaths.forgotten(nodeid)
        elif opcode == Opcode.INTERRUPT:
            self._interrupt(request.arg.unique)
        else:
            self.notifier.retrieved(header.unique, request.data)

    def _interrupt(self, target: int) -> None:
        self._interrupted.append(target)
        pending = self._active.get(target)
        if pending is not None:
            pending.cancel()

    def _init(self, offer: InitIn) -> bytes:
        needs = {When.READDIRPLUS: Opcode.READDIRPLUS, When.LOCKS: Opcode.SETLK}
        has = frozenset(when for when, opcode in needs.items() if opcode in self._rows)
        if self.carries:
            has |= {When.PASSTHROUGH}
        profile = Profile(self._operations.want, self._operations.refuse, has)
        reply, connection = negotiate(offer, self._limits, profile)
        self.adopt(connection)
        return pack(reply)

    def _undecodable(self, message: memoryview | bytes, error: WireError) -> Reply | None:
        self._malformed += 1
        _log.error("a message that is no request: %s", error)
        try:
            header = decode_header(message)
        except WireError:
            return None
        if header.opcode in _NO_REPLY:
            return None
        return Reply(header.unique, encode_error(header.unique, errno.EIO))


_CREATES: Final = frozenset({Opcode.CREATE, Opcode.TMPFILE})
_OPENS: Final = frozenset({Opcode.OPEN, Opcode.OPENDIR, *_CREATES})


def _detached(request: Any) -> Any:
    """The request without references into the transport's buffer, for an answer that comes
    after the buffer was reused."""
    if any(type(field) is memoryview for field in request):
        return type(request)(
            *(bytes(field) if type(field) is memoryview else field for field in request)
        )
    return request
