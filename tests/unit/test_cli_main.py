# SPDX-License-Identifier: Apache-2.0
"""The program: exit codes, one line per failure, what is imported; texts and targets."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._version import __version__
from penstock.cli import text
from penstock.cli.errors import ExitCode, Failure, explain
from penstock.cli.images import Target, open_source, targets
from penstock.cli.logs import configure_logging, log_to_syslog
from penstock.cli.main import main

COMMANDS = ["mount", "umount", "list", "clean", "stats", "info", "ls", "cat", "cp", "doctor"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"penstock {__version__}\n", "")
    assert run(capsys, "-V")[1] == f"penstock {__version__}\n"
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert err == run(capsys, "--help")[1]
    for words in (["-h"], ["--help"], ["help"]):
        code, out, err = run(capsys, *words)
        assert (code, err) == (0, "")
        for name in COMMANDS:
            assert f"  {name}" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_commands(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: penstock {name}")
    assert run(capsys, "help", name) == (0, out, "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bogus"], 1, "bogus: no such command"),
        (["--bogus"], 1, "--bogus: no such option"),
        (["mount"], 1, "the following arguments are required: SOURCE, MOUNTPOINT"),
        (["mount", "/dev/null", "/tmp", "-o", "workers=x"], 1, "workers=x: is not a number"),
        (["ls", "/nowhere.img"], 2, "/nowhere.img: no such file or directory"),
        (["cat", "/nowhere.img"], 1, "/nowhere.img: which file of it?"),
        (["help", "bogus"], 1, "bogus: no such command"),
        (["ls", "/x", "-p", "2", "-o", "partition=3"], 1, "=3 contradict each other"),
        (["mount", "/x", "/y", "-p2", "-opartition=3"], 1, "=3 contradict each other"),
        (["mount", "/dev/null", "/"], 32, "/dev/null: is neither"),
        (["info", "/dev/null"], 2, "/dev/null: is neither a regular file nor a block device"),
        (["info", "/tmp"], 2, "/tmp: is a directory, not a disk image"),
        (["info", "a\0b"], 1, "null"),
        (["umount", "/nowhere"], 32, "/nowhere: no such mount point"),
        (["umount", "/tmp/.."], 32, "is mounted, but not by penstock"),
        (["umount", "/proc"], 32, "/proc: is mounted, but not by penstock (proc)"),
        (["stats", "/nowhere"], 2, "/nowhere: no such mount point"),
        (["umount", ""], 1, "is no path"),
        (["cp", "/dev/null", "/tmp", "--preserve=some"], 1, "is none of default, all, none"),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert err.startswith("penstock: ")
    assert message in err
    assert err.count("\n") == 1


def raising(error: BaseException) -> Any:
    def run_it(_: argparse.Namespace) -> int:
        raise error

    return run_it


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Failure("a\nb\x1b[31m", ExitCode.MOUNT), 32, "penstock: a\\x0ab\\x1b[31m\n"),
        (OSError(5, "Input/output error", "/x"), 2, "penstock: /x: Input/output error\n"),
        (ValueError("odd"), 2, "penstock: odd\n"),
        (KeyError("x"), 2, "internal error: KeyError: 'x' (PENSTOCK_TRACEBACK=1 shows where)\n"),
        (RecursionError(), 2, "penstock: nested too deeply\n"),
        (MemoryError(), 2, "penstock: out of memory\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_whatever_a_command_raises(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("penstock.cli.commands.list.run", raising(error))
    got, _, err = run(capsys, "list")
    assert got == code
    assert err.endswith(message)


def penstock(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", *words], capture_output=True, check=False, **options
    )


def test_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "--help"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams(tmp_path: Path) -> None:
    """Without any standard stream the exit code still tells."""
    command = f"exec {sys.executable} -m penstock info {tmp_path} >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2


def shell(script: str, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the program and what is given."""
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "penstock", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "words",
    ["list", "ls x", "cat x", "info x", "stats /", "doctor", "--help", "--version", "mount --help"],
)
def test_closed_output_is_named(words: str) -> None:
    done = shell('exec "$@" >&-', *words.split())
    assert (done.returncode, done.stderr) == (2, "penstock: standard output is closed\n")


