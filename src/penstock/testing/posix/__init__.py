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
lists what some cases need and not every filesystem has, :func:`probe` finds out which of it is
absent. Subjects are the modules of this package. :data:`READ_CASES` are for filesystems that cannot
be written to: they look at a tree that :func:`prepare` has made where one can.

From the command line: ``python -m penstock.testing.posix DIR``.
"""

from penstock.testing.posix import (  # each module registers its cases
    acls,
    appending,
    attributes,
    copying,
    crowds,
    direct,
    directories,
    errnos,
    files,
    handles,
    holes,
    limits,
    linking,
    locking,
    mappings,
    names,
    permissions,
    programs,
    ranges,
    reading,
    refusing,
    renames,
    seeing,
    sharing,
    times,
    truncating,
    waiting,
    watching,
    xattrs,
)
from penstock.testing.posix.needs import NEEDS
from penstock.testing.posix.peer import Peer
from penstock.testing.posix.probe import probe
from penstock.testing.posix.registry import CASES as _CASES
from penstock.testing.posix.registry import READ_CASES as _READ_CASES
from penstock.testing.posix.registry import (
    Case,
    Outcome,
    case,
    equal,
    fails,
    holds,
    outcomes,
    read_case,
    run,
)
from penstock.testing.posix.tree import absent_of, prepare

CASES: tuple[Case, ...] = tuple(_CASES)
"""All cases that write."""

READ_CASES: tuple[Case, ...] = tuple(_READ_CASES)
"""All cases of the read-only half."""

__all__ = [
    "CASES",
    "NEEDS",
    "READ_CASES",
    "Case",
    "Outcome",
    "Peer",
    "absent_of",
    "acls",
    "appending",
    "attributes",
    "case",
    "copying",
    "crowds",
    "direct",
    "directories",
    "equal",
    "errnos",
    "fails",
    "files",
    "handles",
    "holds",
    "holes",
    "limits",
    "linking",
    "locking",
    "mappings",
    "names",
    "outcomes",
    "permissions",
    "prepare",
    "probe",
    "programs",
    "ranges",
    "read_case",
    "reading",
    "refusing",
    "renames",
    "run",
    "seeing",
    "sharing",
    "times",
    "truncating",
    "waiting",
    "watching",
    "xattrs",
]
