# SPDX-License-Identifier: Apache-2.0
"""A run's samples in the units of the rows, its verdicts, and its document for JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.contenders import Contender
from bench.judge import Verdict, judge
from bench.plan import Plan, Row, Target
from bench.run import Samples

__all__ = ["PRODUCT", "document", "raw", "values", "verdicts", "write"]

PRODUCT = "penstock"
SCALES = {"us": 1e6, "ms": 1e3, "MiB": 1 / (1 << 20), "B": 1.0}


def raw(samples: Samples, contender: str, row: Row) -> list[float]:
    """Samples that grow when it gets worse: seconds, or bytes."""
    return samples.seconds.get(contender, {}).get(row.name) or samples.amounts.get(
        contender, {}
    ).get(row.name, [])


def values(samples: Samples, contender: str, row: Row) -> list[float]:
    """Samples in the row's unit."""
    taken = raw(samples, contender, row)
    count = samples.counts.get(row.name, 1)
    if row.unit == "MB/s":
        return [count / seconds / 1e6 for seconds in taken]
    return [value / count * SCALES[row.unit] for value in taken]


def _verdict(samples: Samples, row: Row, target: Target) -> Verdict:
    against, absolute = target.against, target.absolute
    if against is not None and absolute is not None and not raw(samples, against, row):
        target = replace(target, kind="at most", bound=absolute, against=None)
    if target.against is None:
        return judge(target, values(samples, target.subject, row), None)
    view = values if target.kind == "more" else raw
    return judge(target, view(samples, target.subject, row), view(samples, target.against, row))


def verdicts(plan: Plan, samples: Samples, entries: Iterable[Contender]) -> list[Verdict]:
    """All targets whose contenders were wanted, those too that cannot be judged without a peer."""
    rows = {row.name: row for row in plan.rows}
    wanted = {contender.name for contender in entries}
    return [
        _verdict(samples, rows[target.row], target)
        for target in plan.targets
        if target.subject in wanted and (target.against is None or target.against in wanted)
    ]


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
    if contender.absent is not None or not contender.version:
        return None
    if isinstance(contender.version, str):
        return contender.version
    asked = subprocess.run(contender.version, capture_output=True, text=True, check=False)
    lines = (asked.stdout + asked.stderr).strip().splitlines()
    return lines[0] if lines else None


def document(plan: Plan, samples: Samples, entries: list[Contender], rounds: int) -> dict[str, Any]:
    """Everything about a run, ready for JSON."""
    return {
        "plan": plan.name,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "rounds": rounds,
        "subject": samples.subject,
        "sizes": plan.sizes,
        "contenders": {
            c.name: {
                "command": list(c.command),
                "version": version(c),
                "absent": samples.absent.get(c.name),
                "failures": samples.failures.get(c.name, {}),
                "datapaths": samples.datapaths.get(c.name, []),
            }
            for c in entries
        },
        "rows": {row.name: {"title": row.title, "unit": row.unit} for row in plan.rows},
        "counts": samples.counts,
        "seconds": samples.seconds,
        "bytes": samples.amounts,
        "image_still_cached_after_drop": samples.still_cached,
        "targets": [
            {**asdict(v.target), "outcome": v.outcome, "spread": v.spread and asdict(v.spread)}
            for v in verdicts(plan, samples, entries)
        ],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a run's document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
