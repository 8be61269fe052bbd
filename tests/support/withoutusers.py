# SPDX-License-Identifier: Apache-2.0
"""A place where nobody may make user namespaces, without changing the machine.

The setting (user.max_user_namespaces) is per user namespace, so it is made in one of its own, which
has all the ids that the machine has. ``python -m tests.support.withoutusers USER GROUP WORDS``
executes WORDS there, as USER; mounts are its own as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from penstock.abi.process import CloneFlag
from penstock.sys.spawn import IdMap, spawn
from tests.support.requirements import PROJECT

__all__ = ["without_user_namespaces"]

_IDS = [IdMap(0, 0, 65536)]

_INSIDE = r"""
import os, sys
with open("/proc/sys/user/max_user_namespaces", "w") as setting:
    setting.write("0")
user, group = map(int, sys.argv[1:3])
os.setgroups([])
os.setgid(group)
os.setuid(user)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def without_user_namespaces(
    user: int, group: int, words: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command there.

    Args:
        user: whose rights it has; 0 has all rights over what is inside.
        group: the same.
        words: the command.
        environment: the whole environment.
    """
    return subprocess.run(
        [sys.executable, "-m", "tests.support.withoutusers", str(user), str(group), *words],
        cwd=PROJECT,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def main() -> None:
    """End as the command ends."""
    started = spawn(
        [sys.executable, "-c", _INSIDE, *sys.argv[1:]],
        fds=[0, 1, 2],
        environment=os.environ,
        namespaces=CloneFlag.NEWUSER | CloneFlag.NEWNS,
        users=_IDS,
        groups=_IDS,
    )
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]))


if __name__ == "__main__":
    main()
