# SPDX-License-Identifier: Apache-2.0
"""How a contained mount ends, whoever ends it: what is said, with which exit code, what is left."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.broker.outcome import End, judge_exit
from penstock.cli.errors import ExitCode
from penstock.cli.failures import CODES
from penstock.sys.mountinfo import find_mount, mounts
from tests.support.commands import good, is_gone, penstock, refused, wait_for
from tests.support.contained import Contained, Ended, contained, odd
from tests.support.images import MIB, cached_image, make_tree, run, session_dir
from tests.support.memorycgroup import memory_cgroup

pytestmark = pytest.mark.requires("mke2fs")

SECONDS = 2.0
GONE = {errno.ENOTCONN, errno.ECONNABORTED}
"""What users of a mount get once nobody answers for it."""


@pytest.fixture(scope="module")
def image() -> Path:
    tree = session_dir() / "ends-tree"
    return cached_image(size=64 * MIB, tree=tree if tree.exists() else make_tree(tree, files=5))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mnt"


def line(image: Path, place: Path, text: str) -> str:
    """What the broker says of an end."""
    return f"penstock: {image} on {place}: {text}\n"


KILLED = "the server was killed (SIGKILL)"


# The end that is asked for


def test_umount(image: Path, place: Path) -> None:
    for command in (["umount"], [sys.executable, "-m", "penstock", "umount"]):
        with contained(image, place) as mount:
            run(*command, place)
            assert mount.wait(SECONDS) == (0, "")
            mount.assert_nothing_left()


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(image: Path, place: Path, number: signal.Signals, in_use: bool) -> None:
    with contained(image, place) as mount, contextlib.ExitStack() as stack:
        if in_use:
            user = os.open(place, os.O_RDONLY)
            stack.callback(os.close, user)
        mount.kill(mount.broker, number)
        code, said = mount.wait()
        assert code == 0
        assert said == (f"penstock: {place}: Device or resource busy; detaching it\n" * in_use)
        mount.assert_nothing_left()


def test_killed_server_of_a_mount_that_ends(image: Path, place: Path) -> None:
    """While the broker waits for the last users of a mount to leave, nobody waits for a server that
    does not answer any more."""
    with contained(image, place) as mount, contextlib.ExitStack() as stack:
        user = os.open(place, os.O_RDONLY)
        stack.callback(os.close, user)
        mount.kill(mount.broker, signal.SIGTERM)
        wait_for(lambda: find_mount(str(place)) is None, "unmount", SECONDS)
        begun = time.monotonic()
        mount.kill(mount.servers[0])
        with pytest.raises(OSError) as raised:
            os.stat("never asked", dir_fd=user)
        assert raised.value.errno in GONE
        assert time.monotonic() - begun < 0.5
        code, said = mount.wait(SECONDS)
        assert code == 137
        assert said.endswith(line(image, place, KILLED))
        mount.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_with_a_stopped_server(image: Path, place: Path, number: signal.Signals) -> None:
    with contained(image, place) as mount:
        mount.stop(mount.servers[0])
        mount.kill(mount.broker, number)
        assert mount.wait(SECONDS) == (0, "")
        mount.assert_nothing_left()


# Ends that a server brings about, in the order of judge_exit


class Fault(NamedTuple):
    """A server's end, and what is made of it."""

    flaw: str
    code: int
    text: str


SERVER_ENDS = [
    Fault("segv", 4, "the server crashed (SIGSEGV)"),
    # It may not signal itself, so the C library ends it by an instruction that faults.
    Fault("abort", 4, "the server crashed (SIGSEGV)"),
    Fault(
        "sandbox", 4,
        "the server was ended by its sandbox: it made a system call that it may not make",
    ),
    Fault("exit", 2, "the server ended with exit code 3"),
    Fault("unknown", 4, "the server broke the broker's protocol: a message of unknown kind 999"),
    Fault("raw", 4, "the server broke the broker's protocol: LOG: text is no line"),
    Fault("all memory", 71, "the server has used up the memory that it may have"),
]  # fmt: skip


@pytest.mark.parametrize("fault", SERVER_ENDS, ids=lambda fault: fault.flaw)
def test_server_that_fails(image: Path, place: Path, fault: Fault) -> None:
    with contained(image, place, program=odd("lookup")) as mount:
        with pytest.raises(OSError) as raised:
            os.stat(place / f"!{fault.flaw}")
        # Who breaks the protocol may still have time for its answer.
        assert raised.value.errno in {*GONE, errno.ENOENT}
        ended = mount.wait(SECONDS)
        assert ended == (fault.code, line(image, place, fault.text))
        mount.assert_nothing_left()


