# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure, show, write. Ends with nothing mounted, however it ends."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import report
from bench.contenders import contenders
from bench.plan import FULL, QUICK
from bench.run import measure

RESULTS = Path(__file__).with_name("results")


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds through every context manager


def main() -> int:
    """Run the benchmark; 1 when a target is missed or penstock could not take part."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="rounds, samples a row (default 9)")
    parser.add_argument("--quick", action="store_true", help="small image, 3 rounds, no verdict")
    parser.add_argument("--only", action="append", help="a contender's name; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON and plots")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    rounds = min(arguments.runs, 3) if arguments.quick else arguments.runs
    if rounds < 1:
        parser.error("--runs must be at least 1")
    entries = [c for c in contenders() if not arguments.only or c.name in arguments.only]
    console = Console(width=None if sys.stdout.isatty() else 120)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    progress = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as place,
        progress.status("starting") as status,
    ):
        point = Path(place) / "mnt"
        point.mkdir()
        samples = measure(entries, sizes, rounds, point, status.update)
    report.show(samples, entries, console)
    content = report.document(samples, entries, sizes, rounds)
    path = arguments.results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    report.write(path, content)
    console.print(f"written: {path}")
    if importlib.util.find_spec("matplotlib") is not None and samples.seconds:
        from bench.plot import draw  # noqa: PLC0415 (only make bench installs matplotlib)

        for file in draw(content, path):
            console.print(f"written: {file}")
    if report.PRODUCT in samples.absent:
        return 1
    missed = any(verdict.outcome == "missed" for verdict in report.verdicts(samples))
    return 1 if missed and not arguments.quick else 0


if __name__ == "__main__":
    sys.exit(main())
