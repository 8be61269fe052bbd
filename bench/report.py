# SPDX-License-Identifier: Apache-2.0
"""Show a run on the terminal: medians, ratios, targets, and who could not do what."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.contenders import Contender
from bench.judge import Spread, Verdict, ratio
from bench.plan import Plan
from bench.results import PRODUCT, raw, values, verdicts
from bench.run import Samples

__all__ = ["show"]

COLOURS = {"met": "green", "unclear": "yellow", "missed": "red", "absent": "dim"}
UNITS = {"us": "µs each", "MB/s": "MB/s", "ms": "ms", "MiB": "MiB", "B": "bytes"}
SHORT = {"us": " µs", "MB/s": " MB/s", "ms": " ms", "MiB": " MiB", "B": " bytes"}


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _times(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _figures(plan: Plan, samples: Samples, entries: list[Contender]) -> Table:
    table = Table(title=f"{plan.title}: medians", title_justify="left")
    table.add_column("")
    for contender in entries:
        table.add_column(contender.title, justify="right")
    for row in plan.rows:
        cells = []
        for contender in entries:
            found = values(samples, contender.name, row)
            cells.append(_number(Spread.of(found).median) if found else "-")
        if set(cells) != {"-"}:
            table.add_row(f"{row.title}, {UNITS[row.unit]}", *cells)
    return table


def _ratios(plan: Plan, samples: Samples, entries: list[Contender], base: str) -> Table | None:
    if base not in samples.seconds:
        return None
    title = f"{plan.title}: time against {base}, median (lowest to highest); below 1 is faster"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    # Against the first base everybody is shown; how others compare with each other follows from it.
    compared = [
        c
        for c in entries
        if c.name in samples.seconds
        and c.name != base
        and (base == plan.bases[0] or c.name.startswith(PRODUCT))
    ]
    for contender in compared:
        table.add_column(contender.title, justify="right")
    for row in plan.rows:
        others = samples.seconds[base].get(row.name)
        if not others:
            continue
        cells = []
        for contender in compared:
            mine = raw(samples, contender.name, row)
            cells.append(_times(ratio(mine, others)) if mine else "-")
        table.add_row(row.title, *cells)
    return table if compared else None


def _bound(verdict: Verdict, unit: str) -> str:
    target = verdict.target
    if target.against is None:
        # A target that has been turned into its absolute form, since the peer is not there.
        peer = " (peer absent)" if target.absolute is not None else ""
        return f"at most {target.bound:.4g}{unit}{peer}"
    if target.kind == "more":
        return f"at most {target.bound:g}{unit} more than {target.against}"
    if target.kind == "faster":
        return f"at least {target.bound:g} times as fast as {target.against}"
    return f"at most {target.bound:g} times {target.against}"


def _targets(plan: Plan, samples: Samples, entries: list[Contender]) -> Table:
    table = Table(title=f"{plan.title}: targets", title_justify="left")
    for name in ("", "of", "bound", "measured", "outcome"):
        table.add_column(name)
    rows = {row.name: row for row in plan.rows}
    for verdict in verdicts(plan, samples, entries):
        row = rows[verdict.target.row]
        table.add_row(
            row.title,
            verdict.target.subject,
            _bound(verdict, SHORT[row.unit]),
            _times(verdict.spread) if verdict.spread else "-",
            f"[{COLOURS[verdict.outcome]}]{verdict.outcome}[/]",
        )
    return table


def show(plan: Plan, samples: Samples, entries: list[Contender], console: Console) -> None:
    """Print figures, ratios, targets, who used which data path, and who was absent."""
    console.print(f"measured on: {samples.subject}")
    console.print(_figures(plan, samples, entries))
    for base in plan.bases:
        table = _ratios(plan, samples, entries, base)
        if table is not None:
            console.print(table)
    console.print(_targets(plan, samples, entries))
    for contender in entries:
        used = samples.datapaths.get(contender.name)
        if used:
            console.print(f"{contender.title}: data path {', '.join(used)}")
        if contender.name in samples.absent:
            console.print(escape(f"{contender.title}: absent, {samples.absent[contender.name]}"))
        sessions: dict[str, list[str]] = {}
        for session, reason in samples.failures.get(contender.name, {}).items():
            sessions.setdefault(reason, []).append(session)
        for reason, names in sessions.items():
            without = f"{contender.title}: no samples of {', '.join(names)}: {reason}"
            console.print(escape(without))
    if samples.still_cached > 0:
        percent = round(100 * samples.still_cached)
        console.print(f"up to {percent} % of the image was cached where it should not have been")
