# SPDX-License-Identifier: Apache-2.0
"""What a server says of an image as JSON: how it is made, and that nothing else is taken for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.broker.protocol import ProtocolError
from penstock.contain.description import LONGEST, parse_description
from penstock.formats import source
from penstock.servers import images, open_server
from penstock.servers.inspection import inspect_image
from tests.support.disks import gpt_disk
from tests.support.images import MIB, cached_image

ROW = {
    "number": 1, "start": 512, "size": 512, "type": "0x83", "type_name": "Linux", "name": "",
    "uuid": "", "holds": None, "label": None,
}  # fmt: skip
FULL: dict[str, Any] = {
    "size": 4096,
    "type": "ext4",
    "label": "l",
    "uuid": "u",
    "partitions": [ROW, {**ROW, "number": 2, "holds": "ext4", "label": "x"}],
    "partition": 2,
    "filesystem": {
        "type": "ext4",
        "warnings": ["one"],
        "size": 1,
        "free_bytes": 0,
        "features": ["a", "b"],
        "journal": {"state": "clean", "replayed": True, "inode": 8, "none": None},
    },
}


def test_what_is_taken() -> None:
    assert parse_description(json.dumps(FULL)) == FULL
    least = {"size": 0, "type": None, "label": "", "uuid": ""}
    assert parse_description(json.dumps(least)) == least


def changed(path: str, value: Any) -> dict[str, Any]:
    """The full description with another value at ``a.b.0``."""
    whole = copy.deepcopy(FULL)
    *way, last = path.split(".")
    here: Any = whole
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here[step]
    if isinstance(here, list):
        here[int(last)] = value
    else:
        here[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("size", "4096"), ("size", True), ("size", None), ("size", 1 << 64), ("type", 7),
        ("label", None), ("uuid", []), ("label", "x" * 5000), ("error", "why"), ("partition", "2"),
        ("partitions", {}), ("partitions", [[]]), ("partitions.0", {}), ("partitions.0.more", 1),
        ("partitions.1.size", "1"), ("partitions.1.holds", 4), ("partitions", [ROW] * 5000),
        ("filesystem", []), ("filesystem.type", None), ("filesystem.warnings", "one"),
        ("filesystem.warnings", [1]), ("filesystem.size", "large"), ("filesystem.free_bytes", [1]),
        ("filesystem.features", ["a", ["b"]]), ("filesystem.journal.state", {"deep": {}}),
        ("filesystem.features", ["a"] * 300), ("filesystem.\x1b[31m", 1), ("filesystem.Name", 1),
        ("filesystem.journal.\n", 1), ("filesystem.warnings", None), ("filesystem." + "x" * 65, 1),
    ],
)  # fmt: skip
def test_what_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ProtocolError):
        parse_description(json.dumps(changed(path, value)))


@pytest.mark.parametrize("name", ["size", "type", "label", "uuid", "filesystem.type"])
def test_what_must_be_there(name: str) -> None:
    whole = copy.deepcopy(FULL)
    *way, last = name.split(".")
    del (whole[way[0]] if way else whole)[last]
    with pytest.raises(ProtocolError):
        parse_description(json.dumps(whole))


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "7", '"text"', "{", "{}{}", "NaN", '{"size": Infinity}', '{"size": 1.0}',
        '{"size": ' + "9" * 5000 + "}", "[" * 200_000, '{"a":' * 50_000, " " * (LONGEST + 1),
    ],
    ids=lambda text: text[:12].strip() or "blank",
)  # fmt: skip
def test_what_is_no_description(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_description(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
paths = st.sampled_from(
    ["size", "type", "partitions", "partitions.0", "partitions.0.name", "partition", "filesystem",
     "filesystem.warnings", "filesystem.journal", "filesystem.journal.x", "filesystem.size"]
)  # fmt: skip


@given(paths, values)
def test_anything_else_is_refused_or_harmless(path: str, value: Any) -> None:
    """What is taken has plain values only, at most three deep, so that it can be shown."""
    try:
        taken = parse_description(json.dumps(changed(path, value)))
    except ProtocolError:
        return
    for row in taken["partitions"]:
        assert row.keys() == ROW.keys()
    for name, item in taken["filesystem"].items():
        assert name.isidentifier()
        inner = item.values() if isinstance(item, dict) else [item]
        for plain in inner:
            for leaf in plain if isinstance(plain, list) else [plain]:
                assert leaf is None or isinstance(leaf, (bool, int, str))


# How it is made


@pytest.mark.requires("mke2fs")
def test_an_image_of_a_given_size_is_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sandbox nothing but that is allowed on a descriptor."""

    def forbidden(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(source, "device_size", forbidden)
    monkeypatch.setattr(images, "device_size", forbidden)
    with cached_image(size=8 * MIB).open("rb") as file:
        fd = file.fileno()
        server = open_server(fd, size=8 * MIB)
        assert (server.offset, server.length) == (0, 8 * MIB)
        assert server.block_size == server.info["block_size"]
        description, error = inspect_image(fd, size=8 * MIB)
        with pytest.raises(PermissionError):
            open_server(fd)
    assert error is None
    assert parse_description(json.dumps(description)) == description


@pytest.mark.requires("mke2fs")
def test_where_a_filesystem_lies(tmp_path: Path) -> None:
    image = cached_image(size=8 * MIB).read_bytes()
    disk = gpt_disk(24 * MIB, 512, [(1, 4096, 4096 + 8 * 2048 - 1, "d\u00e9j\u00e0")])
    disk[4096 * 512 : 4096 * 512 + len(image)] = image
    path = tmp_path / "disk.img"
    path.write_bytes(disk)
    with path.open("rb") as file:
        server = open_server(file.fileno(), None, {"partition": "1"}, size=24 * MIB)
        assert (server.offset, server.length) == (4096 * 512, 8 * MIB)
        description, error = inspect_image(file.fileno(), None, {"partition": "1"})
        assert error is None
        assert parse_description(json.dumps(description)) == description
        assert description["partition"] == 1
        with pytest.raises(ValueError, match="unknown option"):
            inspect_image(file.fileno(), None, {"partition": "1", "odd": ""})
