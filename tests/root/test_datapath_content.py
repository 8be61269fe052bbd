# SPDX-License-Identifier: Apache-2.0
"""Every data path gives the same bytes: those of the kernel's own mount.

Images with data in every way that ext4 knows, clean and with file data in a dirty journal; and
directories, read and written. What a data path cannot do is one clear line.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import refused
from tests.support.datafiles import WAYS, digests, fill, random_bytes
from tests.support.dirty import dirty_image, settle
from tests.support.images import MIB, copy_image, kernel_mount, make_image, run, session_dir
from tests.support.ordinary import OrdinaryUser
from tests.support.servings import is_mounted, serving

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4")

IMAGE_PATHS = ("copy", "splice", "lens", "auto")
DIRECTORY_PATHS = ("copy", "splice", "passthrough", "auto")
OPTIONS = {
    "4k": ("-b", "4096", "-O", "inline_data", "-I", "256"),
    "1k": ("-b", "1024", "-I", "256"),
    "indirect": ("-b", "1024", "-O", "^extents,^64bit"),
}
DIRTY = {
    "journalled": ("data=journal", ("-b", "4096")),
    "journalled-1k": ("data=journal", ("-b", "1024")),
    "one-journalled": ("", ("-b", "4096")),
}
MAGIC = b"\xc0\x3b\x39\x98"
"""A block that begins so is changed on its way into the log."""


def _clean(name: str, image: Path) -> None:
    make_image(image, size=160 * MIB, options=OPTIONS[name])
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        # Without extents there is no unwritten space to be had.
        fill(top, big=(64 if name == "4k" else 16) * MIB) if name != "indirect" else _plain(top)


def _plain(top: Path) -> None:
    for size in (0, 1, 1023, 12_288, 12_289, 274_432, 274_433, 2 * MIB):
        (top / f"size{size}").write_bytes(random_bytes(size, size))
    with (top / "far").open("wb") as file:
        for offset in (5000, 300_000, 80 * MIB):
            file.seek(offset)
            file.write(random_bytes(offset, 5000))
    (top / "big").write_bytes(random_bytes("big", 5 * MIB))


def _dirty(name: str, image: Path) -> None:
    mount, options = DIRTY[name]

    def work(top: Path) -> None:
        fill(top, big=0)
        chosen = [top / "size131073", top / "size2097151", top / "few-pieces", top / "islands"]
        if not mount:  # files of this folder are journalled: they inherit that
            chosen = [Path(shutil.copy(path, top / "logged")) for path in chosen]
        settle(top)
        for path in chosen:  # what is written now is in the log alone
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(random_bytes(f"anew {path.name}", 50_000))
                file.seek(16 * 4096)
                file.write(MAGIC + random_bytes("escaped", 4092))
        settle(top)

    logged = () if mount else ("mkdir /logged", "set_inode_field /logged flags 0x84000")
    words = ",".join(filter(None, (mount, "barrier=0")))
    dirty_image(image, work, options=options, mount=words, before=logged)


@pytest.fixture(scope="module", params=[*OPTIONS, *DIRTY])
def image(request: pytest.FixtureRequest) -> Path:
    """An image, and beside it the digests of its files as the kernel sees them."""
    path = session_dir() / f"content-{request.param}.img"
    (_clean if request.param in OPTIONS else _dirty)(request.param, path)
    return path


@pytest.fixture(scope="module")
def expected(image: Path) -> dict[str, str]:
    """What the kernel reads; of a dirty image, after it has replayed the log of a copy."""
    copy = image
    words = "ro,noload"
    if image.stem.removeprefix("content-") in DIRTY:
        copy = copy_image(image, image.with_suffix(".copy"))
        words = "noatime"
    with kernel_mount(copy, image.with_suffix(".kernel"), words) as top:
        found = digests(top, "read")
    if copy != image:
        copy.unlink()
    assert len(found) >= 8
    return found


def _check_ways(top: Path, expected: dict[str, str]) -> None:
    for way in WAYS:
        seen = digests(top, way)
        assert set(seen) == set(expected)
        wrong = {
            name
            for name, digest in seen.items()
            if digest != expected[name] and not (way == "direct" and digest == "EINVAL")
        }
        assert not wrong, f"by {way}"


def _reads(statistics: dict[str, Any]) -> int:
    return int(statistics["requests"].get("READ", {}).get("count", 0))


@pytest.mark.parametrize("datapath", IMAGE_PATHS)
def test_image(image: Path, expected: dict[str, str], datapath: str, tmp_path: Path) -> None:
    with serving(image, tmp_path / "mount", f"datapath={datapath}") as served:
        _check_ways(served.path, expected)
        statistics = served.statistics()
    wanted = {"auto": "lens"}.get(datapath, datapath)
    assert statistics["datapath"] == wanted
    assert wanted not in statistics["datapath_reasons"]
    if wanted == "lens":
        assert statistics["opens"]["lens"] >= 10
    else:
        assert _reads(statistics) >= 10


@pytest.fixture(scope="module")
def one_large() -> Path:
    """An image with one large file."""
    image = make_image(session_dir() / "content-large.img", size=96 * MIB)
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        (top / "big").write_bytes(random_bytes("big", 40 * MIB))
    return image


def test_lens_reads_a_large_file_without_the_server(one_large: Path, tmp_path: Path) -> None:
    with serving(one_large, tmp_path / "mount", "datapath=lens") as served:
        seen = {tuple(digests(served.path, way).items()) for way in WAYS if way != "direct"}
        assert _reads(served.statistics()) == 0
    assert len(seen) == 1


def test_direct_reads_beside_others(one_large: Path, tmp_path: Path) -> None:
    """O_DIRECT works or is EINVAL, whoever else has the file open; and it hinders nobody."""
    expected = random_bytes("big", 40 * MIB)
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(expected)
    for what, datapath in ((one_large, "lens"), (one_large, "auto"), (source, "passthrough")):
        with serving(what, tmp_path / "mount", f"datapath={datapath}") as served:
            big = served.path / "big"
            with big.open("rb") as plain:
                assert plain.read(100_000) == expected[:100_000]
                assert _directly(big) in {None, expected[MIB : 2 * MIB]}
                plain.seek(30 * MIB)
                assert plain.read(100_000) == expected[30 * MIB : 30 * MIB + 100_000]
            assert _directly(big) in {None, expected[MIB : 2 * MIB]}
            assert big.read_bytes() == expected


def _directly(path: Path) -> bytes | None:
    """The second MiB, read directly; None where that is EINVAL."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    try:
        with mmap.mmap(-1, MIB) as buffer:
            assert os.preadv(fd, [buffer], MIB) == MIB
            return buffer[:]
    finally:
        os.close(fd)


