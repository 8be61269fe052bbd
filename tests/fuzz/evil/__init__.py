# SPDX-License-Identifier: Apache-2.0
"""The worst images that come to mind, made by hand, with right checksums.

Each function makes one; :data:`EVIL` has them by name. Those that would need a large disk make
their blocks when they are read.
"""

from tests.fuzz.evil import inodes, maps, names, whole
from tests.fuzz.evil.registry import EVIL, LARGE

__all__ = ["EVIL", "LARGE", "inodes", "maps", "names", "whole"]
