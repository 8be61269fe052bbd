# SPDX-License-Identifier: Apache-2.0
"""``penstock cat``: the content of files in an image, on standard output."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import Target, for_each, reading_words, stop_if_lost, targets
from penstock.cli.messages import report

if TYPE_CHECKING:
    from penstock.client import Client

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print each file; 2 if one of them could not be read."""
    words = reading_words(arguments)
    wanted = targets(arguments.source)
    for target in wanted:
        if target.path is None:
            raise Failure(
                f"{target.source}: which file of it? ({target.source}:/PATH)", ExitCode.USAGE
            )
    failed: list[Target] = []

    def show(client: Client, target: Target) -> None:
        try:
            _copy(client, os.fsencode(target.path or ""))
        except BrokenPipeError:
            raise
        except OSError as error:
            stop_if_lost(error)
            report(f"{target.name}: {explain(error)}")
            failed.append(target)

    for_each(wanted, arguments.type, words, show)
    return ExitCode.SYSTEM if failed else ExitCode.OK


def _copy(client: Client, path: bytes) -> None:
    output = sys.stdout.buffer
    node = client.resolve(path)
    with client.open(node) as file:
        position = 0
        for offset, data in file.chunks():
            _write_zeros(offset - position)
            output.write(data)
            position = offset + len(data)
        _write_zeros(file.size - position)
    client.forget(node)
    output.flush()


def _write_zeros(count: int) -> None:
    zeros = bytes(min(count, 1 << 20))
    while count > 0:
        count -= sys.stdout.buffer.write(zeros[:count])
