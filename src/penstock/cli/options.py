# SPDX-License-Identifier: Apache-2.0
"""Every command, argument and ``-o`` word that penstock takes: one table for all uses.

The argument parsers, ``-h``, ``-o help`` and ``docs/commands.md`` are made from it. Words that
belong to one kind of server are in that server's own table (``servers/*/options.py``).

``-o`` takes words separated by commas, and may be given several times. A comma inside a value is
written ``\\,``, a backslash ``\\\\``. Words that fstab(5) and mount(8) use for themselves are
accepted and have no effect.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from penstock.cli.errors import ExitCode, Failure

__all__ = [
    "COMMANDS",
    "DATAPATHS",
    "WORDS",
    "Argument",
    "Command",
    "Kind",
    "Shape",
    "Word",
    "Words",
    "number_of",
    "parse_words",
    "split_words",
]


class Kind(enum.Enum):
    """What may follow an ``-o`` word."""

    FLAG = "flag"
    TEXT = "text"
    NUMBER = "number"
    CHOICE = "choice"
    IGNORED = "ignored"
    """Accepted with or without a value, and without effect."""
    NOTED = "noted"
    """As IGNORED, but a warning says that it has no effect."""


class Word(NamedTuple):
    """One ``-o`` word."""

    name: str
    kind: Kind
    help: str
    values: tuple[str, ...] = ()
    """What a CHOICE may be; for the others how the value is shown, as ``BYTES``."""
    default: str = ""


class Shape(enum.Enum):
    """How an argument of a command stands on the command line."""

    FLAG = "flag"
    VALUE = "value"
    REPEATED = "repeated"
    ONE = "one"
    OPTIONAL = "optional"
    SOME = "some"
    ANY = "any"


class Argument(NamedTuple):
    """One argument of a command: an option with its flags, or a positional one."""

    names: tuple[str, ...]
    shape: Shape
    help: str
    metavar: str = ""
    number: bool = False


class Command(NamedTuple):
    """One command: its module is ``penstock.cli.commands.NAME``."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    description: str = ""
    prints: bool = False
    """Its output is what it is for."""


def _ignored(*names: str) -> tuple[Word, ...]:
    return tuple(Word(name, Kind.IGNORED, "") for name in names)


DATAPATHS: Final = ("auto", "passthrough", "lens", "splice", "copy")
"""What ``-o datapath=`` may say; whether it is possible, the mount finds out."""

WORDS: Final[tuple[Word, ...]] = (
    Word("ro", Kind.FLAG, "mount read-only (an image always is)"),
    Word("rw", Kind.FLAG, "let a directory be written to (the default for one)"),
    Word("allow_other", Kind.FLAG, "let other users in; permissions are then always checked"),
    Word("default_permissions", Kind.FLAG, "have the kernel check permissions"),
    Word("suid", Kind.FLAG, "honour set-user-ID and set-group-ID bits (root only)"),
    Word("nosuid", Kind.FLAG, "ignore set-ID bits (the default)"),
    Word("dev", Kind.FLAG, "honour device nodes (root only)"),
    Word("nodev", Kind.FLAG, "ignore device nodes (the default)"),
    Word("exec", Kind.FLAG, "allow programs to be run (the default)"),
    Word("noexec", Kind.FLAG, "forbid programs to be run"),
    Word("nosymfollow", Kind.FLAG, "do not follow symbolic links"),
    Word("max_read", Kind.NUMBER, "largest read request", ("BYTES",), "as the data path allows"),
    Word("max_write", Kind.NUMBER, "largest write request", ("BYTES",), "1048576"),
    Word("workers", Kind.NUMBER, "threads that answer the kernel", ("N",), "2"),
    Word(
        "poll", Kind.TEXT,
        "how long a worker looks for the next request before it sleeps",
        ("auto|off|MICROSECONDS",), "auto",
    ),
    Word("datapath", Kind.TEXT, "who moves file data", ("|".join(DATAPATHS),), "auto"),
    Word(
        "stackable", Kind.FLAG,
        "leave room for an overlay on top, even if a data path has to be done without",
    ),
    Word(
        "sandbox", Kind.CHOICE,
        "keep the server, which parses the image, in a sandbox; strict: refuse to mount if a layer "
        "of it is missing; no: for debugging",
        ("yes", "strict", "no"), "yes",
    ),
    Word(
        "crash", Kind.CHOICE, "what becomes of the mount when its server dies",
        ("umount", "keep"), "umount",
    ),
    Word("processes", Kind.NUMBER, "server processes, each with its own sandbox", ("N",), "1"),
    Word(
        "request_timeout", Kind.NUMBER,
        "end the connection when a request is not answered in so many seconds (at least 15; the "
        "kernel looks every 15)",
        ("SECONDS",), "never",
    ),
    Word("fsname", Kind.TEXT, "the source shown in /proc/mounts", ("NAME",), "SOURCE"),
    Word("subtype", Kind.TEXT, "the type shown in /proc/mounts after fuse.", ("NAME",), "penstock"),
    Word("help", Kind.FLAG, "show these words and those of the servers"),
    Word("allow_root", Kind.NOTED, "accepted, but only allow_other lets root in"),
    Word("rootcontext", Kind.NOTED, "accepted, but has no effect"),
    Word("context", Kind.NOTED, "accepted, but has no effect"),
    *_ignored(
        "_netdev", "async", "atime", "auto", "auto_unmount", "comment", "defaults", "diratime",
        "dirsync", "group", "intr", "iversion", "lazytime", "loud", "mand", "noatime", "noauto",
        "nodiratime", "nofail", "nogroup", "noiversion", "nolazytime", "nomand", "nonempty",
        "noowner", "norelatime", "nostrictatime", "nouser", "nousers", "owner", "relatime",
        "silent", "strictatime", "sync", "user", "users",
    ),
)  # fmt: skip
"""The words that every mount takes."""

