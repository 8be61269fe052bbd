# SPDX-License-Identifier: Apache-2.0
"""The manual pages penstock(1) and mount.penstock(8), made from the option tables.

``python -m penstock.cli.manual penstock.1`` prints one; ``penstock install-system`` installs them.
The language is that of groff_man(7), with nothing beyond what mandoc and man-db both show.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from penstock._version import __version__
from penstock.cli import helper
from penstock.cli.errors import ExitCode
from penstock.cli.options import COMMANDS, WORDS, Argument, Command, Kind, Shape, Word
from penstock.servers import TYPES, server_options

__all__ = ["PAGES", "page"]

PAGES: Final = ("penstock.1", "mount.penstock.8", "mount.fuse.penstock.8")
"""What :func:`page` makes."""

_WITH_FLAGS: Final = {Shape.FLAG, Shape.VALUE, Shape.REPEATED}
_TAKING_VALUE: Final = {Shape.VALUE, Shape.REPEATED}


def page(name: str) -> str:
    """The text of a page of :data:`PAGES`.

    Raises:
        KeyError: there is no such page.
    """
    makers = {
        "penstock.1": _penstock,
        "mount.penstock.8": _mount_penstock,
        "mount.fuse.penstock.8": _mount_fuse_penstock,
    }
    return "\n".join(makers[name]()) + "\n"


# Words of the language


def _text(text: str) -> str:
    """Text of ours as a line of a page: what would be a command or a special character is not."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    text = text.replace("…", "\\&...").replace("~", "\\(ti")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith(".") else text


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_text(text)}\\fR"


def _title(name: str, section: int, manual: str) -> Iterator[str]:
    yield f'.\\" Made by penstock {__version__}.'
    yield f'.TH {_text(name.upper())} {section} "" "penstock {__version__}" "{manual}"'
    yield ".nh"
    yield ".ad l"
    yield ".ss 12 0"


def _paragraph(*sentences: str) -> Iterator[str]:
    yield ".PP"
    yield from map(_text, sentences)


