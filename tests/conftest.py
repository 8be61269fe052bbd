# SPDX-License-Identifier: Apache-2.0
"""What all tests share: named requirements, an ordinary user, /dev/fuse modes, the leak check.

Requirements: ``@pytest.mark.requires("fuse", "loop")``, names from tests/requirements.toml. Tests
in tests/mount need ``fuse`` and tests in tests/root need ``root`` without saying so. An absent
requirement skips the test. Under PENSTOCK_REQUIRE=all any skip is a failure, but for what that
file says this kernel may lack; those stand in the last lines of the run.

Order: tests of tests/mount and tests/root share the machine's mounts, devices and CPUs, so with
pytest-xdist they all run in one worker, one after the other, beside the unit tests. A scheduler of
our own sees to it: xdist's (``--dist loadgroup``) writes the group into the node's id, which
pytest 9.2 does not let it. Tests marked ``serial`` elsewhere wait for those by a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks, requirements
from tests.support.ordinary import OrdinaryUser, an_ordinary_user

STRICT = os.environ.get("PENSTOCK_REQUIRE") == "all"
PLACE = "PENSTOCK_TEST_PLACE"
BY_FOLDER = {"mount": ("fuse",), "root": ("root",)}
_absent: dict[str, str] = {}
_left: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks; make the session's folder and marker, once for all its workers."""
    # Whoever starts the tests in the background has them ignore signals, and so would all that
    # they start: then no test of signals would tell anything.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    config.addinivalue_line(
        "markers", "requires(*names): entries of tests/requirements.toml needed"
    )
    config.addinivalue_line("markers", "serial: never beside another mount, root or serial test")
    if not hasattr(config, "workerinput"):
        os.environ[leaks.MARKER] = secrets.token_hex(8)
        place = tempfile.mkdtemp(prefix="penstock-test-")
        Path(place).chmod(0o755)
        os.environ[PLACE] = place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add what a folder implies: requirements, and to run one by one."""
    for item in items:
        folder = item.path.parent.name
        if folder in BY_FOLDER:
            item.add_marker(pytest.mark.requires(*BY_FOLDER[folder]))
            item.add_marker(pytest.mark.serial)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """One worker for all of the folders that run one by one; other tests wherever there is room."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByFolder(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            serial = Path(nodeid.partition("::")[0]).parent.name in BY_FOLDER
            return "serial" if serial else nodeid

    return ByFolder(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Serial tests of one session take turns, whichever workers run them."""
    if item.get_closest_marker("serial") is None:
        return (yield)
    with open(Path(os.environ[PLACE]) / "serial", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test, or fail it, when something that it requires is absent."""
    for mark in item.iter_markers("requires"):
        for name in mark.args:
            if name not in requirements.load():
                pytest.fail(f"{name!r} is not in tests/requirements.toml", pytrace=False)
            reason = requirements.absent_reason(name)
            if reason is not None:
                item.user_properties.append(("absent", name))
                pytest.skip(f"requires {name}: {reason}")


def _accepted(report: pytest.TestReport) -> bool:
    names = [str(value) for key, value in report.user_properties if key == "absent"]
    return bool(names) and set(names) <= requirements.kernel_may_lack()


def _fail_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped, which PENSTOCK_REQUIRE=all does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under PENSTOCK_REQUIRE=all a skip is a failure, unless the kernel may lack what it needs."""
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if STRICT and report.skipped and not expected_failure and not _accepted(report):
        _fail_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    if STRICT and report.skipped:
        _fail_skip(report)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was absent (with workers this runs in the process that prints the summary)."""
    for key, value in report.user_properties:
        if key == "absent":
            name = str(value)
            _absent[name] = requirements.load()[name].covered


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of the session may be left: mounts, loop devices, processes."""
    if hasattr(session.config, "workerinput"):
        return
    place = os.environ[PLACE]
    factory = getattr(session.config, "_tmp_path_factory", None)
    folders = [place]
    if factory is not None and factory._basetemp is not None:
        folders.append(str(factory.getbasetemp()))
    _left.extend(leaks.left_behind(os.environ[leaks.MARKER], folders))
    if _left:
        leaks.clean_up(os.environ[leaks.MARKER], folders)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    shutil.rmtree(place, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last lines before pytest's closing one: what was left behind, what was absent."""
    if _left:
        terminalreporter.section("left behind by the tests", red=True)
        for line in _left:
            terminalreporter.write_line(line)
    if _absent:
        terminalreporter.section("absent here")
        for name, covered in sorted(_absent.items()):
            terminalreporter.write_line(f"{name}: covered by {covered}")


@pytest.fixture(scope="session")
def session_place() -> Path:
    """The session's folder, which everybody may enter (others cannot enter ``tmp_path``)."""
    return Path(os.environ[PLACE])


@pytest.fixture(scope="session")
def _ordinary(session_place: Path) -> Iterator[OrdinaryUser]:
    marker = {leaks.MARKER: os.environ[leaks.MARKER]}
    with an_ordinary_user(requirements.PROJECT, session_place, marker) as user:
        yield user


@pytest.fixture
def ordinary_user(request: pytest.FixtureRequest) -> OrdinaryUser:
    """Runs commands as nobody, credentials dropped before exec. Requires ``ordinary-user``."""
    reason = requirements.absent_reason("ordinary-user")
    if reason is not None:
        request.node.user_properties.append(("absent", "ordinary-user"))
        pytest.skip(f"requires ordinary-user: {reason}")
    user: OrdinaryUser = request.getfixturevalue("_ordinary")
    return user


@contextlib.contextmanager
def _dev_fuse_mode(mode: int) -> Iterator[None]:
    """Give /dev/fuse a mode, and its own back. Sessions side by side take turns."""
    device = Path("/dev/fuse")
    lock = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = device.stat().st_mode & 0o7777
    device.chmod(mode)
    try:
        yield
    finally:
        device.chmod(before)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@pytest.fixture
def dev_fuse_for_all() -> Iterator[None]:
    """/dev/fuse readable and writable by everybody, as Debian's udev makes it, and back."""
    with _dev_fuse_mode(0o666):
        yield


@pytest.fixture
def dev_fuse_for_root() -> Iterator[None]:
    """/dev/fuse for root alone; fusermount3 opens it with its caller's rights, and fails too."""
    with _dev_fuse_mode(0o600):
        yield
