# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this user can do: the trials behind ``penstock doctor``.

``base.py`` has what they share, ``connection.py`` a FUSE connection that is never mounted,
``trialmount.py`` one that is, ``fuse.py`` the features of FUSE, ``datapaths.py`` the ways of file
data, with ``lens.py`` for one of them, ``filesystems.py`` features of other filesystems,
``handles.py`` what serving a directory needs, ``containment.py`` what a sandbox needs,
``sandbox.py`` the sandbox itself. Each function returns findings; none hangs or leaves anything
behind.
"""

from penstock.cli.probes.base import Finding
from penstock.cli.probes.connection import try_connection
from penstock.cli.probes.containment import containment_findings
from penstock.cli.probes.datapaths import datapath_findings
from penstock.cli.probes.filesystems import filesystem_findings
from penstock.cli.probes.fuse import fuse_findings
from penstock.cli.probes.handles import handle_findings
from penstock.cli.probes.sandbox import sandbox_findings

__all__ = ["Finding", "all_findings"]


def all_findings() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    connection, how = try_connection()
    offer = connection.value if isinstance(connection.value, dict) else {}
    return [
        *fuse_findings(connection, offer, how),
        *datapath_findings(offer, how),
        *handle_findings(),
        *filesystem_findings(),
        *containment_findings(),
        *sandbox_findings(),
    ]