def _item(tag: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield tag
    yield _text(text) or "\\&"


def _example(*lines: str) -> Iterator[str]:
    yield ".PP"
    yield ".RS 4"
    yield ".EX"
    yield from map(_text, lines)
    yield ".EE"
    yield ".RE"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


# penstock(1)


def _penstock() -> Iterator[str]:
    yield from _title("penstock", 1, "User Commands")
    yield ".SH NAME"
    yield "penstock \\- mount and read disk images, and mount directories, from a server in Python"
    yield ".SH SYNOPSIS"
    for command in COMMANDS:
        yield from (".br", _synopsis(command))
    yield ".SH DESCRIPTION"
    yield from _paragraph(
        "penstock serves the filesystem in a disk image or block device through FUSE, "
        "from a process that has no rights of its own.",
        "The image is never written, and no parser of the kernel sees it.",
        "A directory is served as well, read-write, with the owners and rights that it has.",
        "It can also be read without a mount.",
    )
    yield ".SH COMMANDS"
    for command in COMMANDS:
        yield from _command(command)
    yield ".SH WORDS OF \\-o"
    yield from _words()
    yield from _exit_status(ExitCode)
    yield from _penstock_rest()


def _synopsis(command: Command) -> str:
    positional = [_positional(a) for a in command.arguments if a.shape not in _WITH_FLAGS]
    options = " [\\fIOPTION\\fR]\\&..." if len(positional) < len(command.arguments) else ""
    return " ".join([_bold(f"penstock {command.name}") + options, *positional])


def _positional(argument: Argument) -> str:
    name = _italic(argument.names[0])
    return {
        Shape.SOME: f"{name}\\&...",
        Shape.ANY: f"[{name}]\\&...",
        Shape.OPTIONAL: f"[{name}]",
    }.get(argument.shape, name)


def _command(command: Command) -> Iterator[str]:
    yield f".SS {_text(f'penstock {command.name}')}"
    yield _text(_sentence(command.summary))
    if command.description:
        yield _text(command.description)
    for argument in command.arguments:
        yield from _item(_tag(argument), _sentence(argument.help))


def _tag(argument: Argument) -> str:
    if argument.shape not in _WITH_FLAGS:
        return _positional(argument)
    value = f" {_italic(argument.metavar)}" if argument.shape in _TAKING_VALUE else ""
    return ", ".join(_bold(name) + value for name in argument.names)


def _words() -> Iterator[str]:
    yield from _paragraph(
        "Words are separated by commas; a comma in a value is written as a backslash and a comma.",
        "Of words that contradict each other the last one holds.",
    )
    yield ".SS Every mount"
    for word in WORDS:
        if word.kind is not Kind.IGNORED:
            yield from _item(_word_tag(word), _described(word))
    for type in TYPES:
        yield f".SS Type {type}"
        for option in server_options(type):
            value = f"={_italic(option.metavar)}" if option.metavar else ""
            yield from _item(_bold(option.name) + value, _sentence(option.help))
    yield ".SS Accepted without effect"
    names = [word.name for word in WORDS if word.kind is Kind.IGNORED]
    yield ", ".join(map(_bold, [*sorted(names), "x-*", "X-*"])) + "."
    yield _text("fstab(5) and mount(8) have these for themselves.")


def _word_tag(word: Word) -> str:
    return _bold(word.name) + (f"={_italic('|'.join(word.values))}" if word.values else "")


def _described(word: Word) -> str:
    return _sentence(f"{word.help} (default: {word.default})" if word.default else word.help)


def _exit_status(codes: Iterable[ExitCode]) -> Iterator[str]:
    yield ".SH EXIT STATUS"
    yield from _paragraph("As that of mount(8). Every failure is one line on standard error.")
    for code in codes:
        yield from _item(_bold(str(code.value)), _sentence(code.meaning))


def _penstock_rest() -> Iterator[str]:
    yield ".SH ENVIRONMENT"
    yield from _item(
        _bold("NOTIFY_SOCKET"),
        "Where `penstock mount -f` tells the service manager that the mount can be used.",
    )
    yield from _item(
        _bold("PENSTOCK_TRACEBACK"), "If set, an internal error shows where it was raised."
    )
    yield ".SH FILES"
    yield from _item(
        _italic("/run/penstock"),
        "Records of root's mounts; those of others are below $XDG_RUNTIME_DIR or in /tmp.",
    )
    yield from _item(_italic("/run/filesystems"), "Sockets of services that serve one image each.")
    yield ".SH EXAMPLES"
    yield from _paragraph("Mount the first partition of a disk image, and unmount it:")
    yield from _example("penstock mount disk.img /mnt -o partition=1", "penstock umount /mnt")
    yield from _paragraph("Copy a directory out of an image, without a mount and without root:")
    yield from _example("penstock cp disk.img:/etc .")
    yield ".SH SEE ALSO"
    yield "\\fBmount.penstock\\fR(8), \\fBmount\\fR(8), \\fBfusermount3\\fR(1), \\fBfuse\\fR(4)"


# mount.penstock(8)


def _mount_penstock() -> Iterator[str]:
    yield from _title("mount.penstock", 8, "System Administration")
    yield ".SH NAME"
    yield "mount.penstock, mount.fuse.penstock \\- let mount(8) mount images and directories"
    yield ".SH SYNOPSIS"
    yield "\\fBmount \\-t penstock\\fR [\\fB\\-o\\fR \\fIWORDS\\fR] \\fISOURCE DIR\\fR"
    yield ".br"
    yield _helper_synopsis()
    yield ".SH DESCRIPTION"
    yield from _paragraph(
        "mount(8) runs this program for the types penstock and fuse.penstock.",
        "It does what penstock mount does, and returns when the mount can be used.",
        "A type may name what the image holds, as penstock.ext4; otherwise that is found out.",
        "Images are mounted read-only, nosuid and nodev, whether or not a line says so.",
    )
    yield from _paragraph(
        "It is found in /sbin, where penstock install-system puts it.",
        "Where only the helper of libfuse is there, fuse.penstock works too, "
        "without the words suid and dev.",
    )
    yield ".SH OPTIONS"
    for argument in helper.ARGUMENTS:
        yield from _item(_tag(argument), _sentence(argument.help))
    yield from _fstab()
    yield from _service()
    yield from _exit_status(ExitCode)
    yield ".SH SEE ALSO"
    yield "\\fBpenstock\\fR(1), \\fBmount\\fR(8), \\fBfstab\\fR(5), \\fBsystemd.automount\\fR(5)"


def _mount_fuse_penstock() -> Iterator[str]:
    yield ".so man8/mount.penstock.8"


def _helper_synopsis() -> str:
    words = [_bold("mount.penstock")]
    for argument in helper.ARGUMENTS:
        tag = _tag(argument)
        words.append(tag if argument.shape is Shape.ONE else f"[{tag}]")
    return " ".join(words)


class _Line(NamedTuple):
    """A line of fstab."""

    purpose: str
    place: str
    """Source and directory."""
    type: str
    words: str


_FSTAB: Final = (
    _Line(
        "An image, mounted at boot; without it the system starts all the same:",
        "/srv/disk.img  /mnt/disk",
        "penstock",
        "ro,nofail",
    ),
    _Line(
        "The second partition of a disk image, mounted when somebody looks, and unmounted after "
        "a minute in which nobody did:",
        "/srv/disk.img  /mnt/data",
        "penstock",
        "ro,partition=2,noauto,x-systemd.automount,x-systemd.idle-timeout=60",
    ),
    _Line(
        "An image that any user may mount who may write to the directory (with fusermount3):",
        "/srv/disk.img  /srv/open",
        "fuse.penstock",
        "ro,user,noauto",
    ),
    _Line(
        "An image on a network filesystem, open to all users, shown under another name:",
        "/net/host/disk.img  /mnt/shared",
        "penstock",
        "ro,_netdev,allow_other,fsname=archive",
    ),
)


def _fstab() -> Iterator[str]:
    yield ".SH LINES OF FSTAB"
    yield from _paragraph(
        "Words that fstab(5) has for mount(8) or the service manager (nofail, noauto, _netdev, "
        "user, x-*) are accepted; penstock(1) lists all words.",
        "The last two fields are 0: there is nothing to dump, and nothing to check.",
    )
    for line in _FSTAB:
        yield from _paragraph(line.purpose)
        yield from _example(f"{line.place}  {line.type}  {line.words}  0 0")


def _service() -> Iterator[str]:
    yield ".SH SERVICE"
    yield from _paragraph(
        "penstock-ext4.socket has each image served by a unit of its own, with nothing but open "
        "files from the mount helper of libfuse (3.19 or later):",
    )
    yield from _example(
        "systemctl enable --now penstock-ext4.socket",
        "fuservicemount3 /srv/disk.img /mnt/disk -t penstock-ext4",
    )
    yield from _paragraph(
        "When the unit is stopped the mount stays and answers with errors; unmount it instead.",
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PAGES:
        print(page(wanted), end="")
