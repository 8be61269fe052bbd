# SPDX-License-Identifier: Apache-2.0
"""The role of a server of images."""

from __future__ import annotations

from typing import Final

from penstock.broker.channel import Channel
from penstock.broker.protocol import Image, Message, Purpose
from penstock.contain.profile import IMAGE_SERVER
from penstock.contain.role import Role
from penstock.contain.streams import describe, serve_stream
from penstock.servers import Server, open_server
from penstock.servers.ext4.server import open_ext4
from penstock.servers.images import open_image

__all__ = ["IMAGES"]

_LOADED: Final = (open_image, open_ext4)
"""Servers are imported when they are first used; here that would be too late."""


def _words(image: Image) -> dict[str, str]:
    return {word.name: word.value for word in image.words}


def _open(message: Message, _tree: int | None) -> Server:
    image = message.body
    assert isinstance(image, Image)
    return open_server(message.fds[0], image.type or None, _words(image), size=image.size)


def _describe(channel: Channel, message: Message) -> None:
    image = message.body
    assert isinstance(image, Image)
    describe(channel, message.fds[0], image.size, image.type or None, _words(image))


IMAGES: Final = Role(IMAGE_SERVER, Image, _open, {Purpose.DESCRIBE: _describe}, serve_stream)
"""Parses an image that the broker sends."""