FAILURES = [
    *(fault for fault in SERVER_ENDS if fault.flaw != "all memory"),
    Fault("hangup", 4, "the server closed its socket and lived on"),
    Fault("memory", 71, "takes more memory than its server may have"),
    Fault(
        "error", 32,
        r"internal error: RuntimeError: a flaw: \x1b[2J\x1b]0;title\x07 \x00\x7f\x9b31m \u202e "
        r"\ud800 end",
    ),
    Fault("hang", 124, "the server has not judged the image within 1 s"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAILURES, ids=lambda fault: fault.flaw)
def test_server_that_fails_while_it_judges(image: Path, place: Path, fault: Fault) -> None:
    before = set(mounts())
    program = odd(f"open:{fault.flaw}", *(["_JUDGE_SECONDS=1"] if fault.flaw == "hang" else []))
    with contained(image, place, program=program) as mount:
        assert mount.wait() == (fault.code, f"penstock: {image}: {fault.text}\n")
        mount.assert_nothing_left()
    assert not {entry for entry in set(mounts()) - before if entry.mountpoint == str(place)}


def test_the_same_in_the_background(image: Path, place: Path) -> None:
    """The command that waits for its broker says it, and ends with the code."""
    place.mkdir()
    done = subprocess.run(
        [*odd("open:segv"), "mount", str(image), str(place)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"penstock: {image}: the server crashed (SIGSEGV)\n"
    assert find_mount(str(place)) is None


def test_server_that_does_not_start(image: Path, place: Path) -> None:
    for cue, code, text in (
        ("start:exit", 2, "the server ended with exit code 3"),
        ("start:hang", 124, "the server has not started within 1 s"),
    ):
        with contained(image, place, program=odd(cue, "_START_SECONDS=1")) as mount:
            assert mount.wait() == (code, f"penstock: {image}: {text}\n")
            mount.assert_nothing_left()


def test_judge_exit() -> None:
    """Each status that a server can leave, those too that cannot be brought about here."""
    for status, oom, end, text in (
        (-signal.SIGSEGV, False, End.CRASHED, "the server crashed (SIGSEGV)"),
        (-signal.SIGBUS, False, End.CRASHED, "the server crashed (SIGBUS)"),
        (-signal.SIGILL, False, End.CRASHED, "the server crashed (SIGILL)"),
        (-signal.SIGFPE, False, End.CRASHED, "the server crashed (SIGFPE)"),
        (-signal.SIGABRT, False, End.CRASHED, "the server crashed (SIGABRT)"),
        (-signal.SIGTRAP, False, End.CRASHED, "the server crashed (SIGTRAP)"),
        (-signal.SIGXCPU, False, End.CRASHED, "the server crashed (SIGXCPU)"),
        (-signal.SIGXFSZ, False, End.CRASHED, "the server crashed (SIGXFSZ)"),
        (-signal.SIGSEGV, True, End.CRASHED, "the server crashed (SIGSEGV)"),
        (-signal.SIGKILL, False, End.KILLED, KILLED),
        (-signal.SIGTERM, False, End.KILLED, "the server was killed (SIGTERM)"),
        (-40, False, End.KILLED, "the server was killed (signal 40)"),
        (0, False, End.ERROR, "the server ended with exit code 0"),
        (1, True, End.ERROR, "the server ended with exit code 1"),
        (71, False, End.OUT_OF_MEMORY, "the server has used up the memory that it may have"),
    ):
        assert judge_exit(status, oom) == (end, text)
    assert judge_exit(-signal.SIGKILL, True).end is End.OUT_OF_MEMORY
    assert judge_exit(-signal.SIGSYS, False).end is End.VIOLATION
    assert CODES == {
        End.CLEAN: 0,
        End.ERROR: 2,
        End.CRASHED: 4,
        End.VIOLATION: 4,
        End.OUT_OF_MEMORY: 71,
        End.HUNG: 124,
        End.KILLED: 137,
    }
    assert all(code.meaning for code in ExitCode)


def test_signals_do_not_reach_a_server(image: Path, place: Path) -> None:
    """It is the first process of its namespace: what it does not handle and is not SIGKILL or
    SIGSTOP is not delivered to it, whoever sends it. Nor is it in anybody's foreground: Ctrl-C
    is for the broker."""
    with contained(image, place) as mount:
        (server,) = mount.servers
        assert os.getsid(server) == os.getpgid(server) == server
        assert os.getsid(mount.keeper) == mount.keeper
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            mount.kill(mount.servers[0], number)
        assert (place / "size59").stat().st_size == 59
        good("umount", place)
        assert mount.wait() == (0, "")
        mount.assert_nothing_left()


# Memory


def test_a_request_that_takes_too_much_memory(image: Path, place: Path) -> None:
    """It fails alone; the server says so in the log."""
    with contained(image, place, program=odd("lookup")) as mount:
        with pytest.raises(OSError) as raised:
            os.stat(place / "!memory")
        assert raised.value.errno == errno.EIO
        with pytest.raises(FileNotFoundError):
            os.stat(place / "nothing")
        good("umount", place)
        code, said = mount.wait()
    assert code == 0
    assert said.startswith("penstock: server: LOOKUP ")
    assert said.endswith(" failed: MemoryError: \n")
    assert said.count("\n") == 1


@pytest.mark.requires("memory-cgroup")
def test_kernel_without_memory(image: Path, place: Path) -> None:
    """The kernel kills the server, and the broker knows why."""
    with memory_cgroup(48 * MIB) as cgroup, contained(image, place, program=odd("lookup")) as mount:
        cgroup.take_in(mount.servers[0])
        with pytest.raises(OSError) as raised:
            os.stat(place / "!memory")
        assert raised.value.errno in GONE
        text = "the server was killed by the kernel, which was out of memory"
        assert mount.wait(SECONDS) == (71, line(image, place, text))
        mount.assert_nothing_left()


# Ends that others bring about


def test_killed_server(image: Path, place: Path) -> None:
    """Whoever waits for it, or asks afterwards, has an error at once."""
    with contained(image, place) as mount, waiting(mount) as user:
        mount.kill(mount.servers[0])
        begun = time.monotonic()
        assert mount.wait(SECONDS) == (137, line(image, place, KILLED))
        assert user.wait(SECONDS) in GONE
        mount.assert_nothing_left()
        assert time.monotonic() - begun < SECONDS


@contextlib.contextmanager
def waiting(mount: Contained) -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits for the answer of a server, which is stopped; it ends with the errno
    that it gets."""
    script = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
    for server in mount.servers:
        mount.stop(server)
    process = subprocess.Popen([sys.executable, "-c", script, mount.mountpoint / "never asked"])
    try:
        wait_for(
            lambda: "request_wait" in Path(f"/proc/{process.pid}/wchan").read_text(), "request"
        )
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("crash", ["umount", "keep"])
@pytest.mark.parametrize("who", ["server", "broker", "server then broker", "broker then server"])
def test_whoever_is_killed(image: Path, place: Path, who: str, crash: str) -> None:
    """Within two seconds nothing is left; with ``crash=keep`` a mount that answers ENOTCONN, and
    its record."""
    with contained(image, place, f"crash={crash}") as mount, waiting(mount) as user:
        begun = time.monotonic()
        for word in who.split(" then "):
            mount.kill(mount.broker if word == "broker" else mount.servers[0])
        code, said = mount.wait(SECONDS)
        if who == "server":
            assert (code, said) == (137, line(image, place, KILLED))
        else:
            assert code in {-signal.SIGKILL, 137}
        assert user.wait(SECONDS) in GONE
        if crash == "umount":
            mount.assert_nothing_left()
        else:
            mount.wait_all_ended(SECONDS)
            with pytest.raises(OSError) as raised:
                os.listdir(place)
            assert raised.value.errno in GONE
            assert [row["state"] for row in mount.listed()] == ["stale"]
        assert time.monotonic() - begun < SECONDS + 1
        if crash == "keep":
            good("umount", place)
        mount.assert_nothing_left()


def test_killed_keeper(image: Path, place: Path) -> None:
    """Without it, everything else is as usual; only a killed broker then leaves its mount."""
    for number in (signal.SIGTERM, None):
        with contained(image, place) as mount:
            mount.kill(mount.keeper)
            wait_for(lambda: mount.ended(mount.keeper), "end of the keeper")
            assert (place / "size59").stat().st_size == 59
            if number is None:
                good("umount", place)
            else:
                mount.kill(mount.broker, number)
            assert mount.wait(SECONDS) == (0, "")
            mount.assert_nothing_left()


DYING = """
import os, signal, sys
from penstock.broker.keeper import Keeper
keeper = Keeper.start()
keeper.watch(mount_id=0, mountpoint=sys.argv[1], connection=int(sys.argv[2]), files=sys.argv[3:])
print(keeper.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_it_mounts(image: Path, place: Path, tmp_path: Path) -> None:
    """The number of its connection is another mount's at once. That one is left alone, and the
    files of the one that was killed go."""
    files = [tmp_path / name for name in ("1-1.json", "1-1.sock", ".1-1.new")]
    for file in files:
        file.touch()
    nowhere = tmp_path / "nowhere"
    with contained(image, place) as mount:
        number = str(mount.statistics()["connection"])
        command = [sys.executable, "-c", DYING, str(nowhere), number, *map(str, files)]
        dying = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=20)
        assert dying.returncode == -signal.SIGKILL
        wait_for(lambda: is_gone(int(dying.stdout)), "end of the keeper", SECONDS)
        assert not any(file.exists() for file in files)
        assert (place / "size59").stat().st_size == 59
        good("umount", place)
        assert mount.wait() == (0, "")


def test_aborted_connection(image: Path, place: Path, tmp_path: Path) -> None:
    """By an administrator, in fusectl."""
    control = tmp_path / "control"
    control.mkdir()
    run("mount", "-t", "fusectl", "none", control)
    try:
        with contained(image, place) as mount, waiting(mount) as user:
            number = mount.statistics()["connection"]
            (control / str(number) / "abort").write_text("1")
            text = "somebody has aborted the connection"
            assert mount.wait(SECONDS) == (2, line(image, place, text))
            assert user.wait(SECONDS) in GONE
            mount.assert_nothing_left()
    finally:
        run("umount", control)


def test_abort_by_penstock_is_no_error(image: Path, place: Path) -> None:
    with contained(image, place) as mount, waiting(mount) as user:
        good("umount", "--abort", place)
        assert mount.wait(SECONDS) == (0, "")
        assert user.wait(SECONDS) in GONE
        mount.assert_nothing_left()


# Several servers


def test_several_servers(image: Path, place: Path) -> None:
    """Processes that read at the same time get right answers, whichever server has the request; and
    if one is killed, the mount ends with all of them."""
    script = (
        "import hashlib, os, sys\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    path = sys.argv[1] + '/' + name\n"
        "    if name.startswith('size'):\n"
        "        with open(path, 'rb') as file:\n"
        "            print(name, hashlib.sha256(file.read()).hexdigest())\n"
    )
    command = [sys.executable, "-c", script]
    with contained(image, place, "processes=3,sandbox=strict") as mount:
        assert len(mount.servers) == 3
        expected = run(*command, session_dir() / "ends-tree")
        assert expected.count("\n") == 15
        readers = [
            subprocess.Popen([*command, place], stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        assert [reader.communicate(timeout=30)[0] for reader in readers] == [expected] * 4
        statistics = mount.statistics()
        rows = statistics["servers"]
        assert sorted(row["pid"] for row in rows) == mount.servers
        assert all(row["answers"] for row in rows)
        assert sum(statistics["opens"].values()) == 4 * 15
        assert statistics["opens"]["lens"] > 0
        mount.kill(mount.servers[1])
        assert mount.wait(SECONDS) == (137, line(image, place, KILLED))
        mount.assert_nothing_left()


def test_each_of_several_servers_answers(image: Path, place: Path) -> None:
    """Also with all others stopped; and their statistics add up."""
    with contained(image, place, "processes=3") as mount:
        before = mount.statistics()["requests"].get("LOOKUP", {"count": 0})
        for server in mount.servers:
            others = [pid for pid in mount.servers if pid != server]
            for pid in others:
                mount.stop(pid)
            with pytest.raises(FileNotFoundError):
                os.stat(place / f"nothing {server}")
            for pid in others:
                mount.kill(pid, signal.SIGCONT)
        after = mount.statistics()["requests"]["LOOKUP"]
        assert after["count"] - before["count"] == 3
        good("umount", place)
        assert mount.wait() == (0, "")
        mount.assert_nothing_left()


# What a server says


def test_no_escape_of_a_server_reaches_a_terminal(image: Path, place: Path) -> None:
    """Its log lines, its reasons and its exceptions are shown with escapes written out."""
    with contained(image, place, program=odd("lookup")) as mount:
        for flaw, number in (("escapes", errno.ENOENT), ("error", errno.EIO)):
            with pytest.raises(OSError) as raised:
                os.stat(place / f"!{flaw}")
            assert raised.value.errno == number
        good("umount", place)
        code, said = mount.wait()
    assert code == 0
    assert all(character.isprintable() or character == "\n" for character in said)
    lines = said.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(r"penstock: server: before \x1b[2J\x1b]0;title\x07 \r\n\x00\x7f\x9b")
    assert lines[0].endswith(r"31m \u202e \ud800 end")
    assert max(map(len, lines)) < 2100
    assert r"failed: RuntimeError: a flaw: \x1b[2J" in lines[2]


# Answers that do not come


@pytest.fixture(scope="module", autouse=True)
def hanging(
    request: pytest.FixtureRequest, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Contained, subprocess.Popen[bytes]] | None]:
    """A mount whose server was stopped when this module began: the kernel takes its time."""
    if not any(item.name == test_deadline_of_requests.__name__ for item in request.session.items):
        yield None
        return
    place = tmp_path_factory.mktemp("hanging") / "mnt"
    with contained(image, place, "request_timeout=15") as mount, waiting(mount) as user:
        yield mount, user


@pytest.mark.timeout(90)
def test_deadline_of_requests(
    image: Path, hanging: tuple[Contained, subprocess.Popen[bytes]]
) -> None:
    """The kernel ends the connection, whoever waits gets an error, and the broker says why. It
    looks at its requests every 15 s, and none may be older than that then."""
    mount, user = hanging
    text = "the server did not answer a request within 15 s"
    assert mount.wait(60) == Ended(124, line(image, mount.mountpoint, text))
    assert user.wait(SECONDS) in GONE
    mount.assert_nothing_left()


def test_a_deadline_is_in_the_handshake(image: Path, place: Path) -> None:
    """And one that cannot be kept is refused."""
    flag = "REQUEST_TIMEOUT"
    for options, there in (("request_timeout=15", True), ("request_timeout=0", False), ("", False)):
        with contained(image, place, options) as mount:
            assert (flag in mount.statistics()["protocol"]["flags"]) == there
    place.mkdir(exist_ok=True)
    text = "-o request_timeout=14: is neither 0 nor in 15 to 65535"
    assert refused("mount", "-o", "request_timeout=14", image, place) == (1, text)
    assert find_mount(str(place)) is None


def test_a_server_that_answers_in_time(image: Path, place: Path) -> None:
    """A request_timeout does no harm to it."""
    with contained(image, place, "request_timeout=15") as mount:
        assert (place / "size59").stat().st_size == 59
        good("umount", place)
        assert mount.wait() == (0, "")


# Flags of the mount


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ("", {"ro", "nosuid", "nodev"}),
        ("suid,dev", {"ro"}),
        ("suid", {"ro", "nodev"}),
        ("dev", {"ro", "nosuid"}),
        ("noexec,nosymfollow", {"ro", "nosuid", "nodev", "noexec", "nosymfollow"}),
    ],
)
def test_flags(image: Path, place: Path, options: str, flags: set[str]) -> None:
    """Set-ID bits and device nodes of an image are nothing, unless root says otherwise."""
    with contained(image, place, options) as mount:
        entry = find_mount(str(place))
        assert entry is not None
        assert set(entry.options.split(",")) - {"relatime"} == flags
        assert "ro" in entry.super_options.split(",")
        null = place / "null"
        if "nodev" in flags:
            with pytest.raises(PermissionError):
                null.open("rb")
        else:
            with null.open("rb") as device:
                assert device.read() == b""
        with pytest.raises(OSError) as raised:
            (place / "new").touch()
        assert raised.value.errno == errno.EROFS
        mount.kill(mount.broker, signal.SIGTERM)
        assert mount.wait() == (0, "")


def test_help_lists_the_codes() -> None:
    shown = penstock("help").stdout
    for code in CODES.values():
        assert re.search(rf"^  {int(code)} +{re.escape(code.meaning)}$", shown, re.MULTILINE)
