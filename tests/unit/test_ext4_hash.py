# SPDX-License-Identifier: Apache-2.0
"""Hashes of names: known values, and debugfs as a second implementation."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from penstock.formats.ext4.hash import name_hash, unsigned_version
from tests.support.images import MIB, cached_image, run

ZERO = bytes(16)
SEED = uuid.UUID("c0ffee00-1234-4321-8888-deadbeef0001").bytes
LONG = b"a-rather-long-file-name-that-spans-more-than-thirty-two-bytes.txt"
UMLAUT = "ünïcode".encode()

KNOWN = [
    (b"hello", ZERO, [0x32252546, 0x1746DA32, 0x6F5BB1A8, None, 0x1746DA32, 0x6F5BB1A8]),
    (b"lost+found", ZERO, [0x5E2ABA24, 0x591DE422, 0x2DBF9E80, None, 0x591DE422, 0x2DBF9E80]),
    (LONG, ZERO, [0xD40CDEB6, 0x29C174E4, 0xCC091610, None, 0x29C174E4, 0xCC091610]),
    (UMLAUT, ZERO, [0x0DD72FF6, 0x5155BBDA, 0x33E92700, None, 0x17478DC4, 0xF00A6148]),
    (b"hello", SEED, [None, 0xC56BC60E, 0x1371263A]),
    (UMLAUT, SEED, [None, 0x41EA825C, 0x54BA4C80, None, 0xF67CE076, 0x222D9AE4]),
]


@pytest.mark.parametrize(("name", "seed", "hashes"), KNOWN)
def test_known_hashes(name: bytes, seed: bytes, hashes: list[int | None]) -> None:
    for version, value in enumerate(hashes):
        if value is not None:
            assert name_hash(name, version, seed) == value


def test_unknown_versions() -> None:
    assert name_hash(b"hello", 6, ZERO) is None
    assert name_hash(b"hello", 77, ZERO) is None
    assert [unsigned_version(version) for version in range(7)] == [3, 4, 5, 3, 4, 5, 6]


@pytest.mark.requires("mke2fs")
@pytest.mark.parametrize("version", range(6))
def test_debugfs_agrees(version: int, tmp_path: Path) -> None:
    rng = random.Random(version)
    # Letters of one to four bytes in UTF-8, without what debugfs' command line takes apart.
    letters = "abzXY019._-+äöß日本𝄞"
    names = ["n" + "".join(rng.choices(letters, k=rng.randint(0, 60))) for _ in range(60)]
    names += ["x" * length for length in (1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 255)]
    script = tmp_path / "commands"
    seed = str(uuid.UUID(bytes=SEED))
    script.write_text(
        "".join(f"dx_hash -h {version} -s {seed} {name}\n" for name in names), encoding="utf-8"
    )
    answer = run("debugfs", "-f", script, cached_image(size=8 * MIB))
    told = [line.split()[4] for line in answer.splitlines() if line.startswith("Hash of ")]
    ours = [name_hash(name.encode(), version, SEED) for name in names]
    assert ours == [int(word.rstrip(","), 16) for word in told]
