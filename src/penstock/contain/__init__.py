# SPDX-License-Identifier: Apache-2.0
"""Containment: the sandbox, and the program that runs inside it.

``server.py`` is that program: it imports everything, closes the sandbox (``sandbox.py``), and only
then sees an image, or what is in a directory. ``role.py`` says which of the two it is for
(``imageserver.py``, ``mirrorserver.py``), ``profile.py`` and ``mirrorprofile.py`` what is left to
it. ``reading.py`` starts one for reading an image without a mount.

Each is imported by who needs it, since most processes need but one.
"""

__all__: list[str] = []
