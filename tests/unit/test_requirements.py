# SPDX-License-Identifier: Apache-2.0
"""The test suite's own rules: requirements, skips under PENSTOCK_REQUIRE=all, the leak check."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import requirements
from tests.support.ordinary import OrdinaryUser

PROVIDERS = {"root", "package", "host", "kernel", "release"}


def session(tmp_path: Path, body: str, **environment: str) -> tuple[int, str]:
    """Exit status and output of a pytest run of its own, with the suite's conftest as plugin."""
    (tmp_path / "test_it.py").write_text(textwrap.dedent(body), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = -ra --strict-markers\n", encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--basetemp", str(tmp_path / "base"), str(tmp_path)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "PYTEST_"))}
    done = subprocess.run(
        command,
        cwd=requirements.PROJECT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_table_is_whole() -> None:
    table = requirements.load()
    for requirement in table.values():
        assert requirement.probe in requirements.PROBES, requirement.name
        assert requirement.provider in PROVIDERS, requirement.name
        assert requirement.what
        assert requirement.covered
    assert set(requirements.PROBES) == {requirement.probe for requirement in table.values()}
    for name in requirements.kernel_may_lack():
        assert table[name].provider in {"kernel", "release"}, f"{name} can be had here"


def test_skip_is_allowed_without_strictness(tmp_path: Path) -> None:
    body = """
        import pytest
        def test_a(): pytest.skip("not today")
    """
    status, output = session(tmp_path, body)
    assert status == 0, output
    assert "1 skipped" in output


def test_skip_fails_when_all_is_required(tmp_path: Path) -> None:
    body = """
        import pytest
        def test_a(): pytest.skip("not today")
        @pytest.mark.skipif(True, reason="nor this")
        def test_b(): pass
    """
    status, output = session(tmp_path, body, PENSTOCK_REQUIRE="all")
    assert status == 1, output
    assert "PENSTOCK_REQUIRE=all does not allow: Skipped: not today" in output
    assert "nor this" in output
    assert "skipped" not in output.splitlines()[-1]


def test_module_skip_fails_when_all_is_required(tmp_path: Path) -> None:
    body = """
        import pytest
        pytest.skip("whole module", allow_module_level=True)
    """
    status, output = session(tmp_path, body, PENSTOCK_REQUIRE="all")
    assert status != 0, output
    assert "whole module" in output


FAKE = """
    import pytest
    from tests.support import requirements
    entry = requirements.Requirement("odd", "the odd thing", "odd", "{provider}", "the night run")
    requirements.load().update(odd=entry)
    requirements.PROBES["odd"] = lambda: "none found"
    requirements.kernel_may_lack = lambda: frozenset({lacking})
    @pytest.mark.requires("odd")
    def test_a(): raise AssertionError("must not run")
"""


@pytest.mark.parametrize("strict", ["", "all"])
def test_kernel_may_lack_what_is_listed(tmp_path: Path, strict: str) -> None:
    body = FAKE.format(provider="kernel", lacking='["odd"]')
    status, output = session(tmp_path, body, PENSTOCK_REQUIRE=strict)
    assert status == 0, output
    assert "requires odd: the odd thing: none found" in output
    assert "odd: covered by the night run" in output


def test_kernel_lacking_something_new_fails(tmp_path: Path) -> None:
    body = FAKE.format(provider="kernel", lacking="[]")
    status, output = session(tmp_path, body, PENSTOCK_REQUIRE="all")
    assert status == 1, output
    assert "does not allow" in output


def test_unknown_requirement_fails(tmp_path: Path) -> None:
    body = """
        import pytest
        @pytest.mark.requires("unheard-of")
        def test_a(): pass
    """
    status, output = session(tmp_path, body)
    assert status == 1, output
    assert "'unheard-of' is not in tests/requirements.toml" in output


def test_process_left_behind_fails_and_is_ended(tmp_path: Path) -> None:
    body = """
        import subprocess
        def test_a(tmp_path):
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            (tmp_path.parent.parent / "pid").write_text(str(child.pid))
            child.returncode = 0
    """
    status, output = session(tmp_path, body)
    assert status == 1, output
    assert "left behind by the tests" in output
    assert "sleep 1000" in output
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    assert (
        not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    )


@pytest.mark.requires("root")
def test_mount_left_behind_fails_and_is_unmounted(tmp_path: Path) -> None:
    body = """
        import subprocess
        def test_a(tmp_path):
            subprocess.run(["mount", "-t", "tmpfs", "left over", tmp_path], check=True)
    """
    status, output = session(tmp_path, body)
    assert status == 1, output
    assert "mount: " in output
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


@pytest.mark.requires("ordinary-user")
def test_ordinary_user_has_no_rights_left(ordinary_user: OrdinaryUser) -> None:
    status = ordinary_user.run(["cat", "/proc/self/status"], check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(ordinary_user.uid)] * 4
    assert fields["Gid"].split() == [str(ordinary_user.gid)] * 4
    assert fields["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[name], 16) == 0, name


@pytest.mark.requires("ordinary-user")
def test_ordinary_user_starts_this_clone(ordinary_user: OrdinaryUser) -> None:
    words = "import penstock, crc32c, sys; print(sys.prefix, penstock.__file__)"
    shown = ordinary_user.run([ordinary_user.python, "-c", words], check=True).stdout.split()
    assert shown == [
        str(ordinary_user.root / ".venv"),
        f"{ordinary_user.root}/src/penstock/__init__.py",
    ]