@pytest.mark.parametrize("datapath", DIRECTORY_PATHS)
def test_directory(datapath: str, tmp_path: Path) -> None:
    """What is there is read, what is copied inside and changed is the same underneath."""
    source = tmp_path / "source"
    (source / "tree").mkdir(parents=True)
    fill(source / "tree", big=16 * MIB)
    expected = digests(source / "tree", "read")
    with serving(source, tmp_path / "mount", f"datapath={datapath}") as served:
        _check_ways(served.path / "tree", expected)
        run("cp", "-a", served.path / "tree", served.path / "copy")
        assert digests(source / "copy", "read") == expected
        _change(served.path / "copy")
        _change(source / "tree")
        changed = digests(source / "tree", "read")
        assert changed != expected
        assert digests(served.path / "copy", "read") == changed
        assert digests(source / "copy", "mmap") == changed
        statistics = served.statistics()
    wanted = {"auto": "passthrough"}.get(datapath, datapath)
    assert statistics["datapath"] == wanted
    if wanted == "passthrough":
        assert statistics["opens"]["passthrough"] >= 10
    if datapath == "passthrough":
        assert _reads(statistics) == 0
        assert "WRITE" not in statistics["requests"]


def _change(top: Path) -> None:
    """Overwrite, append, cut off and replace."""
    for name in ("big", "islands", "pieces", "size65537"):
        with (top / name).open("r+b") as file:
            for offset in (1, 4096, 33_333):
                file.seek(offset)
                file.write(random_bytes(f"{name} {offset}", 9000))
    with (top / "size3000").open("ab") as file:
        file.write(random_bytes("more", 300_000))
    os.truncate(top / "size2097152", 777_777)
    shutil.copy(top / "unwritten", top / "size512")


# What cannot be


@pytest.fixture(scope="module")
def small_image() -> Path:
    """An image with next to nothing in it."""
    return make_image(session_dir() / "content-small.img", size=8 * MIB)


@pytest.mark.parametrize("word", ["passthrough", "reflink", "iomap", "fast", ""])
def test_what_an_image_cannot_do_is_one_line(small_image: Path, tmp_path: Path, word: str) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    status, line = refused("mount", "-o", f"datapath={word}", small_image, place)
    assert status > 0
    assert f"datapath={word}" in line
    assert not is_mounted(place)


@pytest.mark.parametrize("word", ["lens", "reflink", "iomap", "fast", ""])
def test_what_a_directory_cannot_do_is_one_line(tmp_path: Path, word: str) -> None:
    place, source = tmp_path / "mount", tmp_path / "source"
    place.mkdir()
    source.mkdir()
    status, line = refused("mount", "-o", f"datapath={word}", source, place)
    assert status > 0
    assert f"datapath={word}" in line
    assert not is_mounted(place)


@pytest.mark.requires("ordinary-user", "fusermount3")
@pytest.mark.parametrize("word", ["lens", "passthrough"])
def test_what_an_ordinary_user_cannot_do_is_one_line(
    small_image: Path, ordinary_user: OrdinaryUser, dev_fuse_for_all: None, word: str
) -> None:
    place = ordinary_user.folder(f"content-{word}")
    source = ordinary_user.folder(f"content-{word}-source")
    if word == "lens":
        source = ordinary_user.copy(small_image, f"content-{word}.img")
    command = [*ordinary_user.penstock, "mount", "-o", f"datapath={word}", str(source), str(place)]
    done = ordinary_user.run(command)
    assert done.returncode > 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"datapath={word}" in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr or "root" in done.stderr
    assert not is_mounted(place)
