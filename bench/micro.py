# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.micro``: where a session's time goes, by kind of request.

Mounts penstock once for each session, does what the benchmark does there, and prints what the
client saw beside what ``penstock stats`` counted: requests, µs of the server for each, and how many
came for each thing that the client did. What is left of the client's time is the kernel's and the
waking of the two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import image_plan, mirror_plan
from bench.contenders import Contender
from bench.image import Image, image
from bench.mounting import mounted, statistics
from bench.plan import Plan, Session
from bench.results import values
from bench.run import Samples, Subject, client
from bench.source import source

__all__ = ["main"]


@dataclass(frozen=True)
class _Micro:
    """What is looked at, and where the tables go."""

    plan: Plan
    contender: Contender
    subject: Subject
    console: Console

    def show(self, session: Session, point: Path) -> None:
        """One session on one mount."""
        self.subject.prepare(session)
        self.subject.before(session)
        with mounted(self.contender, self.subject.path, point) as mount:
            before = statistics(self.contender, mount).get("requests", {})
            results = client(mount.point, session)
            after = statistics(self.contender, mount)
        rows = {row.name: row for row in self.plan.rows}
        samples = Samples()
        for step, (seconds, count) in zip(session.steps, results, strict=True):
            samples.add("", step.row, seconds, count)
        seen = [
            f"{name} {values(samples, '', rows[name])[0]:.1f} {rows[name].unit}"
            for name in samples.seconds[""]
            if name
        ]
        self.console.print(f"{session.name} ({after.get('datapath')}): {', '.join(seen)}")
        table = Table()
        for name in ("request", "count", "errors", "µs each", "ms in all"):
            table.add_column(name, justify="left" if name == "request" else "right")
        spent = []
        for name, now in after.get("requests", {}).items():
            then = before.get(name, {})
            difference = [
                now[key] - then.get(key, 0) for key in ("microseconds", "count", "errors")
            ]
            if difference[1]:
                spent.append((*difference, name))
        for microseconds, count, errors, name in sorted(spent, reverse=True):
            each, whole = f"{microseconds / count:.1f}", f"{microseconds / 1e3:.1f}"
            table.add_row(name, str(count), str(errors), each, whole)
        self.console.print(table)


def _show(plan: Plan, subject: Subject, arguments: argparse.Namespace) -> None:
    (contender,) = (c for c in plan.contenders if c.name == arguments.contender)
    micro = _Micro(plan, contender, subject, Console())
    sessions = plan.sessions(0)
    if arguments.session:
        sessions = plan.only(arguments.session).sessions(0)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as place:
        for session in sessions:
            micro.show(session, Path(place))


def main() -> int:
    """Show the sessions that are asked for."""
    parser = argparse.ArgumentParser(prog="bench.micro", description=__doc__)
    parser.add_argument("plan", choices=("image", "mirror"))
    parser.add_argument("session", nargs="*", help="sessions; default: all")
    parser.add_argument("--contender", default="penstock", help="default: penstock")
    arguments = parser.parse_args()
    if arguments.plan == "image":
        _show(image_plan.plan(image_plan.QUICK), Image(image(image_plan.QUICK)), arguments)
    else:
        with source(mirror_plan.QUICK) as directory:
            _show(mirror_plan.plan(mirror_plan.QUICK), directory, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
