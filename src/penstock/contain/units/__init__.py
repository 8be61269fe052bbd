# SPDX-License-Identifier: Apache-2.0
"""Templates of systemd units and of tmpfiles.d, as package data.

``penstock install-system`` fills the words between ``@`` in and puts them in place. Packagers can
do the same: ``@PENSTOCK@`` is the command, ``@EXECPATHS@`` what may be executed to run it, and
``@SOCKETS@`` one ``ListenSequentialPacket=`` line for each name of the service.
"""

__all__: list[str] = []
