# SPDX-License-Identifier: Apache-2.0
"""Which types of servers there are, and the words of each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from penstock.servers.base import Server, ServerOption

__all__ = ["IMAGE_TYPES", "TYPES", "open_server", "server_options"]

IMAGE_TYPES: Final = ("ext4",)
"""What an image may hold; ext2 and ext3 images are ext4's."""
TYPES: Final = (*IMAGE_TYPES, "mirror")
"""The words that ``-t`` takes."""


def server_options(type: str) -> tuple[ServerOption, ...]:
    """The ``-o`` words of a type (one of :data:`TYPES`)."""
    module = import_module(f"penstock.servers.{type}.options")  # loaded when needed
    options: tuple[ServerOption, ...] = module.OPTIONS
    return options


def open_server(
    fd: int, type: str | None = None, options: Mapping[str, str] = {}, *, size: int | None = None
) -> Server:
    """Open the filesystem in an image.

    Args:
        fd: the image, open for reading; must stay open as long as the server lives.
        type: ``ext4`` (or ``ext2``, ``ext3``); None = found out.
        options: the server's ``-o`` words; those without value have an empty one.
        size: bytes of the image; None = asked of the descriptor.

    Raises:
        UnknownImage: no server is there for what the image is.
        FormatError: the image is damaged or needs a feature that is not there.
        ValueError: an option is wrong.
        OSError: the image cannot be read.
    """
    from penstock.servers.images import open_image  # noqa: PLC0415 - not for directories

    return open_image(fd, type, options, size=size)