def test_errors_never_go_to_the_output(tmp_path: Path) -> None:
    for words in (["info", "/nowhere"], ["umount", "/nowhere"], ["cp", "/nowhere", tmp_path]):
        done = shell('exec "$@" 2>&-', *words)
        assert done.returncode in {2, 32}
        assert done.stdout == ""


def test_nothing_opened_gets_the_number_of_a_stream() -> None:
    script = (
        "import os, sys; from penstock.cli.streams import open_streams; open_streams();"
        "fd = os.open('/', os.O_RDONLY); os._exit(fd if sys.stdout and sys.stderr else 99)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(command, check=False).returncode == 3


@pytest.mark.parametrize("words", [["umount", "m"], ["stats", "m"], ["mount", "doc.img", "m"]])
def test_deleted_working_directory(tmp_path: Path, words: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell('cd "$0"; rmdir "$0"; exec "$@"'.replace("$0", str(gone)), *words)
    named = "doc.img" if words[0] == "mount" else "m"
    assert done.returncode == (2 if words[0] == "stats" else 32)
    assert done.stderr == f"penstock: {named}: no such file or directory\n"


SLOW = {"rich", "asyncio", "typing_extensions", "email", "http", "urllib.request", "hypothesis"}


@pytest.mark.parametrize("name", ["mount", "umount", "list", "stats"])
def test_quick_commands_import_nothing_slow(name: str) -> None:
    script = (
        f"import sys, importlib; importlib.import_module('penstock.cli.commands.{name}');"
        "import penstock.cli.main, penstock.cli.options, penstock.cli.parser;"
        "print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert not SLOW & set(done.stdout.decode().split())


def test_mount_starts_quickly() -> None:
    """What comes before the work of mounting takes at most 60 ms of CPU more than Python alone."""

    def cpu(code: str) -> float:
        script = f"import time; {code}\nprint(time.process_time())"
        runs = [
            subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
            for _ in range(3)
        ]
        return min(float(done.stdout) for done in runs)

    start = (
        "from penstock.cli.main import main; from penstock.cli.options import COMMANDS;"
        "from penstock.cli.parser import parse_arguments;"
        "parse_arguments(COMMANDS[0], ['a', 'b']); import penstock.cli.commands.mount"
    )
    assert cpu(start) - cpu("") <= 0.060


# Texts


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("ünïcode-日本".encode(), "ünïcode-日本"),
        (b"a\nb\x1b[2J", "a\\x0ab\\x1b[2J"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("a\u202eb".encode(), "a\\u202eb"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"\x7f\xc2\x9b", "\\x7f\\x9b"),
    ],
)
def test_printable(raw: bytes, shown: str) -> None:
    assert text.printable(raw) == shown
    assert len(text.printable(raw, mark="?")) == len(os.fsdecode(raw))


@given(st.binary(max_size=60))
def test_nothing_that_acts_on_a_terminal_gets_through(raw: bytes) -> None:
    shown = text.printable(raw)
    assert "\x1b" not in shown
    assert all(c.isprintable() or c.isspace() for c in shown)
    assert "\n" not in shown
    shown.encode("utf-8")


def test_names_are_raw_in_pipes_and_marked_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.fsencode(text.raw_name(b"a\x1b\xff")) == b"a\x1b\xff"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert text.raw_name(b"a\x1b\xff") == "a??"


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(number: int, shown: str) -> None:
    assert text.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds: int, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_table(("A", "LONGER"), [("x\x1b", "1"), ("yy", "22")])
    assert capsys.readouterr().out == "A      LONGER\nx\\x1b  1\nyy     22\n"


def test_tables_on_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    text.print_table(("A", "B"), [("[red]x", "1\x1b]0;title\x07")], "Title")
    out = capsys.readouterr().out
    assert "[red]x" in out
    assert "1\\x1b]0;title\\x07" in out


def test_wide_tables_become_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    path = "/a/path" * 12
    text.print_table(("MOUNTPOINT", "PID"), [(path, "1"), ("/b", "2")])
    assert capsys.readouterr().out == (
        f"MOUNTPOINT  {path}\nPID         1\n\nMOUNTPOINT  /b\nPID         2\n"
    )


def test_json_survives_any_name() -> None:
    assert text.json_text({"name": os.fsdecode(b"\xff\x1b")}).isascii()


def test_explain() -> None:
    assert explain(OSError(2, os.strerror(2), "x")) == "no such file or directory"
    assert explain(OSError(2, "two\nlines")) == "two lines"
    assert explain(OSError("bare")) == "bare"
    assert explain(ValueError()) == "ValueError"


def test_log_records_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("penstock")
    before = (list(logger.handlers), logger.propagate, logger.level)
    try:
        configure_logging()
        try:
            raise ValueError("a\nb")
        except ValueError:
            logging.getLogger("penstock.x").exception("went %s", "wrong\x1b")
        logging.getLogger("penstock.x").info("unseen")
        assert capsys.readouterr().err == "penstock: went wrong\\x1b: ValueError: a\\x0ab\n"
        configure_logging(debug=True)
        logging.getLogger("penstock.x").debug("seen")
        assert capsys.readouterr().err == "penstock: seen\n"
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])


