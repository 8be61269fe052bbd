# SPDX-License-Identifier: Apache-2.0
"""Damaged, truncated and foreign images on the command line: one line says what is wrong, and
``info`` shows what can be known all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.main import main
from tests.support.disks import mbr_disk, mbr_entry, mbr_record
from tests.support.images import MIB, copy_image, make_image, peek, poke

pytestmark = pytest.mark.requires("mke2fs")

_SUPERBLOCK = 1024
_UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("damage")
    (top / "tree" / "dir").mkdir(parents=True)
    (top / "tree" / "dir" / "victim-of-it").write_text("x")
    (top / "tree" / "good").write_text("good")
    image = top / "sound.img"
    options = ("-L", "mylabel", "-U", _UUID)
    make_image(image, size=8 * MIB, options=options, tree=top / "tree")
    return image


@pytest.fixture
def image(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return copy_image(sound, tmp_path / "cor.img")


def run(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, list[str]]:
    code = main([str(word) for word in words])
    said = capfd.readouterr()
    return code, said.out, said.err.splitlines()


def break_directory(image: Path) -> None:
    where = image.read_bytes().index(b"victim-of-it")
    poke(image, where, b"w")


@pytest.mark.parametrize("command", [["ls"], ["ls", "-l"], ["ls", "--json"]])
def test_one_line_with_the_reason(
    image: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    break_directory(image)
    code, _, lines = run(capfd, *command, "cor.img:/dir")
    assert code == 2
    (line,) = lines
    assert line.startswith("penstock: cor.img:/dir: ")
    assert "checksum" in line


def test_other_commands_say_the_reason_too(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    break_directory(image)
    code, _, (line,) = run(capfd, "cat", "cor.img:/dir/victim-of-it")
    assert (code, "checksum" in line) == (2, True)
    code, _, (line,) = run(capfd, "cp", "cor.img", "out")
    assert (code, "checksum" in line) == (2, True)
    assert Path("out/good").read_text() == "good"


def test_bad_superblock_checksum(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right = peek(image, _SUPERBLOCK + 0x3FC, 1)[0]
    poke(image, _SUPERBLOCK + 0x3FC, bytes([right ^ 1]))
    code, out, (line,) = run(capfd, "ls", "cor.img")
    assert (code, out) == (2, "")
    assert line.startswith("penstock: cor.img: superblock: wrong checksum 0x")
    assert line.endswith(" (-o nocheck reads on without checking)")
    assert run(capfd, "ls", "-o", "nocheck", "cor.img")[0] == 0
    code, out, (told,) = run(capfd, "info", "--json", "cor.img")
    described = json.loads(out)
    assert (code, told) == (2, line)
    assert f"penstock: cor.img: {described['error']}" == line
    assert [described[key] for key in ("type", "label", "uuid", "size")] == [
        "ext4", "mylabel", _UUID, 8 * MIB
    ]  # fmt: skip


def test_info_of_a_truncated_image(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with image.open("r+b") as file:
        file.truncate(MIB)
    code, out, lines = run(capfd, "info", "cor.img")
    assert (code, len(lines)) == (2, 1)
    for text in ("mylabel", _UUID, f"{MIB} bytes", "error ", "truncated"):
        assert text in out
    assert "truncated" in lines[0]


def test_info_of_nothing_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    code, out, (line,) = run(capfd, "info", tmp_path / "zeros")
    assert (code, "nothing known" in out) == (2, True)
    assert line.startswith(f"penstock: {tmp_path}/zeros: is no filesystem")


def test_partitions_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.img"
    data = bytearray(mbr_disk(4 * MIB))
    data[64 * 512 : 64 * 512 + 4] = b"XFSB"
    disk.write_bytes(data)
    for number, reason in {
        "1": "partition 1 is an XFS filesystem, not ext2, ext3 or ext4",
        "2": "partition 2 is an extended partition, which holds others: logical partitions have "
        "numbers from 5 ('penstock info' lists them)",
        "5": "partition 5 is no filesystem that penstock knows "
        "(partition 5 has no ext4 superblock)",
    }.items():
        code, _, lines = run(capfd, "ls", "-p", number, disk)
        assert (code, lines) == (2, [f"penstock: {disk}: {reason}"])
        code, out, lines = run(capfd, "info", "--json", "-p", number, disk)
        assert (code, json.loads(out)["error"]) == (2, reason)
        assert len(json.loads(out)["partitions"]) > 2


def test_damage_inside_a_partition_names_it(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    poke(image, _SUPERBLOCK + 0x3FC, b"\0\0\0\0")
    disk = mbr_record(mbr_entry(0x83, 8, 8 * MIB // 512)).ljust(4096, b"\0") + image.read_bytes()
    Path("disk.img").write_bytes(disk)
    code, _, (line,) = run(capfd, "ls", "-p", "1", "disk.img")
    assert code == 2
    assert line.startswith("penstock: disk.img: partition 1: superblock: wrong checksum")


def test_info_of_a_bad_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(mbr_record(mbr_entry(0x83, 8, 1 << 20)).ljust(MIB, b"\0"))
    code, out, (line,) = run(capfd, "info", "--json", disk)
    assert (code, json.loads(out)["type"]) == (2, "mbr")
    assert line.startswith(f"penstock: {disk}: MBR: partition 1 has ")
