# SPDX-License-Identifier: Apache-2.0
"""What is told of a run, for people and as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from penstock.testing.fsx.model import Difference
from penstock.testing.fsx.operations import KINDS, Operation
from penstock.testing.fsx.running import LOGGED, Failure, Outcome, Step
from penstock.testing.fsx.world import Settings, label

__all__ = ["as_json", "as_text", "command", "dump", "parse"]


def command(directory: str, settings: Settings, replay: str | None = None) -> str:
    """The command that makes the run again."""
    words = ["python", "-m", "penstock.testing.fsx", directory]
    defaults = Settings()
    for name in ("operations", "seed", "files", "size", "slots", "check_every", "settle"):
        value = getattr(settings, name)
        if value != getattr(defaults, name) or name == "seed":
            words += [
                f"--{name.replace('_', '-')}",
                f"{value:g}" if name == "settle" else f"{value}",
            ]
    for feature in sorted(settings.without):
        words += ["--without", feature]
    if settings.underneath is not None:
        words += ["--underneath", settings.underneath]
    if replay is not None:
        words += ["--replay", replay]
    return shlex.join(words)


def describe(op: Operation) -> str:
    """An operation as a line."""
    words = []
    for parameter, value in zip(KINDS[op.kind].parameters, op.args, strict=False):
        shown = label(value) if parameter in {"name", "other"} else str(value)
        words.append(f"{parameter} {shown}")
    return f"#{op.number} {op.kind}: {', '.join(words)}"


def _step(step: Step) -> str:
    where = f" ({step.where})" if step.where else ""
    result = f" -> {step.result}" if step.result != "" else ""
    return f"{describe(step.operation)}{where}{result}"


def dump(operations: Iterable[Operation]) -> str:
    """Operations, one a line, for :func:`parse`."""
    return "".join(json.dumps([op.number, op.kind, *op.args]) + "\n" for op in operations)


def parse(text: str) -> list[Operation]:
    """The operations of :func:`dump`.

    Raises:
        ValueError: that is no such list.
    """
    found = []
    for line in text.splitlines():
        number, kind, *args = json.loads(line)
        whole = [number, *args]
        if kind not in KINDS or any(type(value) is not int or value < 0 for value in whole):
            raise ValueError(f"not an operation: {line}")
        if len(args) != len(KINDS[kind].parameters):
            raise ValueError(f"{kind} has other arguments: {line}")
        found.append(Operation(number, kind, tuple(args)))
    return found


def _missing(outcome: Outcome) -> dict[str, str]:
    found = {name: why for name, why in outcome.features.items() if why is not None}
    if outcome.settings.underneath is None:
        found.pop("underneath", None)
    return found


def _sides(error: BaseException) -> list[str]:
    if not isinstance(error, Difference) or error.offset is None:
        return []
    return [
        f"  first difference at offset {error.offset} ({error.offset:#x})",
        f"  expected {error.wanted.hex(' ') or '(end of file)'}",
        f"  found    {error.got.hex(' ') or '(end of file)'}",
    ]


def as_text(directory: str, outcome: Outcome, short: Sequence[Operation], saved: str | None) -> str:
    """The report.

    Args:
        directory: as the user named it.
        outcome: of the run.
        short: a short list of operations that fails too, if one was looked for.
        saved: the file that it was written to.
    """
    lines = [f"not used, {name}: {why}" for name, why in _missing(outcome).items()]
    told = f"{outcome.done} operations in {outcome.seconds:.1f} s, seed {outcome.settings.seed}"
    if outcome.failure is None:
        lines.append(f"{told}: no difference")
    else:
        lines += _failure_lines(outcome.failure, told)
        if 0 < len(short) < outcome.failure.number:
            lines.append(f"{len(short)} operations that fail too{':' if _shown(short) else ''}")
            lines += map(describe, _shown(short))
        lines += ["to see it again:", f"  {command(directory, outcome.settings)}"]
        if saved is not None:
            lines.append(f"  {command(directory, outcome.settings, saved)}")
    return "\n".join(lines) + "\n"


def _shown(short: Sequence[Operation]) -> Sequence[Operation]:
    return short if len(short) <= LOGGED else ()


def _failure_lines(failure: Failure, told: str) -> list[str]:
    return [
        f"{told}: the filesystem differs at operation {failure.number}",
        f"the last {len(failure.steps)} operations:",
        *map(_step, failure.steps),
        "",
        f"difference at operation {failure.number}: {failure.error}",
        *_sides(failure.error),
    ]


def as_json(directory: str, outcome: Outcome, short: Sequence[Operation]) -> str:
    """The same for programs."""
    document: dict[str, Any] = {
        "seed": outcome.settings.seed,
        "operations": outcome.done,
        "counts": outcome.counts,
        "checks": outcome.checks,
        "seconds": round(outcome.seconds, 3),
        "missing": _missing(outcome),
        "command": command(directory, outcome.settings),
        "difference": None,
    }
    failure = outcome.failure
    if failure is not None:
        error = failure.error
        sided = isinstance(error, Difference) and error.offset is not None
        document["difference"] = {
            "operation": failure.number,
            "what": str(error),
            "errno": error.errno if isinstance(error, OSError) else None,
            "offset": error.offset if isinstance(error, Difference) else None,
            "expected": error.wanted.hex() if isinstance(error, Difference) and sided else None,
            "found": error.got.hex() if isinstance(error, Difference) and sided else None,
            "last": [_step(step) for step in failure.steps],
            "short": [[op.number, op.kind, *op.args] for op in short],
        }
    return json.dumps(document, indent=2) + "\n"
