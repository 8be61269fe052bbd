# SPDX-License-Identifier: Apache-2.0
"""Show the samples: tables on the terminal, JSON in a file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contenders import Contender
from bench.judge import Spread, Verdict, judge, ratio
from bench.plan import MEMORY_ROW, MOUNT_ROW, ROWS, TARGETS, Row, Sizes
from bench.run import Samples

__all__ = ["PRODUCT", "document", "show", "verdicts", "write"]

PRODUCT = "penstock"
BASES = ("kernel", "fuse2fs")
COLOURS = {"met": "green", "unclear": "yellow", "missed": "red", "absent": "dim"}


def shown(row: Row, seconds: float, count: int) -> float:
    """A sample in the row's unit."""
    if row.unit == "MB/s":
        return count / seconds / 1e6
    return seconds / count * {"us": 1e6, "ms": 1e3}[row.unit]


def verdicts(samples: Samples) -> list[Verdict]:
    """All targets, judged on penstock as a user gets it without options."""
    mine = samples.seconds.get(PRODUCT, {})
    found = []
    for target in TARGETS:
        if target.row == MEMORY_ROW.name:
            used = samples.memory.get(PRODUCT)
            found.append(judge(target, [max(used)] if used else [], None))
        elif target.against is None:
            found.append(judge(target, [1e3 * s for s in mine.get(target.row, [])], None))
        else:
            others = samples.seconds.get(target.against, {}).get(target.row, [])
            scale = 1e3 if target.kind == "more" else 1.0
            ours = [scale * s for s in mine.get(target.row, [])]
            found.append(judge(target, ours, [scale * s for s in others]))
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def version(contender: Contender) -> str | None:
    """What the contender says of its version, in one line."""
    words = {"fuse2fs": ["fuse2fs", "-V"], PRODUCT: [contender.command[0], "--version"]}
    if contender.absent is not None or contender.name not in words:
        return None
    asked = subprocess.run(words[contender.name], capture_output=True, text=True, check=False)
    lines = (asked.stdout + asked.stderr).strip().splitlines()
    return lines[0] if lines else None


def document(
    samples: Samples, entries: list[Contender], sizes: Sizes, rounds: int
) -> dict[str, Any]:
    """Everything about a run, ready for JSON."""
    return {
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "rounds": rounds,
        "sizes": asdict(sizes),
        "contenders": {
            c.name: {
                "command": list(c.command),
                "version": version(c),
                "absent": samples.absent.get(c.name),
            }
            for c in entries
        },
        "counts": samples.counts,
        "seconds": samples.seconds,
        "memory_mib": {
            name: {"peak_resident": peak, "proportional": proportional}
            for name, (peak, proportional) in samples.memory.items()
        },
        "image_still_cached_after_drop": samples.still_cached,
        "targets": [
            {**asdict(v.target), "outcome": v.outcome, "spread": v.spread and asdict(v.spread)}
            for v in verdicts(samples)
        ],
    }


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _times(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _figures(samples: Samples, entries: list[Contender]) -> Table:
    table = Table(title="Medians", title_justify="left")
    table.add_column("")
    for contender in entries:
        table.add_column(contender.title, justify="right")
    units = {"us": "µs each", "MB/s": "MB/s", "ms": "ms", "MiB": "MiB"}
    for row in (*ROWS, MOUNT_ROW):
        cells = []
        for contender in entries:
            taken = samples.seconds.get(contender.name, {}).get(row.name)
            values = [shown(row, s, samples.counts[row.name]) for s in taken or ()]
            cells.append(_number(Spread.of(values).median) if values else "absent")
        table.add_row(f"{row.title}, {units[row.unit]}", *cells)
    cells = []
    for contender in entries:
        used = samples.memory.get(contender.name)
        cells.append(f"{used[0]:.0f} / {used[1]:.0f}" if used else "-")
    table.add_row(f"{MEMORY_ROW.title}, MiB peak RSS / PSS", *cells)
    return table


def _ratios(samples: Samples, entries: list[Contender], base: str) -> Table | None:
    others = samples.seconds.get(base)
    if not others:
        return None
    title = f"Time against {base}: median (lowest to highest) over the rounds; below 1 is faster"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    compared = [c for c in entries if c.name not in (base, "kernel") and c.name in samples.seconds]
    for contender in compared:
        table.add_column(contender.title, justify="right")
    for row in (*ROWS, MOUNT_ROW):
        cells = []
        for contender in compared:
            mine = samples.seconds[contender.name].get(row.name)
            cells.append(_times(ratio(mine, others[row.name])) if mine else "absent")
        table.add_row(row.title, *cells)
    return table


def _targets(samples: Samples) -> Table:
    table = Table(title="Targets", title_justify="left")
    for name in ("", "bound", "measured", "outcome"):
        table.add_column(name)
    titles = {row.name: row.title for row in (*ROWS, MOUNT_ROW, MEMORY_ROW)}
    units = {MOUNT_ROW.name: " ms", MEMORY_ROW.name: " MiB"}
    for verdict in verdicts(samples):
        target = verdict.target
        if target.against is None:
            bound = f"at most {target.bound:g}{units[target.row]}"
        elif target.kind == "more":
            bound = f"at most {target.bound:g}{units[target.row]} more than {target.against}"
        elif target.kind == "faster":
            bound = f"at least {target.bound:g} times faster than {target.against}"
        else:
            bound = f"at most {target.bound:g} times {target.against}"
        measured = _times(verdict.spread) if verdict.spread else "-"
        outcome = f"[{COLOURS[verdict.outcome]}]{verdict.outcome}[/]"
        table.add_row(titles[target.row], bound, measured, outcome)
    return table


def show(samples: Samples, entries: list[Contender], console: Console) -> None:
    """Print figures, ratios, targets, and who was absent."""
    console.print(_figures(samples, entries))
    for base in BASES:
        table = _ratios(samples, entries, base)
        if table is not None:
            console.print(table)
    console.print(_targets(samples))
    for contender in entries:
        if contender.name in samples.absent:
            console.print(f"{contender.title}: absent, {samples.absent[contender.name]}")
    if samples.still_cached > 0:
        percent = round(100 * samples.still_cached)
        console.print(f"up to {percent} % of the image was cached where it should not have been")


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a run's document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
