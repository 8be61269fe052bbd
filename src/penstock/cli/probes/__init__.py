# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this user can do: the trials behind ``penstock doctor``.

``base.py`` has what they share, ``connection.py`` a FUSE connection that is never mounted,
``fuse.py`` the features of FUSE, ``filesystems.py`` those of other filesystems, ``containment.py``
those that a sandbox needs, ``sandbox.py`` the sandbox itself. Each function
returns findings; none hangs or leaves anything behind.
"""

from penstock.cli.probes.base import Finding
from penstock.cli.probes.containment import containment_findings
from penstock.cli.probes.filesystems import filesystem_findings
from penstock.cli.probes.fuse import fuse_findings
from penstock.cli.probes.sandbox import sandbox_findings

__all__ = ["Finding", "all_findings"]


def all_findings() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    return [
        *fuse_findings(),
        *filesystem_findings(),
        *containment_findings(),
        *sandbox_findings(),
    ]
