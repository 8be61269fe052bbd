# SPDX-License-Identifier: Apache-2.0
"""Messages of the control socket: varlink, that is JSON objects that end with a NUL byte.

A call is ``{"method": "org.penstock.Mount.Stats", "parameters": {…}}``, its answer
``{"parameters": {…}}`` or ``{"error": "org.varlink.service.MethodNotFound", "parameters": {…}}``.
``oneway`` calls get no answer; ``more`` is accepted and answered once.

Invariants: both sides bound the size of what they read; nothing but :class:`ControlError` and
:class:`ProtocolError` comes out of this module.

Specification: https://varlink.org/Method-Call, https://varlink.org/Service
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

__all__ = [
    "ABORT",
    "INTERFACE",
    "INTERFACE_TEXT",
    "MAX_REPLY",
    "MAX_REQUEST",
    "METHOD_NOT_FOUND",
    "PING",
    "STATS",
    "UNMOUNT",
    "Call",
    "ControlError",
    "ProtocolError",
    "decode_call",
    "decode_reply",
    "encode_call",
    "encode_error",
    "encode_reply",
]

INTERFACE: Final = "org.penstock.Mount"
STATS: Final = "org.penstock.Mount.Stats"
UNMOUNT: Final = "org.penstock.Mount.Unmount"
PING: Final = "org.penstock.Mount.Ping"
ABORT: Final = "org.penstock.Mount.Abort"

METHOD_NOT_FOUND: Final = "org.varlink.service.MethodNotFound"

MAX_REQUEST: Final = 64 * 1024
"""Largest request a server takes, bytes, without the NUL."""

MAX_REPLY: Final = 4 * 1024 * 1024
"""Largest reply a client takes, bytes, without the NUL."""

INTERFACE_TEXT: Final = """\
# One mount made by penstock.
interface org.penstock.Mount

# The same object as `penstock stats --json` prints.
method Stats() -> (statistics: object)

# Ask the server to unmount and to end. With lazy the mount is detached even while it is in use.
method Unmount(lazy: ?bool) -> ()

# Ask the server to end the connection and itself at once: whoever uses the mount gets errors.
method Abort() -> ()

# Whether the server's control thread lives.
method Ping() -> (pid: int)

error Failed (message: string)
"""


class ControlError(RuntimeError):
    """The other side answered with a varlink error.

    Args:
        name: the qualified name of the error, as ``org.penstock.Mount.Failed``.
        parameters: what came with it.
    """

    def __init__(self, name: str, parameters: dict[str, Any] | None = None) -> None:
        self.name = name
        self.parameters = parameters or {}
        detail = self.parameters.get("message") or self.parameters.get("method") or ""
        super().__init__(f"{name}: {detail}" if detail else name)


class ProtocolError(ValueError):
    """What came is not a varlink message."""


class Call(NamedTuple):
    """A decoded call."""

    method: str
    parameters: dict[str, Any]
    oneway: bool


def encode_call(method: str, parameters: dict[str, Any]) -> bytes:
    """A call, with its NUL."""
    return _encode({"method": method, "parameters": parameters})


def encode_reply(parameters: dict[str, Any]) -> bytes:
    """A good answer, with its NUL."""
    return _encode({"parameters": parameters})


def encode_error(name: str, parameters: dict[str, Any]) -> bytes:
    """An error answer, with its NUL."""
    return _encode({"error": name, "parameters": parameters})


def decode_call(message: bytes) -> Call:
    """Read a call, without its NUL.

    Raises:
        ProtocolError: not JSON, or not of the shape of a call.
    """
    fields = _decode(message)
    method = fields.get("method")
    parameters = fields.get("parameters")
    if not isinstance(method, str) or len(method) > 255:
        raise ProtocolError("a call without a method name")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise ProtocolError("the parameters of a call must be an object")
    return Call(method, parameters, fields.get("oneway") is True)


def decode_reply(message: bytes) -> dict[str, Any]:
    """The parameters of an answer, without its NUL.

    Raises:
        ControlError: the answer is an error.
        ProtocolError: it is no answer at all.
    """
    fields = _decode(message)
    parameters = fields.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise ProtocolError("the parameters of an answer must be an object")
    name = fields.get("error")
    if name is None:
        return parameters
    if not isinstance(name, str):
        raise ProtocolError("the name of an error must be a string")
    raise ControlError(name, parameters)


def _encode(fields: dict[str, Any]) -> bytes:
    # ASCII output: file names that are not UTF-8 travel as lone surrogates, escaped.
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\0"


def _decode(message: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolError("a message must be a JSON object")
    return fields
