# SPDX-License-Identifier: Apache-2.0
"""install-system: what it puts where, what it leaves alone, and that the units are right."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from penstock.cli import trust
from penstock.cli.errors import Failure
from penstock.cli.installed import MARK
from penstock.cli.manual import PAGES, page
from penstock.cli.trust import changeable, changeable_installation
from tests.support.commands import COMMAND, good, penstock, refused, shell
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


def test_everybody_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "made" / "too"
    assert shell('umask 077; exec "$@"', "install-system", "--root", root).returncode == 0
    for path in (tmp_path / "made").rglob("*"):
        wanted = 0o755 if path.is_dir() or path.name.startswith("mount.penst") else 0o644
        if path.suffix == ".8":
            wanted = 0o644
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_all_is_done_before_anything_is_said(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*COMMAND, "install-system", "--root", str(tmp_path)]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")
    assert files(tmp_path) == EXPECTED


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "sbin").symlink_to(outside)
    (root / "usr").symlink_to("../../outside")
    install(root)
    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "mount.penstock").exists()
    assert (root / "outside/local/share/man/man1/penstock.1").exists()


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "sbin").symlink_to("sbin")
    code, said = refused("install-system", "--root", tmp_path)
    assert (code, said) == (2, f"{tmp_path}/sbin/mount.penstock: too many symbolic links")


def test_directories_of_others_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "usr/local/lib"
    place.mkdir(parents=True)
    place.chmod(0o777)
    said = "is writable for others, so that others could change what is put there"
    assert refused("install-system", "--root", tmp_path) == (
        2, f"{place} {said} (--force does it all the same)",
    )  # fmt: skip
    assert files(tmp_path) == set()
    install(tmp_path, "--force")
    assert files(tmp_path) == EXPECTED
    install(tmp_path, "--remove")
    assert files(tmp_path) == set()


def test_no_format_is_imported() -> None:
    """Reading the tables of words has nobody told that checksums will be slow."""
    script = """
import sys
from penstock.cli.installed import Places, items
list(items(Places(), "/python", ["x"]))
assert "penstock.servers.ext4.options" in sys.modules
sys.exit("penstock.formats.crc" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


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
    (tmp_path / "usr/local/lib/tmpfiles.d/other.conf").touch()
    assert {done for done, _ in install(tmp_path, "--remove")} == {"removed"}
    assert files(tmp_path) == {"usr/local/lib/tmpfiles.d/other.conf"}
    assert not (tmp_path / "usr/local/lib/systemd").exists()
    assert (tmp_path / "sbin").is_dir()
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
        ["--python=/x\nExecStartPre=/evil"],
        ["--python=/x\t/python"],
        ["--python=/$x/python"],
        ["--python=/\udcff/python"],
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


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment that has penstock; /tmp is taken for root's alone."""

    def lenient(info: os.stat_result, users: Iterable[int] = (0,)) -> str | None:
        return None if info.st_mode & stat.S_ISVTX else real(info, users)

    real = trust.fault
    monkeypatch.setattr(trust, "fault", lenient)
    place = tmp_path / "environment"
    python = Path(os.path.realpath(sys.executable))
    subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    for name in ("penstock", "crc32c"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
    (packages / "penstock" / "inner").mkdir()
    return place


@pytest.mark.requires("root")
def test_all_of_an_installation_is_looked_at(installation: Path, tmp_path: Path) -> None:
    python = str(installation / "bin" / "python")
    (packages,) = installation.glob("lib/python3*/site-packages")
    if (found := changeable_installation(python)) is not None:
        pytest.skip(f"this interpreter itself: {found}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = packages / "penstock" / "linked.py"
    link.symlink_to(elsewhere / "file.py")
    (elsewhere / "file.py").touch()
    (packages / "more.pth").write_text(f"# a word\nimport os\n{tmp_path}/named\n")
    (tmp_path / "named").mkdir()
    (elsewhere / "inner").mkdir()
    (elsewhere / "inner" / "code.py").touch()
    (packages / "penstock" / "further").symlink_to(elsewhere / "inner")
    (packages / "penstock" / "round").symlink_to("..")
    (packages / "penstock" / "missing").symlink_to(elsewhere / "none")
    for place in (
        packages / "penstock" / "inner",
        packages / "penstock" / "__init__.py",
        packages / "crc32c" / "__init__.py",
        packages / "more.pth",
        installation / "pyvenv.cfg",
        installation / "bin",
        elsewhere,
        elsewhere / "file.py",
        elsewhere / "inner" / "code.py",
        tmp_path / "named",
    ):
        assert changeable_installation(python) is None
        mode = place.stat().st_mode
        place.chmod(mode | 0o020)
        assert changeable_installation(python) == f"{place} is writable for others"
        place.chmod(mode)
        os.chown(place, 12345, 0)
        assert changeable_installation(python) == f"{place} belongs to uid 12345"
        os.chown(place, 0, 0)
    (tmp_path / "named").rmdir()
    tmp_path.chmod(0o777)
    assert changeable_installation(python) == f"{tmp_path} is writable for others"


@pytest.mark.requires("root")
def test_an_interpreter_is_looked_at_before_it_is_run(installation: Path, tmp_path: Path) -> None:
    (packages,) = installation.glob("lib/python3*/site-packages")
    (packages / "run.pth").write_text(f"import os; os.mkdir('{tmp_path}/was-run')\n")
    (packages / "run.pth").chmod(0o666)
    assert changeable_installation(str(installation / "bin/python")) is not None
    assert not (tmp_path / "was-run").exists()


@pytest.mark.requires("root")
def test_an_interpreter_without_penstock(installation: Path) -> None:
    (packages,) = installation.glob("lib/python3*/site-packages")
    (packages / "penstock").rename(packages / "other")
    python = str(installation / "bin/python")
    if changeable(os.path.realpath(python)) is None:
        with pytest.raises(Failure, match=r"bin/python: has no penstock$"):
            changeable_installation(python)
    with pytest.raises(Failure, match=r"does not answer as Python 3 does$"):
        changeable_installation("/bin/false")


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
