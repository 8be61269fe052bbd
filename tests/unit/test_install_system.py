# SPDX-License-Identifier: Apache-2.0
"""install-system: what it puts where, what it leaves alone, and that the units are right."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from penstock.cli.commands.install_system import changeable
from penstock.cli.installed import MARK
from penstock.cli.manual import PAGES, page
from tests.support.commands import good, penstock, refused
from tests.support.ordinary import OrdinaryUser

UNITS = "usr/local/lib/systemd/system"
EXPECTED = {
    "sbin/mount.penstock",
    "sbin/mount.fuse.penstock",
    f"{UNITS}/penstock-ext4.socket",
    f"{UNITS}/penstock-ext4@.service",
    f"{UNITS}/penstock@.service",
    "usr/local/lib/tmpfiles.d/penstock.conf",
    *(f"usr/local/share/man/man{name[-1]}/{name}" for name in PAGES),
}
MOST_EXPOSED = 2.0


def install(root: Path, *words: str) -> list[list[str]]:
    """Run it; each line's words, and the last of them below ``root``."""
    lines = good("install-system", "--root", root, *words).splitlines()
    split = [line.rsplit(" ", 1) for line in lines]
    return [[done, path.removeprefix(f"{root}/")] for done, path in split]


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_everything_is_put_in_place(tmp_path: Path) -> None:
    done = install(tmp_path)
    assert sorted(done) == [["installed", name] for name in sorted(EXPECTED)]
    assert files(tmp_path) == EXPECTED
    helper = tmp_path / "sbin" / "mount.penstock"
    assert stat.S_IMODE(helper.stat().st_mode) == 0o755
    assert (tmp_path / "sbin" / "mount.fuse.penstock").readlink() == Path("mount.penstock")
    for name in PAGES:
        text = (tmp_path / "usr/local/share/man" / f"man{name[-1]}" / name).read_text("utf-8")
        assert page(name) in text
    for name in files(tmp_path) - {"sbin/mount.fuse.penstock"}:
        assert MARK in (tmp_path / name).read_text("utf-8"), name
        assert "@PENSTOCK@" not in (tmp_path / name).read_text("utf-8")


