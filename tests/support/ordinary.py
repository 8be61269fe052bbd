# SPDX-License-Identifier: Apache-2.0
"""Run commands as an ordinary user whose credentials are really gone.

Why not a helper such as setpriv: one that keeps capabilities until exec starts programs that an
ordinary user could not have started, and a test would then pass where a user fails. Here the
child process gives up its groups, group and user (setgroups, setgid, setuid: with them every
capability) and only then executes, with an environment of its own.

Where the clone is closed to others (a checkout in somebody's home), its sources and environment are
shown to the ordinary user through bind mounts at a place of the session's own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OrdinaryUser", "an_ordinary_user", "unreachable_part"]


def unreachable_part(path: Path) -> Path | None:
    """The first folder on the way to ``path`` whose mode keeps others out; None when none does."""
    for part in (*reversed(path.parents), path):
        if not part.stat().st_mode & 0o001:
            return part
    return None


@dataclass(frozen=True)
class OrdinaryUser:
    """An ordinary user, and how to run things as him.

    Attributes:
        uid, gid: who he is.
        home: a folder that he owns, reachable by everybody; put images and mount points there.
        root: the project as he sees it (the clone itself, or bind mounts of its parts).
        marker: environment variables that every process of the session carries.
    """

    uid: int
    gid: int
    home: Path
    root: Path
    marker: Mapping[str, str]

    @property
    def python(self) -> str:
        """This clone's interpreter, at a path that the user can execute."""
        return str(self.root / ".venv" / "bin" / "python")

    @property
    def penstock(self) -> tuple[str, ...]:
        """The words that start penstock's command line."""
        start = "import sys; from penstock.cli.main import main; sys.exit(main())"
        return (self.python, "-c", start)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What his processes have in their environment: little, and nothing of ours."""
        clean = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "USER": "nobody",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.root / "src"),
        }
        return {**clean, **self.marker, **(extra or {})}

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``command`` as the user; its output can be read from the result."""
        return subprocess.Popen(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            env=self.environment(env),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` as the user and wait, at most ``timeout`` seconds."""
        return subprocess.run(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            env=self.environment(env),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
        )

    def folder(self, name: str) -> Path:
        """A new folder of his, empty. ``name`` is made unique by the caller."""
        path = self.home / name
        path.mkdir(mode=0o755)
        os.chown(path, self.uid, self.gid)
        return path

    def copy(self, source: Path, name: str, mode: int = 0o644) -> Path:
        """A copy of ``source`` that he owns, with ``mode``."""
        path = self.home / name
        shutil.copyfile(source, path)
        os.chown(path, self.uid, self.gid)
        path.chmod(mode)
        return path


@contextlib.contextmanager
def an_ordinary_user(
    project: Path, place: Path, marker: Mapping[str, str]
) -> Iterator[OrdinaryUser]:
    """The user nobody with a home below ``place``; call as root.

    Args:
        project: this clone.
        place: the session's folder, reachable by everybody.
        marker: see :class:`OrdinaryUser`.
    """
    nobody = pwd.getpwnam("nobody")
    home = place / f"nobody-{os.getpid()}"
    home.mkdir(mode=0o755)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    if unreachable_part(project) is None:
        yield OrdinaryUser(nobody.pw_uid, nobody.pw_gid, home, project, marker)
        return
    root = place / f"project-{os.getpid()}"
    shown = [(project / name, root / name) for name in (".venv", "src")]
    with contextlib.ExitStack() as stack:
        for real, copy in shown:
            copy.mkdir(mode=0o755, parents=True)
            subprocess.run(["mount", "--bind", str(real), str(copy)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(copy)], check=True)
        yield OrdinaryUser(nobody.pw_uid, nobody.pw_gid, home, root, marker)
