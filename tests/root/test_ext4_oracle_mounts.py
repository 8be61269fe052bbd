# SPDX-License-Identifier: Apache-2.0
"""Mounts of ext4 images as such: who may mount and use them, from where, and how they end."""

from __future__ import annotations

import errno
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import wait_for
from tests.support.dirty import dirty_image, settle
from tests.support.disks import gpt_disk, mbr_entry, mbr_record
from tests.support.images import MIB, cached_image, copy_image, kernel_mount, make_tree, run
from tests.support.oracle import assert_same, capture, counts
from tests.support.ordinary import OrdinaryUser
from tests.support.servings import is_mounted, penstock, serving

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4")

BIG = 20 * MIB
NOBODY = 65534
DATA_PATHS = ("copy", "splice", "auto")


def _fill(image: Path) -> None:
    """Once a session: one of each kind of file, a big file, a set-user-ID program, a device."""
    place = image.with_suffix(".fill")
    with kernel_mount(image, place) as top:
        make_tree(top / "tree", files=60)
        (top / "big").write_bytes(random.Random(1).randbytes(BIG))
        shutil.copy("/usr/bin/id", top / "id")
        (top / "id").chmod(0o4755)
        os.mknod(top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        (top / "zero").chmod(0o666)
    place.rmdir()


@pytest.fixture(scope="module")
def image() -> Path:
    """A small image."""
    return cached_image(_fill, size=96 * MIB, options=["-b", "4096", "-N", "2048"])


@pytest.fixture
def kernel(image: Path, tmp_path: Path) -> Iterator[Path]:
    """The kernel's view of it."""
    with kernel_mount(image, tmp_path / "kernel", "ro,noload") as top:
        yield top


def _flags(path: Path) -> set[str]:
    """The options of a mount, as the mount table has them."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        (line,) = (line for line in table if line.split()[4] == os.fspath(path))
    return set(line.split()[5].split(","))


def _as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip


@pytest.fixture
def place(session_place: Path) -> Iterator[Path]:
    """A folder that everybody can enter, of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="oracle-", dir=session_place))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("words", ["", "suid", "dev", "suid,dev", "nosuid,dev", "noexec"])
def test_programs_and_devices_are_harmless_unless_root_asks(
    image: Path, place: Path, words: str
) -> None:
    """A set-user-ID program and a device node do what they do in the kernel's mount."""
    kernel_words = [word for word in ("nosuid", "nodev") if word[2:] not in words.split(",")]
    kernel_words += [word for word in words.split(",") if word == "noexec"]
    with (
        kernel_mount(image, place / "kernel", ",".join(["ro", "noload", *kernel_words])) as kernel,
        serving(image, place / "mount", f"allow_other,{words}".rstrip(",")) as served,
    ):
        expected, seen = (
            [
                _attempt(top),
                _as_nobody("/bin/dd", f"if={top}/zero", "count=1", "of=/dev/null").returncode,
            ]
            for top in (kernel, served.path)
        )
        assert seen == expected
        for word in ("nosuid", "nodev", "noexec"):
            assert (word in _flags(served.path)) == (word in kernel_words)
    suid = "nosuid" not in kernel_words
    assert seen[0] == ("refused" if "noexec" in words else "0\n" if suid else f"{NOBODY}\n")
    assert (seen[1] == 0) == ("nodev" not in kernel_words)


def _attempt(top: Path) -> str:
    try:
        return _as_nobody(top / "id", "-u").stdout
    except PermissionError:
        return "refused"


def test_owners_as_asked_for(image: Path, kernel: Path, tmp_path: Path) -> None:
    expected = {path: node._replace(uid=77, gid=88) for path, node in capture(kernel).items()}
    with serving(image, tmp_path / "mount", "uid=77,gid=88") as served:
        assert_same(expected, capture(served.path))


# Ordinary users


@pytest.fixture(scope="module")
def public_tree(session_place: Path) -> Path:
    """A tree that everybody can read."""
    top = session_place / f"public-{os.getpid()}"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parents[2] / "src", top / "src", ignore=ignored)
    for index in range(3):
        (top / "src" / f"link{index}").symlink_to("x" * (30 + index * 20))
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return top


