# SPDX-License-Identifier: Apache-2.0
"""Messages as one line of text each, in the manner of strace.

For logs, traces and tests::

    LOOKUP #42 node=1 "usr" uid=0 gid=0 pid=77
    = node=12 gen=0 entry_valid=1 attr_valid=1 ino=12 mode=0100644 size=3
    = -1 ENOENT (No such file or directory)

Flags go by name, with unknown bits in hexadecimal; names are quoted and what is not printable in
them is escaped; data is cut. Padding is left out, and so are zeros but where they tell something.

Invariants: a line is one line whatever the message holds, at most a few kilobytes long, and these
functions never raise.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from penstock.abi.fuse import flags as f
from penstock.abi.fuse.connection import InitIn, InitOut
from penstock.abi.fuse.notify import InvalEntryFlag, NotifyCode
from penstock.abi.fuse.opcodes import Opcode
from penstock.abi.fuse.structs import InHeader, OutHeader, SetattrIn, SxTime
from penstock.wire.dirents import decode_direntplus, decode_dirents
from penstock.wire.errors import WireError
from penstock.wire.notify import NOTIFICATIONS, Notification
from penstock.wire.replies import DataReply, Reply
from penstock.wire.requests import Request, Unknown

__all__ = ["format_notification", "format_reply", "format_request", "quote"]

_MAX_NAME: Final = 256
"""Bytes shown of a name."""
_MAX_DATA: Final = 32
"""Bytes shown of data, and of each name in a list."""
_MAX_ITEMS: Final = 16
"""Records shown of a list."""

_PADDING: Final = ("padding", "unused", "dummy", "reserved", "spare", "flags2")
_SHOWN_ZEROS: Final = frozenset(
    {"fh", "offset", "size", "mode", "nodeid", "generation", "result", "start", "mask"}
)
_SHORT_NAMES: Final = {"nodeid": "node", "generation": "gen"}
_ACCESS_MODES: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")
_LOCK_TYPES: Final = ("F_RDLCK", "F_WRLCK", "F_UNLCK")
_WHENCES: Final = ("SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE")
_LARGEFILE: Final = 0o100000
"""O_LARGEFILE as the kernel sends it; Python's is 0 on 64-bit machines."""


def quote(value: bytes | memoryview, limit: int = _MAX_NAME) -> str:
    """Bytes in double quotes: printable UTF-8 as it is, the rest escaped.

    Args:
        value: the bytes.
        limit: bytes shown; a longer value ends in "...".
    """
    shown = bytes(value[:limit])
    text = "".join(map(_escaped, shown.decode("utf-8", "surrogateescape")))
    return f'"{text}"' + ("..." if len(value) > limit else "")


def _escaped(char: str) -> str:
    if char in {'"', "\\"}:
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"


def _flag_names(flags: Any, prefix: str = "") -> Callable[[int], str]:
    """A formatter for bits of an IntFlag."""

    def show(value: int) -> str:
        names = []
        for name, member in flags.__members__.items():
            bit = int(member)
            if value & bit and member.name == name:
                names.append(prefix + name)
                value &= ~bit
        if value or not names:
            names.append(hex(value) if value else "0")
        return "|".join(names)

    return show


def _open_flags(value: int) -> str:
    names = [_ACCESS_MODES[value & 3]]
    value &= ~3
    # Names of several bits (O_SYNC, O_TMPFILE) include others: the widest is looked for first.
    known = {name: number for name, number in vars(os).items() if name.startswith("O_")}
    known["O_LARGEFILE"] = _LARGEFILE
    for name, number in sorted(known.items(), key=lambda item: -item[1].bit_count()):
        if number > 3 and value & number == number:
            names.append(name)
            value &= ~number
    return "|".join([*names, hex(value)] if value else names)


def _one_of(names: tuple[str, ...]) -> Callable[[int], str]:
    return lambda value: names[value] if 0 <= value < len(names) else hex(value)


def _octal(value: int) -> str:
    return f"0{value:o}"


