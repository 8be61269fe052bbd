# SPDX-License-Identifier: Apache-2.0
"""Programs that are run from the filesystem."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

from penstock.testing.posix.calls import opened
from penstock.testing.posix.registry import case, equal, fails, holds

USER = 65534


def _script(root: Path, mode: int = 0o755) -> Path:
    path = root / "script"
    path.write_text("#!/bin/sh\necho it runs\n", encoding="ascii")
    path.chmod(mode)
    return path


def _program(root: Path, name: str = "cat") -> Path:
    """A copy of a program of the system."""
    path = root / name
    shutil.copyfile(shutil.which(name) or f"/bin/{name}", path)
    path.chmod(0o755)
    return path


def _run(*words: Path | str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}"


@case("exec")
def executing_needs_permission(root: Path) -> None:
    """A file without any execute permission is EACCES to run, by root too."""
    fails(errno.EACCES, _run, _script(root, 0o644))
    equal(_run(_script(root, 0o500)), "0 it runs\n")


@case("exec")
def binary_runs(root: Path) -> None:
    """A copy of a program runs."""
    (root / "text").write_text("through cat\n", encoding="ascii")
    equal(_run(_program(root), root / "text"), "0 through cat\n")


@case("exec")
def running_program_is_not_written(root: Path) -> None:
    """A program that runs is ETXTBSY to open for writing and to truncate; it can be removed and
    renamed over."""
    path = _program(root)
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Once it has answered, it has been executed.
        process.stdin.write(b"here\n")
        process.stdin.flush()
        equal(process.stdout.readline(), b"here\n")
        fails(errno.ETXTBSY, os.open, path, os.O_WRONLY)
        fails(errno.ETXTBSY, os.truncate, path, 0)
        (root / "new").write_bytes(b"new")
        os.rename(root / "new", path)
        equal(path.read_bytes(), b"new")
        process.stdin.write(b"still\n")
        process.stdin.flush()
        equal(process.stdout.readline(), b"still\n")
        process.stdin.close()


@case("exec")
def written_file_is_not_run(root: Path) -> None:
    """A program that is open for writing is ETXTBSY to run."""
    path = _program(root)
    with opened(path, os.O_WRONLY):
        fails(errno.ETXTBSY, _run, path)
    (root / "text").write_text("text", encoding="ascii")
    equal(_run(path, root / "text"), "0 text")


@case("exec")
def directories_are_not_run(root: Path) -> None:
    """A directory is EACCES to run, an empty file ENOEXEC."""
    (root / "directory").mkdir()
    fails(errno.EACCES, _run, root / "directory")
    (root / "empty").touch(mode=0o755)
    fails(errno.ENOEXEC, os.execv, root / "empty", ["empty"])


@case("exec", "suid", "others")
def set_user_id_programs(root: Path) -> None:
    """A set-user-ID program runs with the rights of its owner."""
    root.chmod(0o755)
    path = _program(root, "id")
    os.chown(path, 12345, 23456)
    path.chmod(0o6755)
    done = subprocess.run(
        [path, "-u"], user=USER, group=USER, extra_groups=[], capture_output=True, check=True
    )
    equal(done.stdout, b"12345\n")
    holds(os.stat(path).st_mode & stat.S_ISUID, "the bit stays")
