# SPDX-License-Identifier: Apache-2.0
"""Mounts of images whose files the kernel reads through a lens: every kind of image, many files,
many users, several processes, and what is left when one of them is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.broker.backings import MAX_BACKINGS
from penstock.datapath.whole import KEPT
from tests.support.commands import good, wait_for
from tests.support.contained import Contained, contained
from tests.support.disks import mbr_entry, mbr_record
from tests.support.images import (
    MIB,
    cached_image,
    copy_image,
    kernel_mount,
    make_image,
    make_tree,
    run,
)
from tests.support.requirements import PROJECT

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4")

SECTOR = 512
FIRST_SECTOR = 63
"""Where disks of old have their first partition: no larger blocks than sectors begin there."""
PIECES = 5000
LARGE = 24 * MIB
MANY = MAX_BACKINGS + 904
SHARED = 60
"""Files in the image that several processes serve."""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(top: Path) -> dict[str, str]:
    """Of each regular file."""
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file():
                found[os.fspath(path.relative_to(top))] = digest(path)
    return found


def requests(statistics: dict[str, Any], name: str) -> int:
    return int(statistics["requests"].get(name, {"count": 0})["count"])


def fill(top: Path) -> None:
    """One of each kind of file, a large one, and one in thousands of pieces."""
    draw = random.Random(7)
    make_tree(top / "tree", files=5)
    (top / "large").write_bytes(draw.randbytes(LARGE + 777))
    block = os.statvfs(top).f_bsize
    with (top / "pieces").open("wb") as file:
        for piece in range(PIECES):
            file.seek(piece * 2 * block)
            file.write(draw.randbytes(block))
    for name in ("one", "other"):  # neither of which lies in one piece
        with (top / name).open("wb"):
            pass
    for turn in range(40):
        for name in ("one", "other"):
            with (top / name).open("ab") as file:
                file.write(draw.randbytes(5 * block + turn))
                os.fsync(file.fileno())
    shutil.copy("/usr/bin/python3", top / "program")


def _filled(image: Path) -> None:
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        fill(top)


KINDS = {
    "1k": ("-b", "1024"),
    "2k": ("-b", "2048"),
    "4k": ("-b", "4096", "-O", "inline_data", "-I", "256"),
    "clusters": ("-b", "4096", "-O", "bigalloc", "-C", "65536"),
}


def an_image(kind: str) -> Path:
    size = 600 * MIB if kind == "clusters" else 128 * MIB
    return cached_image(_filled, size=size, options=KINDS[kind])


def kernels_view(image: Path, tmp_path: Path) -> dict[str, str]:
    with kernel_mount(image, tmp_path / "kernel", "ro,noload") as top:
        return digests(top)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("datapath", ["auto", "lens"])
def test_every_kind_of_image(kind: str, datapath: str, tmp_path: Path) -> None:
    image = an_image(kind)
    expected = kernels_view(image, tmp_path)
    with contained(image, tmp_path / "mnt", f"datapath={datapath}") as mount:
        assert digests(mount.mountpoint) == expected
        statistics = mount.statistics()
        assert statistics["datapath"] == "lens"
        for name in ("large", "pieces", "one", "program"):
            assert digest(mount.mountpoint / name) == expected[name]
        with (mount.mountpoint / "large").open("rb") as file:
            assert os.sendfile(os.memfd_create("x"), file.fileno(), 0, LARGE) > MIB
        program = mount.mountpoint / "program"
        assert subprocess.run([program, "-c", "print(6 * 7)"], capture_output=True, check=True)
        again = mount.statistics()
        assert again["opens"]["lens"] >= statistics["opens"]["lens"] + 6
        assert requests(again, "READ") == requests(statistics, "READ")
        if datapath == "lens":
            inline = kind == "4k"  # what lies in inodes has no blocks of its own
            assert bool(statistics["opens"]["splice"]) == inline


def test_a_partition(tmp_path: Path) -> None:
    """That begins where no block does."""
    image = an_image("4k")
    disk = tmp_path / "disk"
    sectors = image.stat().st_size // SECTOR
    with disk.open("wb") as file:
        file.write(mbr_record(mbr_entry(0x83, FIRST_SECTOR, sectors)))
    offset = FIRST_SECTOR * SECTOR
    run(
        "dd", f"if={image}", f"of={disk}", "bs=1M", f"seek={offset}", "oflag=seek_bytes",
        "conv=sparse,notrunc", "status=none",
    )  # fmt: skip
    os.truncate(disk, offset + image.stat().st_size)
    expected = kernels_view(image, tmp_path)
    with contained(disk, tmp_path / "mnt", "datapath=lens,partition=1") as mount:
        assert digests(mount.mountpoint) == expected
        assert mount.statistics()["opens"]["lens"] > 10


def test_in_one_process(tmp_path: Path) -> None:
    """As a library does it, without a broker."""
    image = an_image("4k")
    expected = kernels_view(image, tmp_path)
    with contained(image, tmp_path / "mnt", "sandbox=no,datapath=lens") as mount:
        for _ in range(2):
            assert digests(mount.mountpoint) == expected
        statistics = mount.statistics()
        assert statistics["datapath"] == "lens"
        assert statistics["opens"]["lens"] > 20
        assert statistics["backing_files"] > 10
        good("umount", mount.mountpoint)
        assert mount.wait().code == 0


@pytest.mark.requires("loop")
def test_an_image_on_a_block_device(tmp_path: Path) -> None:
    image = an_image("1k")
    expected = kernels_view(image, tmp_path)
    device = run("losetup", "--find", "--show", "--read-only", image).strip()
    try:
        with contained(Path(device), tmp_path / "mnt", "datapath=lens") as mount:
            assert digests(mount.mountpoint) == expected
            statistics = mount.statistics()
            assert statistics["datapath"] == "lens"
            assert requests(statistics, "READ") == 0
    finally:
        run("losetup", "--detach", device)


@pytest.mark.requires("loop")
@pytest.mark.parametrize("datapath", ["auto", "lens"])
def test_a_device_on_which_the_lens_cannot_read(tmp_path: Path, datapath: str) -> None:
    """Its sectors are larger than the blocks. Asked for, it is refused; else all is read."""
    image = an_image("1k")
    expected = kernels_view(image, tmp_path)
    words = ("--find", "--show", "--read-only", "--sector-size", "4096")
    device = run("losetup", *words, image).strip()
    try:
        with contained(Path(device), tmp_path / "mnt", f"datapath={datapath}") as mount:
            if datapath == "lens":
                ended = mount.wait()
                assert ended.code != 0
                assert "sectors of 4096 bytes" in ended.said
                return
            assert digests(mount.mountpoint) == expected
            statistics = mount.statistics()
            assert statistics["datapath"] == "splice"
            assert "sectors of 4096 bytes" in statistics["datapath_reasons"]["lens"]
    finally:
        run("losetup", "--detach", device)


# Many files


def _many(image: Path) -> None:
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        for number in range(MANY):
            (top / str(number)).write_bytes(b"%d\n" % number * 1200)


def resident(pid: int) -> int:
    """KiB of memory that a process has."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(most, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_files_open_than_can_be_registered(many_descriptors: None, tmp_path: Path) -> None:
    """All open, and have their content; those beyond the limit are read."""
    image = cached_image(_many, size=96 * MIB, options=("-b", "4096", "-N", "8192"))
    with contained(image, tmp_path / "mnt", "datapath=lens") as mount:
        before = {pid: resident(pid) for pid in (mount.broker, *mount.servers)}
        fds = [os.open(mount.mountpoint / str(at), os.O_RDONLY) for at in range(MANY)]
        try:
            statistics = mount.statistics()
            assert statistics["backing_files"] == MAX_BACKINGS
            assert statistics["opens"] == {"lens": MAX_BACKINGS, "splice": MANY - MAX_BACKINGS}
            for at, fd in enumerate(fds):
                wanted = b"%d\n" % at * 1200
                assert os.pread(fd, 1 << 16, 0) == wanted
        finally:
            for fd in fds:
                os.close(fd)
        for at in range(MANY - 1, MANY - 1500, -1):  # those that were read first
            wanted = b"%d\n" % at * 1200
            assert (mount.mountpoint / str(at)).read_bytes() == wanted
        after = mount.statistics()
        assert after["opens"]["lens"] > MAX_BACKINGS + 1400  # the first before RELEASE has come
        assert after["backing_files"] <= KEPT
        for pid, kibibytes in before.items():
            assert resident(pid) - kibibytes < 24 << 10


