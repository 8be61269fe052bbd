# SPDX-License-Identifier: Apache-2.0
"""The mount helper: what mount(8) runs for the types ``penstock`` and ``fuse.penstock``.

mount(8) finds it as ``/sbin/mount.penstock`` and ``/sbin/mount.fuse.penstock`` (``penstock
install-system`` puts both there) and calls it with the words of fstab(5). Without the latter,
libfuse's helper for ``fuse.*`` runs ``penstock SOURCE DIR -o WORDS``, which is taken too. Either
way it becomes ``penstock mount``; nothing is mounted here.

Facts about the words
    - mount(8) puts ``rw`` before all else unless it was told ``ro``. It says nothing of what the
      user wants, so it is dropped here, where ``penstock mount`` would warn.
    - libfuse's helper appends ``dev`` and ``suid`` unless told otherwise, which the user did not
      ask for either; through it they cannot be had.
    - ``user`` comes with ``noexec,nosuid,nodev``, and the helper then runs as the user.
    - ``nofail`` is not mount(8)'s business where there is a helper.
    - Paths come absolute, except with a namespace.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from penstock.cli.errors import ExitCode, Failure
from penstock.cli.options import WORDS, Argument, Shape, split_words

__all__ = ["ARGUMENTS", "Call", "main", "mount_words", "options_text", "parse_call", "run_for_fuse"]

ARGUMENTS: Final[tuple[Argument, ...]] = (
    Argument(("SOURCE",), Shape.ONE, "a disk image, a block device or a directory"),
    Argument(("DIR",), Shape.ONE, "an existing directory"),
    Argument(("-o",), Shape.REPEATED, "words of fstab(5) and of penstock(1)", "WORD[=VALUE],…"),
    Argument(
        ("-t",), Shape.VALUE,
        "the line's type; after penstock. or fuse.penstock. it says what the image holds", "TYPE",
    ),
    Argument(("-N",), Shape.VALUE, "mount in this mount namespace", "NAMESPACE"),
    Argument(("-s",), Shape.FLAG, "leave unknown words out instead of refusing them"),
    Argument(("-f",), Shape.FLAG, "do everything but mounting"),
    Argument(("-n",), Shape.FLAG, "accepted; nothing is written to /etc/mtab anyway"),
    Argument(("-v",), Shape.FLAG, "say what was mounted"),
)  # fmt: skip
"""What mount(8) may give to a helper."""

_TAKING_VALUE: Final = {Shape.VALUE, Shape.REPEATED}
_UNASKED: Final = frozenset({"rw"})
_UNASKED_FUSE: Final = frozenset({"dev", "suid"})
_FAMILY: Final = ("fuse", "penstock", "auto")


class Call(NamedTuple):
    """A parsed command line of the helper."""

    source: str
    directory: str
    words: list[tuple[str, str | None]]
    """The ``-o`` words in their order, without those that nobody asked for."""
    type: str | None
    namespace: str | None
    sloppy: bool
    fake: bool
    verbose: bool
    mtab: bool
    """Whether the mount may be put on record."""


def main() -> int:
    """The entry of ``mount.penstock`` and ``mount.fuse.penstock``; mount(8)'s exit codes."""
    from penstock.cli.guard import guarded
    from penstock.cli.streams import open_streams

    open_streams()
    return guarded(lambda: _program(sys.argv[1:]))


def _program(words: list[str]) -> int:
    if words in (["-h"], ["--help"]):
        print(_usage(), end="")
        return ExitCode.OK
    if words in (["-V"], ["--version"]):
        from penstock._version import __version__

        print(f"mount.penstock {__version__}")
        return ExitCode.OK
    return _run(parse_call(words))


def run_for_fuse(words: list[str]) -> int:
    """Carry out ``penstock SOURCE DIR [-o WORDS]``, the call of libfuse's helper.

    Raises:
        Failure: as ``penstock mount``.
    """
    call = parse_call(words)
    kept = [word for word in call.words if word[0] not in _UNASKED_FUSE]
    return _run(call._replace(words=kept))