def test_the_helper_runs(tmp_path: Path) -> None:
    install(tmp_path)
    for name in ("mount.penstock", "mount.fuse.penstock"):
        done = subprocess.run(
            [tmp_path / "sbin" / name, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("mount.penstock ")


def test_nothing_changes_the_second_time(tmp_path: Path) -> None:
    first = install(tmp_path)
    times = {name: (tmp_path / name).lstat().st_mtime_ns for name in EXPECTED}
    assert install(tmp_path) == [["unchanged", name] for _, name in first]
    assert times == {name: (tmp_path / name).lstat().st_mtime_ns for name in EXPECTED}


def test_changed_files_are_replaced(tmp_path: Path) -> None:
    install(tmp_path)
    unit = tmp_path / UNITS / "penstock-ext4.socket"
    before = unit.read_text("utf-8")
    unit.write_text(before + "# more\n", "utf-8")
    (tmp_path / "sbin" / "mount.penstock").chmod(0o600)
    changed = [name for done, name in install(tmp_path) if done == "replaced"]
    assert changed == ["sbin/mount.penstock", f"{UNITS}/penstock-ext4.socket"]
    assert unit.read_text("utf-8") == before


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_not_ours_stops_everything(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "usr/local/share/man/man8/mount.penstock.8"
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_text("another program's\n", "utf-8")
    elif kind == "link":
        place.symlink_to("elsewhere")
    else:
        place.mkdir()
    assert refused("install-system", "--root", tmp_path) == (
        2, f"{place}: is not penstock's; move it away first",
    )  # fmt: skip
    assert not (tmp_path / "sbin").exists()


def test_what_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    install(tmp_path)
    helper = tmp_path / "sbin" / "mount.penstock"
    helper.write_text("#!/bin/sh\n", "utf-8")
    done = penstock("install-system", "--root", tmp_path, "--remove")
    assert done.returncode == 0
    assert done.stderr == f"penstock: warning: {helper}: is not penstock's, and stays\n"
    assert files(tmp_path) == {"sbin/mount.penstock"}


def test_remove(tmp_path: Path) -> None:
    install(tmp_path)
    assert {done for done, _ in install(tmp_path, "--remove")} == {"removed"}
    assert files(tmp_path) == set()
    assert install(tmp_path, "--remove") == []


def test_dry_runs_write_nothing(tmp_path: Path) -> None:
    assert {done for done, _ in install(tmp_path, "--dry-run")} == {"would be installed"}
    assert list(tmp_path.iterdir()) == []
    install(tmp_path)
    assert {done for done, _ in install(tmp_path, "--dry-run", "--remove")} == {"would be removed"}
    assert files(tmp_path) == EXPECTED


def test_other_places(tmp_path: Path) -> None:
    words = ["--helpers=/h", "--units=/u", "--tmpfiles=/t", "--man=/m", "--python=/usr/bin/python9"]
    install(tmp_path, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"h", "u", "t", "m"}
    assert "exec /usr/bin/python9 -I" in (tmp_path / "h" / "mount.penstock").read_text("utf-8")
    unit = (tmp_path / "u" / "penstock-ext4@.service").read_text("utf-8")
    assert "\nExecStart=/usr/bin/python9 -I -m penstock serve ext4\n" in unit


def test_odd_paths_are_quoted(tmp_path: Path) -> None:
    install(tmp_path, '--python=/opt/a b"%c/python')
    helper = (tmp_path / "sbin" / "mount.penstock").read_text("utf-8")
    assert """exec '/opt/a b"%c/python' -I""" in helper
    unit = (tmp_path / UNITS / "penstock-ext4@.service").read_text("utf-8")
    assert r'ExecStart="/opt/a b\"%%c/python" -I' in unit


def test_aliases_are_more_sockets(tmp_path: Path) -> None:
    install(tmp_path, "--alias=ext4,penstock-ext4,ext2")
    text = (tmp_path / UNITS / "penstock-ext4.socket").read_text("utf-8")
    assert re.findall(r"^ListenSequentialPacket=(.*)$", text, re.MULTILINE) == [
        "/run/filesystems/penstock-ext4", "/run/filesystems/ext4", "/run/filesystems/ext2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["--alias=../x"],
        ["--alias=a b"],
        ["--alias=-x"],
        ["--units=relative"],
        ["--python=python3"],
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str]) -> None:
    code, _ = refused("install-system", "--root", tmp_path, *words)
    assert code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.requires("root")
def test_root_runs_nothing_that_others_can_write(session_place: Path) -> None:
    """The session's folder is root's own, below /tmp, which is everybody's."""
    place = session_place / f"installation-{os.getpid()}"
    place.mkdir(mode=0o755)
    assert changeable(str(place)) == "/tmp is writable for others"
    place.chmod(0o775)
    assert changeable(str(place)) == f"{place} is writable for others"
    place.chmod(0o755)
    os.chown(place, 12345, 0)
    assert changeable(str(place)) == f"{place} belongs to uid 12345"
    assert changeable(f"{place}/none") == f"{place}/none: no such file or directory"
    assert changeable("/usr/bin") is None


@pytest.mark.requires("ordinary-user")
def test_only_root_installs_into_the_system(ordinary_user: OrdinaryUser) -> None:
    done = ordinary_user.run([*ordinary_user.penstock, "install-system"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("penstock: only root can install into the system (or say --root DIR)\n")


def installed_units(tmp_path: Path) -> Path:
    install(tmp_path)
    units = tmp_path / UNITS
    (units / "penstock@mnt-disk.service").write_text(
        (units / "penstock@.service").read_text("utf-8"), "utf-8"
    )
    return units


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", "--man=no", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.requires("systemd")
@pytest.mark.parametrize(
    "name", ["penstock-ext4.socket", "penstock-ext4@.service", "penstock@mnt-disk.service"]
)
def test_units_are_right(tmp_path: Path, name: str) -> None:
    done = analyze("verify", installed_units(tmp_path) / name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.requires("systemd")
def test_verification_finds_mistakes(tmp_path: Path) -> None:
    """What the test above relies on."""
    unit = installed_units(tmp_path) / "penstock-ext4@.service"
    unit.write_text(unit.read_text("utf-8").replace("DynamicUser=", "DinamycUser="), "utf-8")
    assert "DinamycUser" in analyze("verify", unit).stderr


@pytest.mark.requires("systemd")
def test_the_service_is_hardened(tmp_path: Path) -> None:
    unit = installed_units(tmp_path) / "penstock-ext4@.service"
    done = analyze("security", "--offline=yes", "--threshold", str(int(MOST_EXPOSED * 10)), unit)
    (exposure,) = re.findall(r"Overall exposure level for .*: ([0-9.]+) ", done.stdout)
    assert float(exposure) <= MOST_EXPOSED
    assert done.returncode == 0