_BY_FIELD: Final[dict[str, Callable[[int], str]]] = {
    "AccessIn.mask": lambda value: _flag_names(f.AccessMode)(value) if value else "F_OK",
    "Attr.flags": _flag_names(f.AttrFlag),
    "CreateIn.flags": _open_flags,
    "CreateIn.open_flags": _flag_names(f.OpenFlag),
    "CuseInitIn.flags": _flag_names(f.CuseFlag),
    "CuseInitOut.flags": _flag_names(f.CuseFlag),
    "FallocateIn.mode": _flag_names(f.FallocMode),
    "FileLock.type": _one_of(_LOCK_TYPES),
    "FsyncIn.fsync_flags": _flag_names(f.FsyncFlag),
    "GetattrIn.getattr_flags": _flag_names(f.GetattrFlag),
    "InitIn.flags": _flag_names(f.InitFlag),
    "InitOut.flags": _flag_names(f.InitFlag),
    "IoctlIn.flags": _flag_names(f.IoctlFlag),
    "IoctlIn.arg": hex,
    "IoctlIn.cmd": hex,
    "IoctlIovec.base": hex,
    "IoctlOut.flags": _flag_names(f.IoctlFlag),
    "LkIn.lk_flags": _flag_names(f.LkFlag),
    "LkIn.owner": hex,
    "LseekIn.whence": _one_of(_WHENCES),
    "NotifyInvalEntryOut.flags": _flag_names(InvalEntryFlag),
    "OpenIn.flags": _open_flags,
    "OpenIn.open_flags": _flag_names(f.OpenFlag),
    "OpenOut.open_flags": _flag_names(f.FOpen),
    "PollIn.events": hex,
    "PollIn.flags": _flag_names(f.PollFlag),
    "PollOut.revents": hex,
    "ReadIn.flags": _open_flags,
    "ReadIn.read_flags": _flag_names(f.ReadFlag),
    "ReleaseIn.flags": _open_flags,
    "ReleaseIn.release_flags": _flag_names(f.ReleaseFlag),
    "Rename2In.flags": _flag_names(f.RenameFlag),
    "SetattrIn.valid": _flag_names(f.Fattr),
    "SetupmappingIn.flags": _flag_names(f.SetupmappingFlag),
    "SetxattrIn.flags": _flag_names(f.XattrFlag),
    "SetxattrIn.setxattr_flags": _flag_names(f.SetxattrFlag),
    "Statx.mask": _flag_names(f.StatxMask),
    "StatxIn.getattr_flags": _flag_names(f.GetattrFlag),
    "StatxIn.sx_mask": _flag_names(f.StatxMask),
    "WriteIn.flags": _open_flags,
    "WriteIn.write_flags": _flag_names(f.WriteFlag),
}
"""Formatters of fields, by structure and name."""

_BY_NAME: Final[dict[str, Callable[[int], str]]] = {
    "attributes": hex,
    "attributes_mask": hex,
    "lock_owner": hex,
    "mode": _octal,
    "rdev": hex,
    "umask": _octal,
}
"""Formatters of fields that mean the same in every structure."""

_SETATTR_FIELDS: Final = {
    f.Fattr.MODE: "mode",
    f.Fattr.UID: "uid",
    f.Fattr.GID: "gid",
    f.Fattr.SIZE: "size",
    f.Fattr.ATIME: "atime",
    f.Fattr.MTIME: "mtime",
    f.Fattr.CTIME: "ctime",
    f.Fattr.FH: "fh",
    f.Fattr.LOCKOWNER: "lock_owner",
}


def _structure(value: Any) -> str:
    """The fields of a structure of the kernel's, as ``name=value``."""
    if isinstance(value, InitIn | InitOut):
        value = value._replace(flags=value.flags | value.flags2 << 32)
    kind = _kind(value)
    shown = []
    for name, field in zip(value._fields, value, strict=True):
        if name.startswith(_PADDING) or name.endswith("nsec") or _left_out(value, name, field):
            continue
        if isinstance(field, SxTime):
            shown.append(f"{name}={_seconds(field.tv_sec, field.tv_nsec)}")
        elif isinstance(field, tuple):
            shown.append(_structure(field))
        elif isinstance(field, bytes):
            shown.append(f"{name}={quote(field, _MAX_DATA)}")
        else:
            nsec = getattr(value, f"{name}nsec", 0) or getattr(value, f"{name}_nsec", 0)
            show = _BY_FIELD.get(f"{kind}.{name}") or _BY_NAME.get(name, str)
            text = _seconds(field, nsec) if nsec else show(field)
            shown.append(f"{_SHORT_NAMES.get(name, name)}={text}")
    return " ".join(filter(None, shown))


def _kind(value: Any) -> str:
    """The name of a structure, also for a subclass with a name of its own."""
    return next(
        base.__name__ for base in reversed(type(value).__mro__) if base not in {object, tuple}
    )