def parse_call(words: Sequence[str]) -> Call:
    """Parse the helper's command line.

    Raises:
        Failure: it is wrong, or asks for what cannot be done (USAGE).
    """
    try:
        options, positional = getopt.gnu_getopt(list(words), _letters())
    except getopt.GetoptError as error:
        raise Failure(f"{error} (see mount.penstock --help)", ExitCode.USAGE) from error
    if len(positional) != 2 or not all(positional):
        raise Failure("SOURCE and DIR are needed (see mount.penstock --help)", ExitCode.USAGE)
    given = dict(options)
    pairs = [
        pair for flag, text in options if flag == "-o" for pair in split_words(text)
        if pair[0] not in _UNASKED
    ]  # fmt: skip
    if any(name == "remount" for name, _ in pairs):
        text = f"{positional[1]}: cannot be mounted anew in place; unmount it first"
        raise Failure(text, ExitCode.USAGE)
    return Call(
        source=positional[0],
        directory=positional[1],
        words=pairs,
        type=_server_type(given.get("-t", "")),
        namespace=given.get("-N"),
        sloppy="-s" in given,
        fake="-f" in given,
        verbose="-v" in given,
        mtab="-n" not in given,
    )


def options_text(call: Call) -> str:
    """What ``-o`` says, in one text; a sloppy call's unknown words are left out."""
    known = _known_words() if call.sloppy else None
    return ",".join(_joined(pair) for pair in call.words if known is None or pair[0] in known)


def mount_words(call: Call) -> list[str]:
    """The command line after ``penstock mount`` that does what a call asks for."""
    words = [_no_flag(call.source), _no_flag(call.directory)]
    text = options_text(call)
    if text:
        words += ["-o", text]
    if call.type is not None:
        words += ["-t", call.type]
    return words


def _run(call: Call) -> int:
    from penstock.cli.commands import mount
    from penstock.cli.options import COMMANDS, parse_words
    from penstock.cli.parser import parse_arguments

    if call.namespace is not None:
        call = _in_namespace(call)
    if _need_not_be(call):
        return ExitCode.OK
    command = next(command for command in COMMANDS if command.name == "mount")
    arguments = parse_arguments(command, mount_words(call))
    if call.fake:
        _check(arguments.type, parse_words(arguments.options).server)
    else:
        code = mount.run(arguments)
        if code != ExitCode.OK:
            return code
    if call.verbose:
        print(f"mount.penstock: {call.source} mounted on {call.directory}")
    return ExitCode.OK


def _need_not_be(call: Call) -> bool:
    """Whether a line's source is missing and may be: ``nofail`` then has mount(8) say nothing, for
    types without a helper."""
    return any(name == "nofail" for name, _ in call.words) and not os.path.exists(call.source)


def _in_namespace(call: Call) -> Call:
    """Go over into the namespace to mount in, where penstock must be too: servers start there."""
    from penstock.sys.namespaces import enter_mount_namespace

    assert call.namespace is not None
    source, directory = map(os.path.abspath, (call.source, call.directory))
    enter_mount_namespace(call.namespace)
    return call._replace(source=source, directory=directory)


def _check(type: str | None, server_words: Iterable[str]) -> None:
    """Refuse unknown words, as mounting would.

    Raises:
        Failure: a word that no server of this type knows (USAGE).
    """
    known = _known_words()
    for word in server_words:
        if word not in known:
            text = f"unknown option {word!r} for {type or 'any type'}"
            raise Failure(f"{text} (see penstock mount -o help)", ExitCode.USAGE)


def _known_words() -> set[str]:
    from penstock.servers import TYPES, server_options

    known = {word.name for word in WORDS}
    for type in TYPES:
        known.update(option.name for option in server_options(type))
    return known


def _server_type(given: str) -> str | None:
    """``fuse.penstock.ext4`` means ext4; the helper's own names mean that it is to be found out."""
    parts = given.split(".")
    while parts and parts[0] in _FAMILY:
        parts.pop(0)
    return ".".join(parts) or None


def _no_flag(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path


def _joined(pair: tuple[str, str | None]) -> str:
    text = pair[0] if pair[1] is None else f"{pair[0]}={pair[1]}"
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _letters() -> str:
    options = [argument for argument in ARGUMENTS if argument.names[0].startswith("-")]
    return "".join(
        argument.names[0][1:] + (":" if argument.shape in _TAKING_VALUE else "")
        for argument in options
    )


def _usage() -> str:
    lines = ["usage: mount.penstock SOURCE DIR [-sfnv] [-N NAMESPACE] [-o WORDS] [-t TYPE]", ""]
    for argument in ARGUMENTS:
        shown = " ".join(filter(None, [argument.names[0], argument.metavar]))
        lines.append(f"  {shown:<19}{argument.help}")
    lines += ["", "mount(8) calls this for the types penstock and fuse.penstock. The -o words are"]
    lines += ["listed by: penstock mount -o help"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