MAPPING = """
import ctypes, hashlib, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
fd = os.open(sys.argv[1] + "/mapped", os.O_RDONLY)
size = os.fstat(fd).st_size
memory = libc.mmap(None, size, 1, 1, fd, 0)
libc.madvise(memory, size, 1)  # no more of it is read than is touched
ctypes.string_at(memory, 1)
os.close(fd)
for name in range(int(sys.argv[2])):
    os.close(os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY))
print(hashlib.sha256(ctypes.string_at(memory, size)).hexdigest())
"""


def _mapped(image: Path) -> None:
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        (top / "mapped").write_bytes(random.Random(4).randbytes(4 * MIB))
        for number in range(KEPT + 100):
            (top / str(number)).write_bytes(b"%d" % number)


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    """The file is closed, and so many others opened since that it is not kept; nobody tells that
    it is mapped. Another file's bytes, or the lens's own, would be what a program executes."""
    image = cached_image(_mapped, size=64 * MIB, options=("-b", "4096", "-N", "4096"))
    expected = kernels_view(image, tmp_path)["mapped"]
    with contained(image, tmp_path / "mnt", "datapath=lens") as mount:
        words = [sys.executable, "-c", MAPPING, str(mount.mountpoint), str(KEPT + 100)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
        statistics = mount.statistics()
        assert statistics["opens"]["lens"] == KEPT + 101
        assert statistics["backing_files"] <= KEPT


# Several processes


def _shared(image: Path) -> None:
    draw = random.Random(9)
    with kernel_mount(image, image.with_suffix(".fill")) as top:
        for number in range(SHARED):
            size = draw.choice([1000, 100_000, 200_000, 500_000])
            (top / f"{number:02}").write_bytes(draw.randbytes(size))


CLIENT = """
import errno, hashlib, json, mmap, os, random, sys, time
top, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
expected = json.load(sys.stdin)
names = sorted(expected)
draw = random.Random(seed)
held, done, direct = [], 0, 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    name = draw.choice(names)
    flags = os.O_RDONLY | draw.choice([0, 0, 0, os.O_DIRECT])
    try:
        fd = os.open(os.path.join(top, name), flags)
    except OSError as error:
        if flags & os.O_DIRECT and error.errno == errno.EINVAL:
            direct += 1
            continue
        raise
    try:
        if flags & os.O_DIRECT:
            with mmap.mmap(-1, 1 << 20) as memory:
                data = memory[:os.preadv(fd, [memory], 0)]
        else:
            data = os.pread(fd, 1 << 20, 0)
    except OSError as error:
        if not flags & os.O_DIRECT or error.errno != errno.EINVAL:
            raise
        data = None
    assert data is None or hashlib.sha256(data).hexdigest() == expected[name], name
    done += 1
    held.append(fd)
    while len(held) > draw.randrange(20):
        os.close(held.pop(draw.randrange(len(held))))
print(done, direct)
"""


def outputs(client: subprocess.Popen[str]) -> tuple[str, str]:
    """What a client has said, and of what it has complained."""
    assert client.stdout is not None
    assert client.stderr is not None
    return client.stdout.read(), client.stderr.read()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_many_clients_and_processes(processes: int, tmp_path: Path) -> None:
    """They open the same files at once, with O_DIRECT too: it works or is EINVAL, and never EIO."""
    image = cached_image(_shared, size=64 * MIB)
    expected = kernels_view(image, tmp_path)
    options = f"processes={processes},workers=2"
    with contained(image, tmp_path / "mnt", options) as mount:
        assert len(mount.servers) == processes
        with contextlib.ExitStack() as running:
            clients = [
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", CLIENT, mount.mountpoint, str(seed), "1"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
                for seed in range(4)
            ]
            for client in clients:
                assert client.stdin is not None
                client.stdin.write(json.dumps(expected))
                client.stdin.close()
            said = [(client.wait(60), *outputs(client)) for client in clients]
        for code, out, failure in said:
            assert (code, failure) == (0, "")
            assert int(out.split()[0]) > 20
        statistics = mount.statistics()
        assert statistics["datapath"] == "lens"
        assert statistics["opens"]["lens"] > 20
        assert 1 < statistics["backing_files"] <= SHARED
        assert digests(mount.mountpoint) == expected
        good("umount", mount.mountpoint)
        assert mount.wait().code == 0


# What is left


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of this test alone, which cannot be unmounted while anything of it is used."""
    own = make_image(tmp_path / "own", size=200 * MIB)
    with kernel_mount(own, tmp_path / "fs") as top:
        yield top


def begin(filesystem: Path, tmp_path: Path, device: bool) -> tuple[Path, list[str]]:
    image = copy_image(an_image("1k"), filesystem / "image")
    if not device:
        return image, []
    found = run("losetup", "--find", "--show", "--read-only", image).strip()
    return Path(found), [found]


@pytest.mark.requires("loop")
@pytest.mark.parametrize("victim", ["server", "broker", "everybody"])
@pytest.mark.parametrize("device", [False, True], ids=["file", "device"])
def test_nothing_is_left_of_a_mount_that_is_killed(
    filesystem: Path, tmp_path: Path, victim: str, device: bool
) -> None:
    """Neither the instance nor its loop device: the image's own filesystem can be unmounted."""
    source, devices = begin(filesystem, tmp_path, device)
    try:
        with contained(source, tmp_path / "mnt", "datapath=lens") as mount:
            file = os.open(mount.mountpoint / "large", os.O_RDONLY)
            assert len(os.pread(file, 1 << 20, 0)) == 1 << 20
            assert mount.statistics()["datapath"] == "lens"
            kill(mount, victim)
            assert mount.wait().code != 0
            with pytest.raises(OSError) as caught:
                os.open(mount.mountpoint / "other", os.O_RDONLY)
            assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT}
            os.close(file)
            if victim != "everybody":
                mount.assert_nothing_left(20)
            else:
                mount.wait_all_ended(20)
    finally:
        for name in devices:
            run("losetup", "--detach", name)
    wait_for(lambda: not busy(filesystem), "the end of what uses the image")


def kill(mount: Contained, victim: str) -> None:
    pids = {
        "server": mount.servers,
        "broker": [mount.broker],
        "everybody": mount.everybody,
    }[victim]
    for pid in pids:
        mount.kill(pid, signal.SIGKILL)


def busy(top: Path) -> bool:
    """Whether something of a filesystem is used: it is unmounted, and mounted again."""
    done = subprocess.run(["umount", top], capture_output=True, check=False, cwd=PROJECT)
    if done.returncode == 0:
        run("mount", "-o", "loop", top.with_name("own"), top)
    return done.returncode != 0
