# SPDX-License-Identifier: Apache-2.0
"""On-disk formats over a :class:`BlockSource`. Nothing here knows of FUSE; nothing writes an image.

``source.py`` is where readers get bytes from, ``errors.py`` what they may raise, ``detect.py`` says
what an image is. Each format is a package: ``ext4``, ``partition``.
"""

from penstock.formats.errors import BadChecksum, CorruptImage, FormatError, UnsupportedFeature
from penstock.formats.source import BlockSource, FileSource

__all__ = [
    "BadChecksum",
    "BlockSource",
    "CorruptImage",
    "FileSource",
    "FormatError",
    "UnsupportedFeature",
]
