# SPDX-License-Identifier: Apache-2.0
"""The project's rules for its own text: linters, types, layers, headers, docstrings, sizes."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.requirements import PROJECT
from tools import layers

SOURCE = PROJECT / "src" / "penstock"
TREES = ("src", "tests", "bench", "examples", "tools", "demo")
LONGEST = 600
HEADER = "SPDX-License-Identifier: Apache-2.0"
# What a text for users must not have: places of one machine, numbers of a tracker, loose ends.
NOT_FOR_USERS = re.compile(
    r"/work/|(?<!tests)/root/(?!\x22)|/home/\w|\bissue \d"  # not tests/root, nor the bare prefix
    r"|\bTODO\b|\bFIXME\b|\bXXX\b|not implemented",
)
USER_TEXT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "NOTICE")


@cache
def python_files() -> tuple[Path, ...]:
    """Every Python file of the project."""
    return tuple(sorted(path for tree in TREES for path in (PROJECT / tree).rglob("*.py")))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    """The path as seen from the project's folder."""
    return str(path.relative_to(PROJECT))


def run(*command: str) -> None:
    """Run a tool of the environment; its findings are the failure's text."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--output-format", "concise", ".")


def test_ruff_would_change_no_layout() -> None:
    run("ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_mypy_finds_nothing() -> None:
    run("mypy")


def test_imports_go_down_only() -> None:
    run("tools.layers")


def test_import_contracts_can_break(tmp_path: Path) -> None:
    """The contracts do forbid: one forbidden import, and import-linter says so."""
    package = tmp_path / "penstock"
    for name in layers.packages():
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "abi" / "__init__.py").write_text("import penstock.session\n", encoding="utf-8")
    (package / "wire" / "__init__.py").write_text("import socket\n", encoding="utf-8")
    (tmp_path / "contracts.toml").write_text(layers.configuration(), encoding="utf-8")
    start = "import sys; from importlinter.cli import lint_imports as l; "
    start += "sys.exit(l(config_filename='contracts.toml', no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "penstock.abi is not allowed to import penstock.session" in done.stdout
    assert "penstock.wire is not allowed to import socket" in done.stdout


def test_every_package_has_a_row_in_the_layer_table() -> None:
    assert set(layers.packages()) == set(layers.table()["layers"])


def test_layer_table_names_only_what_stands_above() -> None:
    rows = layers.table()["layers"]
    seen: set[str] = set()
    order = sorted(rows, key=lambda name: len(closure(rows, name)))
    for name in order:
        assert name not in closure(rows, name), f"{name} imports itself through others"
        seen.add(name)
    assert seen == set(rows)


def closure(rows: dict[str, list[str]], name: str) -> set[str]:
    """Everything that ``name`` may import, directly or through others."""
    found: set[str] = set()
    queue = list(rows[name])
    while queue:
        other = queue.pop()
        if other not in found:
            found.add(other)
            queue.extend(rows[other])
    return found


def test_documented_layer_table_is_the_one_enforced() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Layers\n")[2].partition("\n## ")[0]
    documented = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and re.fullmatch(r"`\w+`", cells[1]):
            documented[cells[1].strip("`")] = set(re.findall(r"`(\w+)`", cells[3]))
    rows = {name: set(allowed) for name, allowed in layers.table()["layers"].items()}
    assert documented == rows


def test_every_file_has_the_licence_header() -> None:
    files = [*python_files(), PROJECT / "Makefile", *(PROJECT / ".ci").iterdir()]
    files += [*(PROJECT / "demo").iterdir(), *(PROJECT / "packaging").iterdir()]
    without = [
        short(path)
        for path in files
        if path.is_file()
        and HEADER not in "\n".join(path.read_text(encoding="utf-8").splitlines()[:2])
    ]
    assert not without


def test_every_module_says_what_it_is() -> None:
    without = [short(path) for path in python_files() if ast.get_docstring(parsed(path)) is None]
    assert not without


def test_packages_export_what_they_say() -> None:
    faults = []
    for init in sorted(SOURCE.rglob("__init__.py")):
        name = ".".join(init.parent.relative_to(SOURCE.parent).parts)
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", None)
        if exported is None:
            faults.append(f"{name} has no __all__")
            continue
        # A package whose modules are its exports loads each when it is imported, not before.
        modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
        faults += [
            f"{name}.{item} does not exist"
            for item in exported
            if item not in modules and not hasattr(module, item)
        ]
        if exported and set(exported) < modules:
            faults.append(f"{name} does not name {sorted(modules - set(exported))}")
        if len(set(exported)) != len(exported):
            faults.append(f"{name} exports a name twice")
    assert not faults


def test_no_folder_of_modules_is_without_a_facade() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert not [short(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_no_module_is_too_long() -> None:
    lengths = {short(path): path.read_text(encoding="utf-8").count("\n") for path in python_files()}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt]) -> Iterator[Documented]:
    """Functions and classes of a module's or class's body that others may use."""
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node


def speaks_for_itself(node: Documented) -> bool:
    """A tuple of named fields, a property of one line, or a second definition of a name."""
    decorators = " ".join(ast.unparse(item) for item in node.decorator_list)
    if isinstance(node, ast.ClassDef):
        return "NamedTuple" in [ast.unparse(base) for base in node.bases]
    one_line = len(node.body) == 1 and isinstance(node.body[0], ast.Return)
    return (
        "overload" in decorators
        or ".setter" in decorators
        or ("property" in decorators and one_line)
    )


def test_public_functions_and_classes_are_documented() -> None:
    documented_methods: set[str] = set()
    methods: list[tuple[str, Documented]] = []
    missing = []
    for path in SOURCE.rglob("*.py"):
        for node in public(parsed(path).body):
            if ast.get_docstring(node) is None and not speaks_for_itself(node):
                missing.append(f"{short(path)}:{node.lineno} {node.name}")
            for method in public(node.body) if isinstance(node, ast.ClassDef) else ():
                methods.append((f"{short(path)}:{method.lineno}", method))
                if ast.get_docstring(method) is not None:
                    documented_methods.add(method.name)
    # A method that carries out a documented one of a base class or protocol need not repeat it.
    missing += [
        f"{where} {method.name}"
        for where, method in methods
        if method.name not in documented_methods and not speaks_for_itself(method)
    ]
    assert not missing, "\n".join(missing)


def prints(path: Path) -> list[str]:
    """Where a file writes to standard output."""
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    ways = {"print", "sys.stdout.write"}
    return [f"{short(path)}:{node.lineno}" for node in calls if ast.unparse(node.func) in ways]


def test_only_the_command_line_prints() -> None:
    library = [path for path in SOURCE.rglob("*.py") if "cli" not in path.relative_to(SOURCE).parts]
    assert not [place for path in library for place in prints(path)]


def test_library_never_configures_logging() -> None:
    calls = re.compile(r"logging\.(basicConfig|config\b|disable)|\.addHandler\(|\.setLevel\(")
    faults = [
        short(path)
        for path in SOURCE.rglob("*.py")
        if "cli" not in path.relative_to(SOURCE).parts
        and path.relative_to(SOURCE) != Path("contain/server.py")  # a program of its own
        and calls.search(path.read_text(encoding="utf-8"))
    ]
    assert not faults


def test_command_line_starts_without_rich() -> None:
    words = "import sys, penstock.cli.main; sys.exit('rich' in sys.modules)"
    run_python = subprocess.run([sys.executable, "-c", words], check=False)
    assert run_python.returncode == 0


def test_texts_speak_of_penstock_and_its_users() -> None:
    files = [PROJECT / name for name in USER_TEXT]
    files += sorted((PROJECT / "docs").rglob("*.md")) + sorted((PROJECT / "bench").glob("*.md"))
    files += [path for path in python_files() if path != Path(__file__)]
    files += [path for path in (PROJECT / "demo").iterdir() if path.is_file()]
    faults = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = NOT_FOR_USERS.search(line)
            if found:
                faults.append(f"{short(path)}:{number}: {found.group()}")
    assert not faults, "\n".join(faults)


def test_links_in_documents_lead_somewhere() -> None:
    files = [
        *PROJECT.glob("*.md"),
        *(PROJECT / "docs").rglob("*.md"),
        PROJECT / "bench" / "README.md",
    ]
    links = [
        (path, target)
        for path in files
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert links
    assert not [
        f"{short(path)}: {target}" for path, target in links if not (path.parent / target).exists()
    ]