@pytest.mark.requires("ordinary-user", "fusermount3")
@pytest.mark.parametrize("datapath", DATA_PATHS)
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_image_that_an_ordinary_user_may_only_read(
    public_tree: Path,
    ordinary_user: OrdinaryUser,
    dev_fuse_for_all: None,
    dirty: bool,
    datapath: str,
) -> None:
    """Mounted through fusermount3: ``diff`` finds nothing but lost+found."""
    theirs = ordinary_user.home / f"oracle-{datapath}-{dirty}.img"
    if dirty:

        def work(top: Path) -> None:
            shutil.copytree(public_tree, top, dirs_exist_ok=True, symlinks=True)
            settle(top)

        dirty_image(theirs, work, options=("-b", "1024"), mount="barrier=0")
    else:
        copy_image(cached_image(tree=public_tree), theirs)
    theirs.chmod(0o444)
    place = ordinary_user.folder(f"oracle-{datapath}-{dirty}")
    command = [*ordinary_user.penstock, "mount", "-o", f"datapath={datapath}", theirs, place]
    done = ordinary_user.run([str(word) for word in command])
    try:
        assert done.stderr == ""
        assert (done.returncode, done.stdout) == (0, "")
        assert {"nosuid", "nodev", "ro"} <= _flags(place)
        seen = ordinary_user.run(
            ["diff", "-r", "--no-dereference", str(place), str(public_tree)]
        ).stdout
        assert seen == f"Only in {place}: lost+found\n"
        with pytest.raises(PermissionError):  # not even root gets in
            os.listdir(place)
        ended = ordinary_user.run([*ordinary_user.penstock, "umount", str(place)])
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        if is_mounted(place):
            run("umount", "--lazy", place)
        theirs.unlink()
    assert not is_mounted(place)


# Where the image lies


def _disk(path: Path, image: Path, start: int, table: bytes, size: int) -> Path:
    with path.open("wb") as disk, image.open("rb") as source:
        disk.write(table)
        disk.truncate(size)
        disk.seek(start)
        shutil.copyfileobj(source, disk, MIB)
    return path


