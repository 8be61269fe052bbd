# SPDX-License-Identifier: Apache-2.0
"""What a POSIX filesystem on Linux does, as cases to run on any mount.

Each case states one rule in its docstring and tries it in an empty directory; all of them hold on
tmpfs. Run them on your own filesystem, mounted by another process than the one that runs them::

    from pathlib import Path
    from penstock.testing import posix

    for outcome in posix.run(Path("/mnt/test"), posix.CASES, without={"acl"}):
        if outcome.error is not None:
            print(outcome.case.subject, outcome.case.name, outcome.error, sep=": ")

or as parameters of a test of your own: ``posix.CASES`` is a list of :class:`Case`. :data:`NEEDS`
lists what some cases need and not every filesystem has. Subjects are the modules of this package.
"""

from penstock.testing.posix import (  # each module registers its cases
    attributes,
    directories,
    files,
    holes,
    locking,
    mappings,
    names,
    renames,
    xattrs,
)
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.registry import CASES as _CASES
from penstock.testing.posix.registry import NEEDS, Case, Outcome, case, equal, fails, holds, run

CASES: tuple[Case, ...] = tuple(_CASES)
"""All cases."""

__all__ = [
    "CASES",
    "NEEDS",
    "Case",
    "Outcome",
    "Peer",
    "attributes",
    "case",
    "directories",
    "equal",
    "fails",
    "files",
    "holds",
    "holes",
    "locking",
    "mappings",
    "names",
    "renames",
    "run",
    "xattrs",
]