def _left_out(value: Any, name: str, field: Any) -> bool:
    if isinstance(value, SetattrIn) and name != "valid":
        return not any(value.valid & bit and name == of for bit, of in _SETATTR_FIELDS.items())
    if field == 0 and not name.endswith("valid"):
        plain = name in _SHOWN_ZEROS or f"{_kind(value)}.{name}" == "FileLock.type"
        opening = name == "flags" and _kind(value) in {"OpenIn", "CreateIn"}
        return not (plain or opening)
    return False


def _seconds(seconds: int, nanoseconds: int) -> str:
    return f"{seconds}.{nanoseconds:09d}" if nanoseconds else str(seconds)


def _body(message: Any) -> str:
    """All fields of a message."""
    shown = []
    for name, value in zip(message._fields, message, strict=True):
        if name in {"arg", "entry", "open"}:
            shown.append(_structure(value))
        elif name == "ext":
            shown.append(_extensions(value))
        elif name in {"items", "iovecs", "nodeids"}:
            shown.append(f"{name}[{len(value)}]={_listed(_item(item) for item in value)}")
        elif name in {"data", "value", "info"}:
            shown.append(f"{name}[{len(value)}]={quote(value, _MAX_DATA)}")
        elif isinstance(value, bytes):
            shown.append(quote(value))
        else:
            shown.append(f"{name}={value}")
    return " ".join(filter(None, shown))


def _item(item: Any) -> str:
    return "{" + _structure(item) + "}" if isinstance(item, tuple) else str(item)


def _listed(items: Iterable[str]) -> str:
    shown = list(islice(items, _MAX_ITEMS + 1))
    if len(shown) > _MAX_ITEMS:
        shown[-1] = "..."
    return "[" + " ".join(shown) + "]"


def _extensions(ext: Any) -> str:
    security = (f"{quote(name)}={quote(value, _MAX_DATA)}" for name, value in ext.security)
    shown = [f"security={_listed(security)}"] if ext.security else []
    shown += [f"groups={_listed(map(str, ext.groups))}"] if ext.groups else []
    return " ".join(shown)


def _opcode_name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"OPCODE_{opcode}"


def format_request(header: InHeader, request: Request) -> str:
    """One line that says what is asked, of which inode, and by whom."""
    try:
        body = quote(request.data, _MAX_DATA) if isinstance(request, Unknown) else _body(request)
        who = f"uid={header.uid} gid={header.gid} pid={header.pid}"
        start = f"{_opcode_name(header.opcode)} #{header.unique} node={header.nodeid}"
        return " ".join(filter(None, (start, body, who)))
    except Exception as error:  # noqa: BLE001 - a trace must not break what it traces
        return _unprintable(error)


def format_reply(opcode: int, header: OutHeader, reply: Reply | None) -> str:
    """One line that says what the answer to an operation was.

    Args:
        opcode: of the request.
        header: of the reply.
        reply: its body, None for an error.
    """
    try:
        if header.error:
            return "= " + _error(header.error)
        if reply is None:
            return "= ?"
        return f"= {_answer(opcode, reply) or 0}"
    except Exception as error:  # noqa: BLE001 - a trace must not break what it traces
        return _unprintable(error)


def _error(error: int) -> str:
    name = errno_names.errorcode.get(-error)
    return f"-1 {name} ({os.strerror(-error)})" if name else f"-1 errno {-error}"


def _answer(opcode: int, reply: Reply) -> str:
    if not isinstance(reply, DataReply):
        return _body(reply)
    data = reply.data
    if opcode == Opcode.READDIR:
        return _names(data, (quote(record.name, _MAX_DATA) for record in decode_dirents(data)))
    if opcode == Opcode.READDIRPLUS:
        return _names(
            data,
            (
                f"{quote(r.dirent.name, _MAX_DATA)}:{r.entry.nodeid}"
                for r in decode_direntplus(data)
            ),
        )
    return f"{len(data)} {quote(data, _MAX_DATA)}"


def _names(data: bytes | memoryview, names: Iterable[str]) -> str:
    try:
        return f"{len(data)} {_listed(names)}"
    except WireError as error:
        return f"{len(data)} ({error})"


def format_notification(notification: Notification) -> str:
    """One line that says what the kernel is told."""
    try:
        code = next(code for code, cls in NOTIFICATIONS.items() if cls is type(notification))
        return f"NOTIFY_{NotifyCode(code).name} {_body(notification)}".rstrip()
    except Exception as error:  # noqa: BLE001 - a trace must not break what it traces
        return _unprintable(error)


def _unprintable(error: Exception) -> str:
    return f"(a message that cannot be shown: {type(error).__name__})"
