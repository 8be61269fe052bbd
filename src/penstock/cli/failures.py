# SPDX-License-Identifier: Apache-2.0
"""What becomes of a command when a contained server does not serve the image, or not any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.broker.outcome import End, ServerFailure
from penstock.broker.protocol import FailureCode
from penstock.cli.errors import ExitCode, Failure, explain

__all__ = ["CODES", "server_failure"]

CODES: Final = {
    End.CLEAN: ExitCode.OK,
    End.ERROR: ExitCode.SYSTEM,
    End.CRASHED: ExitCode.CRASHED,
    End.VIOLATION: ExitCode.CRASHED,
    End.KILLED: ExitCode.KILLED,
    End.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    End.HUNG: ExitCode.HUNG,
}
"""The exit code for each end of a server."""


def server_failure(
    source: str, failure: ServerFailure, words: Mapping[str, str], code: ExitCode
) -> Failure:
    """What a server said of an image, or what became of the server, as the command's failure.

    Args:
        source: the image, as the user named it.
        failure: what happened.
        words: the filesystem's ``-o`` words.
        code: the exit code where the image is at fault, or the system.
    """
    text = explain(failure)
    if failure.outcome is not None:
        return Failure(f"{source}: {text}", CODES[failure.outcome.end])
    if failure.code is FailureCode.OPTION:
        hint = " (see penstock mount -o help)" if text.startswith("unknown option") else ""
        return Failure(text + hint, ExitCode.USAGE)
    if failure.code is FailureCode.MEMORY:
        code = ExitCode.OUT_OF_MEMORY
    if failure.code is FailureCode.CHECKSUM and "nocheck" not in words:
        text += " (-o nocheck reads on without checking)"
    return Failure(f"{source}: {text}", code)