_BY_NAME: Final[Mapping[str, Word]] = {word.name: word for word in WORDS}

_SOURCE = Argument(("SOURCE",), Shape.ONE, "a disk image or block device")
_MOUNTED = Argument(("SOURCE",), Shape.ONE, "a disk image, a block device or a directory")
_JSON = Argument(("--json",), Shape.FLAG, "print JSON")
_TYPE = Argument(("-t", "--type"), Shape.VALUE, "what the image holds (default: found out)", "TYPE")
_WORDS = Argument(
    ("-o", "--options"),
    Shape.REPEATED,
    "comma-separated words; -o help lists them",
    "WORD[=VALUE],…",
)
_PARTITION = Argument(
    ("-p", "--partition"), Shape.VALUE, "look into this partition of the disk", "N", number=True
)
_READING = (_TYPE, _WORDS, _PARTITION)

COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        "mount",
        "mount an image or a directory; returns when the mount can be used",
        (
            _MOUNTED,
            Argument(("MOUNTPOINT",), Shape.ONE, "an existing directory"),
            _TYPE,
            _WORDS,
            _PARTITION,
            Argument(("-f", "--foreground"), Shape.FLAG, "stay, and serve until unmounted"),
            Argument(("-d", "--debug"), Shape.FLAG, "log each request to stderr (implies -f)"),
            Argument(("-r", "--read-only"), Shape.FLAG, "the same as -o ro"),
        ),
        "Mounts are nosuid and nodev unless root asks otherwise. The image is opened for reading "
        "only and never written, also when its journal has to be replayed. A directory is served "
        "as it is, and written to unless -o ro says otherwise (docs/mirror.md). In the background, "
        "warnings go to the system's log (/dev/log) where there is one; with -f to stderr. SIGINT, "
        "SIGTERM and SIGHUP unmount, and the exit code is 0 then, also with -f.",
    ),
    Command(
        "umount",
        "unmount, and wait until the server has ended",
        (
            Argument(("MOUNTPOINT",), Shape.SOME, "a mount made by penstock"),
            Argument(
                ("-l", "-z", "--lazy"),
                Shape.FLAG,
                "detach now, end when nobody uses it any more",
            ),
            Argument(
                ("--abort",),
                Shape.FLAG,
                "end it at once, although it hangs or is in use; its users get errors",
            ),
        ),
        "The mount point itself is never looked at, so a server that does not answer holds up none "
        "of this. With --abort a server that does not end by itself is killed.",
    ),
    Command(
        "list",
        "list the mounts, also those whose server has died",
        (Argument(("--stale",), Shape.FLAG, "only those whose server has died"), _JSON),
        "Shows your own mounts; root sees everybody's, and also stale ones of which no record is "
        "left. STATE is mounted, stale (the server has died; penstock clean removes it) or "
        "detached (unmounted lazily, still in use).",
        prints=True,
    ),
    Command(
        "clean",
        "remove what died and was left: mounts without a server, their records and sockets",
        (
            Argument(("MOUNTPOINT",), Shape.ANY, "a stale mount (default: all of them)"),
            Argument(("-n", "--dry-run"), Shape.FLAG, "only say what would be done"),
        ),
        "Cleans up after yourself; root after everybody. Mounts that are served are not touched, "
        "nor is any mount of which that is not certain. Each thing done is one line of output.",
        prints=True,
    ),
    Command(
        "stats",
        "show what a mount has done",
        (Argument(("MOUNTPOINT",), Shape.ONE, "a mount made by penstock"), _JSON),
        prints=True,
    ),
    Command(
        "info",
        "show what an image is and holds",
        (_SOURCE, _JSON, *_READING),
        prints=True,
    ),
    Command(
        "ls",
        "list files in an image, without mounting it",
        (
            Argument(
                ("SOURCE[:PATH]",), Shape.SOME, "an image, and files in it: IMG:/a or IMG /a /b"
            ),
            Argument(("-l", "--long"), Shape.FLAG, "one line each: mode, owner, size, time"),
            Argument(("-h", "--human-readable"), Shape.FLAG, "with -l: sizes as 1.5K, 20M, 3G"),
            Argument(("-1",), Shape.FLAG, "always so; kept for habit's sake"),
            Argument(("-a", "--all"), Shape.FLAG, "also names that begin with a dot"),
            Argument(("-R", "--recursive"), Shape.FLAG, "also what lies in subdirectories"),
            Argument(
                ("-d", "--directory"), Shape.FLAG, "directories themselves, not their content"
            ),
            _JSON,
            *_READING,
        ),
        "Owners are shown as numbers: the names would be this machine's, not the image's. Control "
        "characters in names are shown as ? on a terminal, and as they are elsewhere, like ls(1).",
        prints=True,
    ),
    Command(
        "cat",
        "print files of an image, without mounting it",
        (
            Argument(
                ("SOURCE[:PATH]",), Shape.SOME, "an image, and files in it: IMG:/a or IMG /a /b"
            ),
            *_READING,
        ),
        prints=True,
    ),
    Command(
        "cp",
        "copy files and trees out of an image, without mounting it",
        (
            Argument(("SOURCE[:PATH]",), Shape.SOME, "what to copy: IMG:/path"),
            Argument(("DEST",), Shape.ONE, "a directory, or a name that does not exist yet"),
            Argument(
                ("--preserve",),
                Shape.VALUE,
                "default: mode, times, user.* attributes, links, holes; all: for root also owners, "
                "set-ID bits, all attributes and device nodes; none: content alone",
                "default|all|none",
            ),
            Argument(("-q", "--quiet"), Shape.FLAG, "no progress display"),
            Argument(("-r", "-R", "--recursive"), Shape.FLAG, "always so; kept for habit's sake"),
            Argument(
                ("-a", "--archive"), Shape.FLAG, "the same as --preserve=default; for habit's sake"
            ),
            *_READING,
        ),
        "Directories are copied with what they hold. Nothing is written outside DEST, whatever the "
        "image's names and links say; existing files are not replaced; sockets are left out, "
        "and device nodes too unless root asks for them with --preserve=all.",
    ),
    Command(
        "doctor",
        "show what this kernel and this user can do, and how that is known",
        (_JSON,),
        "Each feature is tried where that is harmless, else read from where the system says it.",
        prints=True,
    ),
    Command(
        "serve",
        "answer one mount helper on an inherited socket (for a service manager)",
        (
            Argument(("TYPE",), Shape.ONE, "what the images hold: ext4"),
            Argument(
                ("--fd",), Shape.VALUE, "the socket (default: as LISTEN_FDS says)", "N", number=True
            ),
        ),
        "Speaks version 1 of libfuse's fuse service protocol, in which fuservicemount3 opens the "
        "image and mounts. Ends when the image is unmounted.",
    ),
    Command(
        "install-system",
        "put mount helpers, units and manual pages where the system looks for them",
        (
            Argument(("--remove",), Shape.FLAG, "take them away instead"),
            Argument(("--dry-run",), Shape.FLAG, "only say what would be done"),
            Argument(("--root",), Shape.VALUE, "put everything below this directory", "DIR"),
            Argument(
                ("--alias",),
                Shape.VALUE,
                "more names for the service, as ext4,ext3,ext2; mount(8) may then prefer it to the "
                "kernel's own",
                "NAME,…",
            ),
            Argument(("--helpers",), Shape.VALUE, "for mount helpers (default: /sbin)", "DIR"),
            Argument(
                ("--units",),
                Shape.VALUE,
                "for systemd (default: /usr/local/lib/systemd/system)",
                "DIR",
            ),
            Argument(
                ("--tmpfiles",),
                Shape.VALUE,
                "for tmpfiles.d (default: /usr/local/lib/tmpfiles.d)",
                "DIR",
            ),
            Argument(
                ("--man",), Shape.VALUE, "for manual pages (default: /usr/local/share/man)", "DIR"
            ),
            Argument(
                ("--python",), Shape.VALUE, "the interpreter to name (default: this one)", "PATH"
            ),
            Argument(
                ("--force",), Shape.FLAG, "although others than root can change this installation"
            ),
        ),
        "Files that are not penstock's are neither replaced nor removed. Nothing is enabled.",
        prints=True,
    ),
)
"""All commands, in the order in which help shows them."""


