# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: damage images for as long as told; say how to make again what breaks.

With ``--guided`` and the package atheris installed, coverage of the reader chooses the damage.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from typing import Any

from tests.fuzz.bases import BASES
from tests.fuzz.mutate import check, damaged, to_text
from tests.fuzz.use import BrokenPromise, peak_growth

_WAYS = ("reader", "unverified", "server")


def _try(seed: int, bases: list[str]) -> str | None:
    """One damaged image; the case as text if it breaks a promise."""
    chance = random.Random(seed)
    editor = damaged(chance.choice(bases), chance, chance.choice((1, 1, 2, 3, 6)))
    way = chance.choice(_WAYS)
    try:
        with peak_growth():
            check(editor, (way,))
    except BrokenPromise as error:
        return to_text(editor, str(error)[:300])
    return None


def _random(arguments: argparse.Namespace) -> int:
    end = time.monotonic() + arguments.seconds
    seed = arguments.seed
    seen: set[str] = set()
    while time.monotonic() < end:
        case = _try(seed, arguments.base)
        if case is not None and case not in seen:
            seen.add(case)
            print(f"seed {seed}: {case}", flush=True)  # noqa: T201
        seed += 1
    print(f"{seed - arguments.seed} images, {len(seen)} broke a promise")  # noqa: T201
    return 1 if seen else 0


class _Guided(random.Random):
    """Chance that is what a fuzzer chooses."""

    def __init__(self, provider: Any) -> None:
        super().__init__(0)
        self._provider = provider

    def random(self) -> float:
        return float(self._provider.ConsumeProbability())

    def getrandbits(self, k: int, /) -> int:
        return int.from_bytes(self._provider.ConsumeBytes(-(-k // 8)), "little") & ((1 << k) - 1)


def _guided(arguments: argparse.Namespace) -> int:
    atheris: Any = importlib.import_module("atheris")
    atheris.instrument_all()

    def one(data: bytes) -> None:
        chance = _Guided(atheris.FuzzedDataProvider(data))
        editor = damaged(chance.choice(arguments.base), chance, 2)
        try:
            check(editor, ("reader",))
        except BrokenPromise as error:
            print(to_text(editor, str(error)[:300]), flush=True)  # noqa: T201
            raise

    atheris.Setup([sys.argv[0], f"-max_total_time={int(arguments.seconds)}"], one)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--base", action="append", choices=BASES)
    parser.add_argument("--guided", action="store_true", help="needs: pip install atheris")
    arguments = parser.parse_args()
    arguments.base = arguments.base or list(BASES)
    return _guided(arguments) if arguments.guided else _random(arguments)


if __name__ == "__main__":
    sys.exit(main())
