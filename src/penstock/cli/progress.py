# SPDX-License-Identifier: Apache-2.0
"""How far a long copy has come: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(total: Callable[[], int], *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show progress in bytes on stderr while the block runs.

    Args:
        total: says how many bytes there are; called only if a bar is shown.
        quiet: show none.

    Yields:
        What is to be called with bytes done.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        progress.update(task, total=total())
        yield lambda count: progress.advance(task, count)
