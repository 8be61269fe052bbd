# SPDX-License-Identifier: Apache-2.0
"""``penstock serve``: one mount for a mount helper, as a service that a socket starts.

What happens is in :mod:`penstock.contain.service`. Here the helper's command line is read, which is
that of mount(8), and whatever goes wrong becomes one line in the log and the helper's exit code.

Everything that may be needed is imported at the top: once the sandbox is closed it is too late.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Final

import penstock.cli.text  # noqa: F401  what failures are printed with
from penstock.broker.options import MountOptions
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.helper import options_text, parse_call
from penstock.cli.logs import configure_logging, report, warn
from penstock.cli.mountoptions import mount_options, request_timeout
from penstock.cli.options import Words, parse_words
from penstock.contain.sandbox import LayerReport
from penstock.contain.service import MountHelper, Request, Service, inherited_socket
from penstock.contain.service_protocol import Hello, ProtocolError
from penstock.contain.warm import import_all
from penstock.formats.errors import FormatError
from penstock.servers import IMAGE_TYPES, UnknownImage

__all__ = ["run"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNHEEDED: Final = ("crash", "processes", "subtype")
"""Words that a service cannot honour: the mount is the helper's, and there is one process."""


class _Fake(Exception):
    """The helper was asked to do everything but mounting."""


class _Interrupted(BaseException):
    """A signal came before the mount was made."""


def run(arguments: argparse.Namespace) -> int:
    """Make one mount and serve it to its end."""
    if arguments.type not in IMAGE_TYPES:
        raise Failure(f"{arguments.type}: is none of {', '.join(IMAGE_TYPES)}", ExitCode.USAGE)
    configure_logging()
    try:
        connection = inherited_socket(arguments.fd)
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE) from error
    with MountHelper(connection) as helper, _signals() as when_signalled:
        strict = False

        def parse(words: list[str], hello: Hello) -> Request:
            nonlocal strict
            request, strict = _request(words, hello, arguments.type)
            return request

        service = Service(helper, parse)
        try:
            service.prepare()
            import_all()
            _check_layers(service.close_sandbox(), strict=strict)
            _check_layers([service.begin()], strict=strict)
        except _Fake:
            helper.goodbye(ExitCode.OK)
            return ExitCode.OK
        except BaseException as error:
            failure = _failure(error, service)
            helper.goodbye(failure.code)
            raise failure from error
        when_signalled(service.stop)
        helper.goodbye(ExitCode.OK)
        report(service.description)
        service.wait()
    return ExitCode.OK


def _request(words: list[str], hello: Hello, type: str) -> tuple[Request, bool]:
    """What the helper's command line asks for, and whether with every layer of the sandbox.

    Raises:
        Failure: it is wrong, or asks for what a service cannot do (USAGE).
        _Fake: it asks for nothing to be mounted.
    """
    call = parse_call(words[1:])
    parsed = parse_words([options_text(call)])
    for note in parsed.notes:
        warn(note)
    sandbox = parsed.generic.get("sandbox", "yes")
    if sandbox == "no":
        raise Failure("-o sandbox=no: a service closes its sandbox always", ExitCode.USAGE)
    if call.namespace is not None:
        raise Failure("-N: a service does not mount by itself", ExitCode.USAGE)
    for word in _UNHEEDED:
        if word in parsed.generic:
            warn(f"-o {word}: has no effect in a service")
    options = _options(parsed, call.source)
    if options.allow_other and not hello.allow_other:
        raise Failure("-o allow_other: /etc/fuse.conf does not let this user", ExitCode.USAGE)
    if call.fake:
        raise _Fake
    timeout = request_timeout(parsed)
    request = Request(call.source, call.directory, type, options, parsed.server, call.mtab, timeout)
    return request, sandbox == "strict"


def _options(words: Words, source: str) -> MountOptions:
    """The mount's options. Whose words suid and dev may be, the helper decides: it knows its
    caller."""
    generic = {"fsname": source, **words.generic}
    suid, dev = (generic.pop(word, None) is not None for word in ("suid", "dev"))
    options = mount_options(words._replace(generic=generic), source)
    return dataclasses.replace(options, suid=suid, dev=dev)


def _check_layers(layers: Iterable[LayerReport], *, strict: bool) -> None:
    """Say which layers of the sandbox are missing; a service manager may have given or forbidden
    them itself.

    Raises:
        Failure: one is missing, and none may be (MOUNT).
    """
    missing = [f"{layer.name}: {layer.detail}" for layer in layers if not layer.in_force]
    if missing and strict:
        raise Failure(f"-o sandbox=strict: not in force: {'; '.join(missing)}", ExitCode.MOUNT)
    for text in missing:
        report(f"not closed by the server itself: {text}")


def _failure(error: BaseException, service: Service) -> Failure:
    """Whose fault it is, in one line and with mount(8)'s code."""
    if isinstance(error, Failure):
        return error
    source = service.request.source if service.request is not None else "the mount helper"
    text = f"{source}: {explain(error)}"
    if isinstance(error, (ProtocolError, EOFError)):
        return Failure(text, ExitCode.SYSTEM)
    if isinstance(error, (FormatError, UnknownImage, OSError)):
        return Failure(text, ExitCode.MOUNT)
    if isinstance(error, ValueError):
        return Failure(explain(error), ExitCode.USAGE)
    if isinstance(error, MemoryError):
        return Failure(f"{source}: takes more memory than its server may have", ExitCode.SYSTEM)
    if isinstance(error, _Interrupted):
        return Failure(f"{source}: interrupted", ExitCode.INTERRUPTED)
    return Failure(f"internal error: {type(error).__name__}: {text}", ExitCode.SYSTEM)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Have SIGTERM, SIGINT and SIGHUP interrupt what is being made; the function that is given says
    what they do instead, once it is made."""

    def interrupt() -> None:
        raise _Interrupted

    action = [interrupt]

    def handle(_number: int, _frame: FrameType | None) -> None:
        action[0]()

    def become(wanted: Callable[[], None]) -> None:
        action[0] = wanted

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield become
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