def test_syslog(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    logger = logging.getLogger("penstock")
    before = list(logger.handlers)
    try:
        log_to_syslog(path)  # there is none
        assert logger.handlers == before
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(path)
            log_to_syslog(path)
            logging.getLogger("penstock.x").warning("inode %d\n", 7)
            assert sock.recv(4096) == f"<28>penstock[{os.getpid()}]: inode 7\\x0a".encode()
            logging.getLogger("penstock.x").error("bad", exc_info=ValueError("odd"))
            assert sock.recv(4096).endswith(b"]: bad: ValueError('odd')")
        logging.getLogger("penstock.x").warning("lost")  # and nothing is raised
    finally:
        for handler in logger.handlers[len(before) :]:
            handler.close()
        logger.handlers[:] = before


# Targets


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.img", "b.img", "with:colon.img"):
        Path(name).touch()

    def named(*words: str) -> list[tuple[str, str | None]]:
        return [tuple(target) for target in targets(list(words))]  # type: ignore[misc]

    assert named("a.img") == [("a.img", None)]
    assert named("a.img:/x") == [("a.img", "/x")]
    assert named("a.img:") == [("a.img", "")]
    assert named("a.img:/x:y") == [("a.img", "/x:y")]
    assert named("a.img", "/x", "y:z") == [("a.img", "/x"), ("a.img", "y:z")]
    assert named("a.img:/x", "/y", "b.img:/z") == [
        ("a.img", "/x"),
        ("a.img", "/y"),
        ("b.img", "/z"),
    ]
    assert named("a.img", "b.img:/z") == [("a.img", None), ("b.img", "/z")]
    assert named("with:colon.img") == [("with:colon.img", None)]
    assert named("with:colon.img:/x") == [("with:colon.img", "/x")]
    assert named("a.img", "/etc/passwd") == [("a.img", "/etc/passwd")]  # in the image, not here
    assert named("none.img:/x") == [("none.img:/x", None)]
    assert [target.name for target in (Target("a", None), Target("a", "/b"))] == ["a", "a:/b"]


@pytest.mark.parametrize("what", ["directory", "terminal", "device"])
def test_a_source_that_is_exchanged(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is not what is opened."""
    image, other = tmp_path / "image", tmp_path / "other"
    image.write_bytes(b"x")
    expected = {"directory": "is a directory", "terminal": "neither", "device": "was exchanged"}
    real = os.open
    fstat = os.fstat

    def late(path: str, flags: int) -> int:
        if what == "directory":
            other.mkdir()
            return real(other, flags)
        return real("/dev/null" if what == "terminal" else path, flags)

    def as_a_device(fd: int) -> os.stat_result:
        return os.stat_result((stat.S_IFBLK | 0o600, *fstat(fd)[1:]))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", late)
    if what == "device":
        monkeypatch.setattr(os, "fstat", as_a_device)
    with pytest.raises(Failure, match=expected[what]):
        open_source(str(image))
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before


def test_open_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Failure, match="neither a regular file"):
        open_source(str(tmp_path / "fifo"))  # and does not wait for a writer
    image = tmp_path / "image"
    image.write_bytes(b"x")
    image.chmod(0o444)
    (tmp_path / "link").symlink_to(image)
    fd = open_source(str(tmp_path / "link"))
    try:
        assert os.read(fd, 2) == b"x"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"y")
    finally:
        os.close(fd)
