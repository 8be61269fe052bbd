# SPDX-License-Identifier: Apache-2.0
"""What the broker has loaded: nothing that reads an image, from its start to its end.

It knows the layout of EROFS, of which it writes instances of its own, and reads none.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.sys.mountinfo import find_mount
from tests.support.commands import contained_servers_of, good
from tests.support.contained import contained
from tests.support.images import cached_image

pytestmark = pytest.mark.requires("mke2fs")

PROGRAM = (sys.executable, "-X", "importtime", "-m", "penstock")
PACKAGES = {"abi", "broker", "cli", "control", "fs", "negotiate", "sys"}
FACTS = {"", ".erofs", ".erofs.format", ".errors", ".layout", ".source"}
"""What it may load of ``penstock.formats``: numbers, structures, names of errors; no reader."""
PARSERS = {"formats", "servers", "session", "transport", "wire"}
OTHERS = {"crc32c", "rich", "lz4", "zstandard"}


def imports(said: str) -> set[str]:
    """The modules that ``-X importtime`` names."""
    return {
        match[1]
        for match in re.finditer(r"^import time: +\d+ \| +\d+ \| +(\S+)$", said, re.MULTILINE)
    }


def packages(modules: set[str]) -> set[str]:
    """The packages of penstock among them."""
    return {name.split(".")[1] for name in modules if name.startswith("penstock.")}


def assert_no_parser(modules: set[str]) -> None:
    """None of them reads what somebody else has written."""
    assert packages(modules) - {"_version", "__main__", "formats"} <= PACKAGES
    formats = {name for name in modules if name.startswith("penstock.formats")}
    assert {name.removeprefix("penstock.formats") for name in formats} <= FACTS
    assert {name.partition(".")[0] for name in modules} & OTHERS == set()


def loaded(options: str, tmp_path: Path, program: Sequence[str] = PROGRAM) -> set[str]:
    """What a mount in the foreground loads while it is used, asked and unmounted."""
    with contained(cached_image(), tmp_path / "mnt", options, program=program) as mount:
        assert os.listdir(mount.mountpoint) == ["lost+found"]
        statistics = good("stats", mount.mountpoint)
        assert "sandbox" in statistics
        assert mount.listed()
        good("umount", mount.mountpoint)
        ended = mount.wait()
        assert ended.code == 0
        return imports(ended.said)


@pytest.mark.parametrize("options", ["", "sandbox=strict,processes=2,request_timeout=60,workers=3"])
def test_broker_loads_no_parser(tmp_path: Path, options: str) -> None:
    modules = loaded(options, tmp_path)
    assert {"penstock.broker.mount", "penstock.broker.lens"} <= modules
    assert_no_parser(modules)


def test_broker_of_a_server_that_died(tmp_path: Path) -> None:
    """Nor does what it says of its end."""
    with contained(cached_image(), tmp_path / "mnt", program=PROGRAM) as mount:
        (server,) = contained_servers_of(mount.mountpoint)
        assert server in mount.servers
        mount.kill(server)
        ended = mount.wait()
    assert ended.code == 137
    assert "was killed" in ended.said
    modules = imports(ended.said)
    assert "penstock.cli.failures" in modules
    assert_no_parser(modules)


def test_a_mount_in_one_process_loads_them(tmp_path: Path) -> None:
    """So that the tests above look where there is something to be seen."""
    mountpoint = tmp_path / "mnt"
    modules = loaded("sandbox=no", tmp_path)
    assert packages(modules) >= PARSERS
    assert find_mount(str(mountpoint)) is None