def split_words(text: str) -> list[tuple[str, str | None]]:
    """Split one ``-o`` argument into (name, value) pairs; a word without ``=`` has value None.

    Empty words are dropped, as mount(8) does.
    """
    words = [""]
    characters = iter(text)
    for character in characters:
        if character == ",":
            words.append("")
        elif character == "\\":
            following = next(characters, "")
            words[-1] += following if following in {",", "\\"} else character + following
        else:
            words[-1] += character
    split = (word.partition("=") for word in words if word)
    return [(name, value if equals else None) for name, equals, value in split]


class Words(NamedTuple):
    """Parsed ``-o`` words."""

    generic: dict[str, str]
    """Words of this table that have an effect; flags map to an empty string."""
    server: dict[str, str]
    """All others, for the server to judge."""
    notes: list[str]
    """One line for each word that was accepted without effect and should not be silent."""


def parse_words(texts: Iterable[str]) -> Words:
    """Parse ``-o`` arguments. The last one of contradicting words holds, as in mount(8).

    Raises:
        Failure: a value is missing, unwanted or wrong (USAGE).
    """
    words = Words({}, {}, [])
    for text in texts:
        for name, value in split_words(text):
            word = _BY_NAME.get(name)
            if name.startswith(("x-", "X-")):
                continue
            if word is None:
                words.server[name] = value or ""
            elif word.kind is Kind.NOTED:
                words.notes.append(f"-o {name}: {word.help}")
            elif word.kind is not Kind.IGNORED:
                words.generic.pop(_OPPOSITE.get(name, ""), None)
                words.generic[name] = _checked(word, value)
    return words