@pytest.mark.parametrize("kind", ["gpt", "gpt-4096", "mbr", "mbr-logical"])
def test_partitions(image: Path, tmp_path: Path, kind: str) -> None:
    """The tree of a partition, by each data path; the kernel is told its offset."""
    length = image.stat().st_size
    sector = 4096 if kind == "gpt-4096" else 512
    total = length + 8 * MIB
    # The old way of fdisk: a partition that does not begin where a page does.
    first = 63 if kind == "mbr" else 2048 * 512 // sector + 1
    disk = tmp_path / "disk"
    number = {"gpt": 3, "gpt-4096": 3, "mbr": 2, "mbr-logical": 5}[kind]
    if kind.startswith("gpt"):
        parts = [(3, first, first + length // sector - 1, "root")]
        whole = gpt_disk(total, sector, parts)
        _disk(disk, image, first * sector, bytes(whole[:MIB]), total)
        with disk.open("r+b") as file:
            file.seek(total - MIB)
            file.write(whole[-MIB:])
    elif kind == "mbr":
        empty = mbr_entry(0, 0, 0)
        table = mbr_record(empty, mbr_entry(0x83, first, length // 512))
        _disk(disk, image, first * 512, table, total)
    else:
        outer = mbr_record(mbr_entry(0x05, 64, total // 512 - 64))
        inner = mbr_record(mbr_entry(0x83, first - 64, length // 512))
        _disk(disk, image, first * 512, outer.ljust(64 * 512, b"\0") + inner, total)
    where = f"offset={first * sector},sizelimit={length}"
    with kernel_mount(disk, tmp_path / "kernel", f"ro,noload,{where}") as top:
        expected, expected_counts = capture(top), counts(top)
    for path in DATA_PATHS:
        with serving(disk, tmp_path / "mount", f"partition={number},datapath={path}") as served:
            assert_same(expected, capture(served.path))
            assert counts(served.path) == expected_counts


def test_several_mounts_of_one_image(image: Path, kernel: Path, tmp_path: Path) -> None:
    expected = capture(kernel)
    with serving(image, tmp_path / "first") as first:
        with serving(image, tmp_path / "second", "datapath=copy") as second:
            assert first.server.pid != second.server.pid
            for served in (first, second):
                assert_same(expected, capture(served.path))
        assert (first.path / "big").read_bytes() == (kernel / "big").read_bytes()


def test_image_on_a_block_device(image: Path, kernel: Path, tmp_path: Path) -> None:
    expected = capture(kernel)
    copy = copy_image(image, tmp_path / "copy")
    device = run("losetup", "--find", "--show", "--read-only", copy).strip()
    try:
        with serving(Path(device), tmp_path / "mount") as served:
            assert_same(expected, capture(served.path))
    finally:
        run("losetup", "--detach", device)


# How it goes wrong, and how it ends


@pytest.mark.parametrize("datapath", DATA_PATHS)
def test_image_that_is_cut_short_while_mounted(image: Path, tmp_path: Path, datapath: str) -> None:
    """What is gone is EIO (bad metadata EUCLEAN), what is there is read, and the server lives."""
    copy = copy_image(image, tmp_path / "copy")
    content = Path(copy).stat().st_size
    with serving(copy, tmp_path / "mount", f"datapath={datapath}") as served:
        start = (served.path / "tree" / "size4097").read_bytes()
        assert len(start) == 4097
        os.truncate(copy, 3 * MIB)
        failures: dict[int, int] = {}
        for folder, _, names in os.walk(served.path):
            for name in names:
                path = Path(folder, name)
                try:
                    if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 32 * MIB:
                        path.read_bytes()
                except OSError as error:
                    number = error.errno or 0
                    failures[number] = failures.get(number, 0) + 1
        assert failures.keys() <= {errno.EIO, errno.EUCLEAN}
        assert failures[errno.EIO]
        with (served.path / "big").open("rb") as big:
            for length in (100, 4096, MIB):
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(big.fileno(), length, BIG // 2)
        assert (served.path / "tree" / "size4097").read_bytes() == start
        assert served.statistics()["pid"] == served.server.pid
        os.truncate(copy, content)
        assert sorted(os.listdir(served.path))[:2] == ["big", "id"]


def test_busy_then_lazy(image: Path, kernel: Path, tmp_path: Path) -> None:
    """A mount in use is busy; taken away lazily it serves what is open until that is closed."""
    with serving(image, tmp_path / "mount") as served:
        user = os.open(served.path / "big", os.O_RDONLY)
        refused = penstock("umount", served.path, check=False)
        assert refused.returncode == 32
        assert "busy" in refused.stderr
        assert is_mounted(served.path)
        penstock("umount", "--lazy", served.path)
        assert not is_mounted(served.path)
        assert not served.wait_end(0)
        os.posix_fadvise(user, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(user, "rb") as file:
            assert file.read() == (kernel / "big").read_bytes()
        assert served.wait_end(20)


READER = """
import os, sys
print("reading", flush=True)
try:
    while True:
        for name in ("big", "tree/size300001", "tree/size65536"):
            fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while os.read(fd, 1 << 20):
                pass
            os.close(fd)
        os.listdir(sys.argv[1])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_server_that_ends_while_it_is_used(
    image: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Readers get an error at once, nobody hangs, and the mount can be taken away."""
    with serving(image, tmp_path / "mount") as served:
        readers = [
            subprocess.Popen(
                [sys.executable, "-I", "-c", READER, served.path], stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        served.server.send_signal(number)
        assert served.wait_end(20)
        gone = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT}
        for reader in readers:
            answer, _ = reader.communicate(timeout=20)
            assert int(answer) in gone
        # Whoever is killed: there is always somebody left who unmounts.
        wait_for(lambda: not is_mounted(served.path), "end of the mount")
        assert os.listdir(served.path) == []


def test_mount_table_hears_of_the_end(image: Path, tmp_path: Path) -> None:
    """umount(8) ends the server too."""
    with serving(image, tmp_path / "mount") as served:
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            events = select.poll()
            events.register(table, select.POLLPRI)
            run("umount", served.path)
            assert events.poll(10_000)
        assert served.wait_end(10)
