# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure, show, write. Ends with nothing mounted, however it ends."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import image_plan, mirror_plan, report, results
from bench.image import Image, image
from bench.plan import Plan
from bench.run import Subject, measure
from bench.source import source

RESULTS = Path(__file__).with_name("results")
PLANS = ("image", "mirror")
QUICK_ROUNDS = 3
DESCRIPTORS = 1 << 20


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds through every context manager


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("plan", nargs="?", choices=PLANS, help="one of the two; default: both")
    parser.add_argument("--runs", type=int, default=9, help="rounds, samples a row (default 9)")
    parser.add_argument("--quick", action="store_true", help="little data, 3 rounds, no verdict")
    parser.add_argument("--only", action="append", help="a contender's name; may be repeated")
    parser.add_argument("--session", action="append", help="a session's name; may be repeated")
    parser.add_argument("--million", action="store_true", help="mirror: a million files as well")
    parser.add_argument("--source", type=Path, help="mirror: make the directory below this one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON and plots")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return arguments


def _raise_limit() -> None:
    """Let servers have more open files if they ask for them: libfuse's keep one for each file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, DESCRIPTORS)))


@contextlib.contextmanager
def _prepared(name: str, arguments: argparse.Namespace) -> Iterator[tuple[Plan, Subject]]:
    """A plan and what it mounts."""
    if name == "image":
        sizes = image_plan.QUICK if arguments.quick else image_plan.FULL
        yield image_plan.plan(sizes), Image(image(sizes))
        return
    wanted = mirror_plan.QUICK if arguments.quick else mirror_plan.FULL
    if arguments.million:
        wanted = replace(wanted, million=1_000_000)
    with source(wanted, arguments.source) as directory:
        yield mirror_plan.plan(wanted), directory


def _run(name: str, arguments: argparse.Namespace, point: Path, console: Console) -> bool:
    """One plan from begin to end; whether penstock did what it should."""
    rounds = min(arguments.runs, QUICK_ROUNDS) if arguments.quick else arguments.runs
    with (
        Console(stderr=True).status(f"making the data of the plan “{name}”") as status,
        _prepared(name, arguments) as (plan, subject),
    ):
        only = arguments.only
        entries = [c for c in plan.contenders if (c.name in only if only else not c.optional)]
        if not entries:
            return True
        if arguments.session:
            plan = plan.only(arguments.session)
        samples = measure(plan, entries, subject, rounds, point, status.update)
    report.show(plan, samples, entries, console)
    content = results.document(plan, samples, entries, rounds)
    path = arguments.results / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.json"
    results.write(path, content)
    console.print(f"written: {path}")
    if importlib.util.find_spec("matplotlib") is not None and samples.seconds:
        from bench.plot import draw  # noqa: PLC0415 (only make bench installs matplotlib)

        for file in draw(content, plan.bases, path):
            console.print(f"written: {file}")
    missed = any(v.outcome == "missed" for v in results.verdicts(plan, samples, entries))
    return results.PRODUCT not in samples.failures and (arguments.quick or not missed)


def main() -> int:
    """Run the benchmark; 1 when a target is missed or penstock could not take part."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    _raise_limit()
    good = True
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as place:
        point = Path(place) / "mnt"
        point.mkdir()
        for name in PLANS:
            if arguments.plan in (None, name):
                good = _run(name, arguments, point, console) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