def number_of(words: Words, name: str, default: int, lowest: int, highest: int) -> int:
    """The value of a word that is a number.

    Raises:
        Failure: it is out of range (USAGE).
    """
    number = int(words.generic.get(name, default))
    if not lowest <= number <= highest:
        raise Failure(f"-o {name}={number}: is not in {lowest} to {highest}", ExitCode.USAGE)
    return number


_OPPOSITE: Final = {
    "suid": "nosuid", "nosuid": "suid", "dev": "nodev", "nodev": "dev",
    "exec": "noexec", "noexec": "exec", "ro": "rw", "rw": "ro",
}  # fmt: skip


def _checked(word: Word, value: str | None) -> str:
    if word.kind is Kind.FLAG:
        if value is not None:
            raise Failure(f"-o {word.name}: takes no value", ExitCode.USAGE)
        return ""
    if not value:
        expected = "|".join(word.values)
        raise Failure(f"-o {word.name}: needs a value ({word.name}={expected})", ExitCode.USAGE)
    if word.kind is Kind.NUMBER and not (value.isascii() and value.isdigit()):
        raise Failure(f"-o {word.name}={value}: is not a number", ExitCode.USAGE)
    if word.kind is Kind.CHOICE and value not in word.values:
        raise Failure(
            f"-o {word.name}={value}: is none of {', '.join(word.values)}", ExitCode.USAGE
        )
    return value
