# SPDX-License-Identifier: Apache-2.0
"""The printer: lines spelled out, every message printed, and nothing that can break a terminal."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.abi.fuse import (
    AccessIn,
    Attr,
    AttrOut,
    BatchForgetIn,
    CreateIn,
    EntryOut,
    FileLock,
    ForgetOne,
    InHeader,
    InitIn,
    IoctlIn,
    LkIn,
    LseekIn,
    MkdirIn,
    NotifyCode,
    Opcode,
    OpenIn,
    OpenOut,
    OutHeader,
    Rename2In,
    SetattrIn,
    WriteIn,
)
from penstock.wire import (
    NOTIFICATIONS,
    REPLIES,
    REQUESTS,
    Extensions,
    decode_notification,
    format_notification,
    format_reply,
    format_request,
    notify,
    pack_dirent,
    pack_direntplus,
    replies,
    requests,
)
from penstock.wire.printer import quote
from tests.support import messages

WHO = "uid=1000 gid=100 pid=77"
ATTR = Attr(12, 3, 8, 5, -6, 0, 0, 7, 0, 0o100644, 1, 0, 0, 0, 4096, 0)
ATTR_LINE = "ino=12 size=3 blocks=8 atime=5 mtime=-6.000000007 mode=0100644 nlink=1 blksize=4096"
DONE = OutHeader(16, 0, 42)
LONGEST = 16000


def line(opcode: int, message: Any) -> str:
    """The line of a request, without what all have in common."""
    text = format_request(InHeader(0, opcode, 42, 1, 1000, 100, 77, 0, 0), message)
    start = f"{Opcode(opcode).name} #42 node=1"
    assert text.startswith(start)
    assert text.endswith(WHO)
    return text.removeprefix(start).removesuffix(WHO).strip()


def assert_printable(text: str) -> None:
    """One line, of bounded length, with no control characters."""
    assert text.isprintable(), ascii(text)
    assert 0 < len(text) < LONGEST
    assert "cannot be shown" not in text


def test_request_line() -> None:
    header = InHeader(44, 1, 42, 1, 1000, 100, 77, 0, 0)
    text = format_request(header, requests.Lookup(b"usr"))
    assert text == 'LOOKUP #42 node=1 "usr" uid=1000 gid=100 pid=77'


@pytest.mark.parametrize(
    ("opcode", "message", "expected"),
    [
        (Opcode.OPEN, requests.Open(OpenIn(0, 0)), "flags=O_RDONLY"),
        (
            Opcode.OPEN,
            requests.Open(OpenIn(0o4102001, 1)),
            "flags=O_WRONLY|O_APPEND|O_LARGEFILE|0x100000 open_flags=KILL_SUIDGID",
        ),
        (
            Opcode.CREATE,
            requests.Create(CreateIn(0o1102, 0o100644, 0o22, 0), b"new"),
            'flags=O_RDWR|O_CREAT|O_TRUNC mode=0100644 umask=022 "new"',
        ),
        (
            Opcode.SETATTR,
            requests.Setattr(SetattrIn(9, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 0o644, 0, 13, 14, 0)),
            "valid=MODE|SIZE size=5 mode=0644",
        ),
        (
            Opcode.SETATTR,
            requests.Setattr(SetattrIn(0x10010, 0, 0, 0, 0, -7, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0)),
            "valid=ATIME|0x10000 atime=-7.000000009",
        ),
        (
            Opcode.WRITE,
            requests.Write(WriteIn(3, 0, 5, 1, 0, 2, 0), b"he\0lo"),
            'fh=3 offset=0 size=5 write_flags=CACHE flags=O_RDWR data[5]="he\\x00lo"',
        ),
        (
            Opcode.BATCH_FORGET,
            requests.BatchForget(BatchForgetIn(1, 0), (ForgetOne(5, 2),)),
            "count=1 items[1]=[{node=5 nlookup=2}]",
        ),
        (
            Opcode.GETLK,
            requests.Getlk(LkIn(1, 255, FileLock(0, 9, 0, 0), 1, 0)),
            "fh=1 owner=0xff start=0 end=9 type=F_RDLCK lk_flags=FLOCK",
        ),
        (
            Opcode.RENAME2,
            requests.Rename2(Rename2In(2, 9, 0), b"a", b"b"),
            'newdir=2 flags=NOREPLACE|0x8 "a" "b"',
        ),
        (
            Opcode.MKDIR,
            requests.Mkdir(MkdirIn(0o755, 0), b"d", Extensions(((b"security.x", b"v"),), (5,))),
            'mode=0755 "d" security=["security.x"="v"] groups=[5]',
        ),
        (
            Opcode.INIT,
            requests.Init(InitIn(7, 45, 131072, 1 << 30, 1 << 5, bytes(44))),
            "major=7 minor=45 max_readahead=131072 flags=INIT_EXT|PASSTHROUGH",
        ),
        (
            Opcode.IOCTL,
            requests.Ioctl(IoctlIn(1, 8, 0x5401, 0x7000, 0, 36), b""),
            'fh=1 flags=IOCTL_32BIT cmd=0x5401 arg=0x7000 out_size=36 data[0]=""',
        ),
        (Opcode.ACCESS, requests.Access(AccessIn(5, 0)), "mask=X_OK|R_OK"),
        (Opcode.ACCESS, requests.Access(AccessIn(0, 0)), "mask=F_OK"),
        (Opcode.LSEEK, requests.Lseek(LseekIn(1, 0, 3, 0)), "fh=1 offset=0 whence=SEEK_DATA"),
        (Opcode.LSEEK, requests.Lseek(LseekIn(1, 0, 99, 0)), "fh=1 offset=0 whence=0x63"),
        (Opcode.READLINK, requests.Readlink(), ""),
    ],
)
def test_request_lines(opcode: int, message: Any, expected: str) -> None:
    assert line(opcode, message) == expected


def test_unknown_operation_is_shown() -> None:
    header = InHeader(44, 4000, 2, 1, 0, 0, 7, 0, 0)
    text = format_request(header, requests.Unknown(4000, b"body"))
    assert text == 'OPCODE_4000 #2 node=1 "body" uid=0 gid=0 pid=7'


@pytest.mark.parametrize(
    ("opcode", "message", "expected"),
    [
        (Opcode.UNLINK, replies.EmptyReply(), "= 0"),
        (
            Opcode.LOOKUP,
            replies.EntryReply(EntryOut(12, 0, 1, 2, 500_000_000, 0, ATTR)),
            f"= node=12 gen=0 entry_valid=1.500000000 attr_valid=2 {ATTR_LINE}",
        ),
        (
            Opcode.GETATTR,
            replies.AttrReply(AttrOut(0, 0, 0, ATTR._replace(flags=5))),
            f"= attr_valid=0 {ATTR_LINE} flags=SUBMOUNT|0x4",
        ),
        (
            Opcode.OPEN,
            replies.OpenReply(OpenOut(0, 0x82, 3)),
            "= fh=0 open_flags=KEEP_CACHE|PASSTHROUGH backing_id=3",
        ),
        (Opcode.READ, replies.DataReply(b"abc"), '= 3 "abc"'),
        (Opcode.READ, replies.DataReply(bytes(4096)), '= 4096 "' + "\\x00" * 32 + '"...'),
        (Opcode.READDIR, replies.DataReply(pack_dirent(b"a", 1, 1, 8) * 2), '= 64 ["a" "a"]'),
        (Opcode.READDIR, replies.DataReply(b""), "= 0 []"),
        (
            Opcode.READDIRPLUS,
            replies.DataReply(
                pack_direntplus(b"a", 1, 1, 8, EntryOut(9, 0, 0, 0, 0, 0, ATTR))
                + pack_direntplus(b".", 1, 2, 4, None)
            ),
            '= 320 ["a":9 ".":0]',
        ),
    ],
)
def test_reply_lines(opcode: int, message: Any, expected: str) -> None:
    assert format_reply(opcode, DONE, message) == expected


def test_error_line() -> None:
    text = format_reply(Opcode.LOOKUP, OutHeader(16, -2, 42), None)
    assert text == "= -1 ENOENT (No such file or directory)"
    assert format_reply(1, OutHeader(16, -511, 42), None) == "= -1 errno 511"


def test_listing_that_is_cut_is_shown_as_such() -> None:
    raw = pack_dirent(b"a", 1, 1, 8) + b"x"
    text = format_reply(Opcode.READDIR, DONE, replies.DataReply(raw))
    assert text.startswith("= 33 (directory entry at 32")


def test_long_lists_are_cut() -> None:
    raw = b"".join(pack_dirent(b"%d" % i, 1, 1, 8) for i in range(40))
    text = format_reply(Opcode.READDIR, DONE, replies.DataReply(raw))
    assert text.endswith('"15" ...]')
    assert text.count('"') == 32


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"plain", '"plain"'),
        (b'a"b\\c', '"a\\"b\\\\c"'),
        (b"\x1b[2J\n", '"\\x1b[2J\\x0a"'),
        ("Übung".encode(), '"Übung"'),
        (b"\xff\xfe", '"\\xff\\xfe"'),
        ("\u202e".encode(), '"\\u{202e}"'),
        ("\u0085".encode(), '"\\x85"'),
        (b"x" * 300, '"' + "x" * 256 + '"...'),
        (b"", '""'),
    ],
)
def test_names_are_quoted(raw: bytes, expected: str) -> None:
    assert quote(raw) == expected


@settings(max_examples=25)
@pytest.mark.parametrize("opcode", REQUESTS, ids=lambda o: Opcode(o).name)
@given(choice=st.data())
def test_every_request_prints_on_one_line(opcode: int, choice: st.DataObject) -> None:
    message = choice.draw(messages.bodies(REQUESTS[opcode]))
    header = choice.draw(messages.structures(InHeader))
    text = format_request(header._replace(opcode=opcode), message)
    assert_printable(text)
    assert text.startswith(Opcode(opcode).name + " #")


@settings(max_examples=25)
@pytest.mark.parametrize("opcode", [o for o, cls in REPLIES.items() if cls])
@given(choice=st.data())
def test_every_reply_prints_on_one_line(opcode: int, choice: st.DataObject) -> None:
    cls: Any = REPLIES[opcode]
    assert_printable(format_reply(opcode, DONE, choice.draw(messages.bodies(cls))))


@pytest.mark.parametrize("cls", [replies.GetxattrReply, replies.IoctlRetryReply])
@given(choice=st.data())
def test_other_replies_print_on_one_line(cls: Any, choice: st.DataObject) -> None:
    assert_printable(format_reply(Opcode.IOCTL, DONE, choice.draw(messages.bodies(cls))))


@given(error=st.integers(-(1 << 31), -1))
def test_every_error_prints_on_one_line(error: int) -> None:
    assert_printable(format_reply(Opcode.READ, OutHeader(16, error, 2), None))


@settings(max_examples=25)
@pytest.mark.parametrize("code", NOTIFICATIONS, ids=lambda c: NotifyCode(c).name)
@given(choice=st.data())
def test_every_notification_prints_on_one_line(code: int, choice: st.DataObject) -> None:
    text = format_notification(choice.draw(messages.bodies(NOTIFICATIONS[code])))
    assert_printable(text)
    assert text.startswith(f"NOTIFY_{NotifyCode(code).name}")


def test_notification_lines() -> None:
    text = format_notification(decode_notification(notify.inval_entry(1, b"usr", 1)))
    assert text == 'NOTIFY_INVAL_ENTRY parent=1 namelen=3 flags=EXPIRE_ONLY "usr"'
    assert format_notification(notify.Resend()) == "NOTIFY_RESEND"
    text = format_notification(decode_notification(notify.prune(range(1, 30))))
    assert text.startswith("NOTIFY_PRUNE count=29 nodeids[29]=[1 2 3 ")
    assert text.endswith("16 ...]")


@pytest.mark.parametrize("broken", [None, (), (1, 2), "text", replies.EntryReply(None)])  # type: ignore[arg-type]
def test_printer_never_raises(broken: Any) -> None:
    """A trace must not break what it traces, whatever it is given by mistake."""
    header = InHeader(0, 1, 2, 1, 0, 0, 0, 0, 0)
    for text in (
        format_request(header, broken),
        format_request(broken, requests.Statfs()),
        format_reply(1, broken, broken),
        format_reply(1, DONE, broken),
        format_notification(broken),
    ):
        assert text.isprintable()


def test_import_is_light() -> None:
    """The package is part of every start: what is slow to import stays out."""
    heavy = {"dataclasses", "inspect", "asyncio", "logging", "ctypes", "socket", "json"}
    command = "import sys, penstock.wire; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "penstock.wire.printer" in done.stdout.split()
    assert heavy & set(done.stdout.split()) == set()
