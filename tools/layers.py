# SPDX-License-Identifier: Apache-2.0
"""Check the layer table: which package of penstock may import which.

The table is ``[tool.penstock.layers]`` in pyproject.toml. Each of its rows becomes a contract for
import-linter: a package may import itself and what its row names, directly; what those import in
turn is their business. Two more contracts: layers that only compute import no module that does
I/O, and ctypes is used in ``sys`` alone.

Run as ``python -m tools.layers``; the exit status is import-linter's.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from importlinter.cli import lint_imports

__all__ = ["configuration", "main", "packages", "table"]

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "penstock"


def table() -> dict[str, Any]:
    """``[tool.penstock]`` of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = project["tool"]["penstock"]
    return settings


def packages() -> list[str]:
    """The packages that exist, by their short names."""
    return sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def _contract(title: str, source: list[str], forbidden: list[str], ignore: list[str]) -> str:
    lines = [
        "[[tool.importlinter.contracts]]",
        f'name = "{title}"',
        'type = "forbidden"',
        'allow_indirect_imports = "true"',
        f"source_modules = {source!r}",
        f"forbidden_modules = {forbidden!r}",
        f"ignore_imports = {ignore!r}",
        'unmatched_ignore_imports_alerting = "none"',
    ]
    return "\n".join(lines)


def _contracts() -> Iterator[str]:
    settings = table()
    existing = packages()
    layers: dict[str, list[str]] = settings["layers"]
    for name in existing:
        allowed = {name, *layers.get(name, ())}
        forbidden = [f"penstock.{other}" for other in existing if other not in allowed]
        if forbidden:
            title = f"{name} imports nothing but {', '.join(layers.get(name, ())) or 'itself'}"
            yield _contract(title, [f"penstock.{name}"], forbidden, [])
    pure = settings["no_io"]
    sources = [f"penstock.{name}" for name in pure["packages"] if name in existing]
    yield _contract("layers that compute do no I/O", sources, pure["modules"], pure["except"])
    others = [f"penstock.{name}" for name in existing if name != "sys"]
    yield _contract("ctypes is for sys alone", others, ["ctypes"], [])


def configuration() -> str:
    """import-linter's configuration, as TOML."""
    head = '[tool.importlinter]\nroot_package = "penstock"\ninclude_external_packages = true'
    return "\n\n".join([head, *_contracts()]) + "\n"


def main() -> int:
    """Check; 0 when every import is allowed."""
    sys.path.insert(0, str(ROOT / "src"))
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(configuration())
        file.flush()
        return int(lint_imports(config_filename=file.name, no_cache=True))


if __name__ == "__main__":
    sys.exit(main())
