# SPDX-License-Identifier: Apache-2.0
"""With whose rights the kernel writes to files that are passed through: nobody's.

Through the library in a process of its own, and through the contained mirror: what a write of a
stranger's does to a file is what it does to the file itself. Each way of getting more out of it is
tried on a planted fault too, a library that registers as plain root.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.abi.fuse import InitFlag
from penstock.abi.process import NOBODY
from penstock.broker import backings as registry
from penstock.fs import Backing, Context, FileHandle, NodeId, OpenReply, WholeFile
from penstock.serve import MountOptions
from tests.support.commands import good
from tests.support.contained import contained
from tests.support.images import kernel_mount, make_image
from tests.support.mounts import Inside, serve_in_process
from tests.support.passthrough import Folder

CONTENT = b"of the file below\n" * 300
CAPABILITY = "security.capability"
NET_BIND_SERVICE = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)
"""As setcap(8) writes it."""
ROOM = 32 << 20
QUOTA = 4 << 20
SLACK = 2 << 20
WAYS = ["library", "library, no killpriv", "mirror"]


class WholeFolder(Folder):
    """The files of a folder, each opened for the caller and handed to the kernel.

    Args:
        source: the folder.
        as_root: have files registered as plain root, which is the fault.
        kill: whether to promise the kernel that writing takes set-ID bits away by itself.
    """

    whole_files = "passthrough"

    def __init__(self, source: Path, *, as_root: bool = False, kill: bool = True) -> None:
        super().__init__(source)
        self.want = InitFlag.HANDLE_KILLPRIV_V2 if kill else InitFlag(0)
        self.own: set[int] = set()
        if as_root:
            registry.become_nobody = lambda *also: None

    def open(self, ctx: Context, nodeid: NodeId, flags: int, kill_suidgid: bool) -> OpenReply:
        fd = os.open(self.names[nodeid], os.O_RDWR | os.O_CLOEXEC)
        self.own.add(fd)
        whole = WholeFile(Backing(fd), os.fstat(fd).st_size)
        return OpenReply(FileHandle(fd), 0, 0, whole)

    def carried(self, nodeid: NodeId, fh: FileHandle) -> None:
        self.asked["carried"] = self.asked.get("carried", 0) + 1
        self._close(fh)

    def release(self, ctx: Context, nodeid: NodeId, fh: FileHandle, *_: Any) -> None:
        self._close(fh)

    def _close(self, fh: int) -> None:
        if fh in self.own:
            self.own.remove(fh)
            os.close(fh)


def asked(inside: Inside) -> dict[str, int]:
    """What the kernel has asked of the filesystem, in the process that serves it."""
    told: dict[str, int] = inside[0].asked
    return told


@contextlib.contextmanager
def mounted(
    way: str, source: Path, place: Path, *, as_root: bool = False, set_id: bool = False
) -> Iterator[Path]:
    """The folder by way of a mount, whose files are passed through.

    Args:
        way: one of :data:`WAYS`.
        source: the folder.
        place: where to mount it.
        as_root: with the fault.
        set_id: the file has set-ID bits, and then the mirror has its content go through itself.
    """
    if way == "mirror":
        with contained(source, place, "datapath=passthrough,allow_other") as mount:
            yield mount.mountpoint
            statistics = mount.statistics()
            assert bool(statistics["opens"]["passthrough"]) != set_id
            assert ("WRITE" in statistics["requests"]) == set_id
            good("umount", mount.mountpoint)
            assert mount.wait().code == 0
        return
    factory = partial(WholeFolder, source, as_root=as_root, kill="killpriv" not in way)
    options = MountOptions(allow_other=True, datapath="passthrough")
    with serve_in_process(factory, place, options) as served:
        yield served.path
        told = served.call(asked)
        assert told["carried"] > 0
        assert "read" not in told


@pytest.fixture
def place(session_place: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may enter: ``source`` and ``mnt``."""
    folder = session_place / f"rights-{tmp_path.name}"
    for path in (folder, folder / "source", folder / "mnt"):
        path.mkdir(mode=0o755)
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


def as_nobody(*command: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, input=data, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True,
        check=False,
    )  # fmt: skip


def write_as_nobody(path: Path) -> None:
    done = as_nobody("dd", f"of={path}", "conv=notrunc", "status=none", data=b"stranger")
    assert (done.returncode, done.stderr) == (0, b"")


def fill_as_nobody(path: Path) -> int:
    """Write until no more is taken; how much was."""
    done = as_nobody("dd", "if=/dev/zero", f"of={path}", "bs=64k", "conv=notrunc", "status=none")
    assert done.returncode != 0
    assert b"No space left" in done.stderr or b"quota exceeded" in done.stderr, done.stderr
    return path.stat().st_size


def two_files(source: Path, mode: int) -> tuple[Path, Path]:
    """One to be written to itself, one by way of the mount."""
    for name in ("native", "file"):
        (source / name).write_bytes(CONTENT)
        (source / name).chmod(mode)
    return source / "native", source / "file"


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


MODES = [0o6777, 0o4755 | 0o022, 0o2777]


@pytest.mark.parametrize(
    ("way", "mode"),
    [*itertools.product(WAYS, MODES), ("library", 0o2767), ("library, no killpriv", 0o2767)],
)
def test_a_strangers_write_clears_the_bits(place: Path, way: str, mode: int) -> None:
    """As a write to the file itself does."""
    native, file = two_files(place / "source", mode)
    write_as_nobody(native)
    with mounted(way, place / "source", place / "mnt", set_id=True) as top:
        write_as_nobody(top / "file")
        assert permissions(top / "file") == permissions(native)
    assert file.read_bytes() == b"stranger" + CONTENT[8:]
    assert permissions(file) == permissions(native)
    assert permissions(native) == mode & ~0o6000


def test_root_would_keep_the_bits(place: Path) -> None:
    """What the test before this one is for."""
    _, file = two_files(place / "source", 0o6777)
    with mounted("library", place / "source", place / "mnt", as_root=True) as top:
        write_as_nobody(top / "file")
    assert permissions(file) == 0o6777


def test_roots_own_write_keeps_them(place: Path) -> None:
    """As a rule; with nobody's rights they go. That is the safe side, and the kernel's doing."""
    native, file = two_files(place / "source", 0o6777)
    with mounted("library", place / "source", place / "mnt") as top:
        for path in (native, top / "file"):
            with path.open("r+b") as opened:
                opened.write(b"root")
    assert permissions(native) == 0o6777
    assert permissions(file) == 0o777


@pytest.mark.parametrize("way", [*WAYS, "as root"])
def test_a_strangers_write_takes_capabilities_away(place: Path, way: str) -> None:
    """With whatever rights the file was registered: those have no part in it."""
    native, file = two_files(place / "source", 0o777)
    for path in (native, file):
        os.setxattr(path, CAPABILITY, NET_BIND_SERVICE)
    write_as_nobody(native)
    kind, as_root = ("library", True) if way == "as root" else (way, False)
    with mounted(kind, place / "source", place / "mnt", as_root=as_root) as top:
        write_as_nobody(top / "file")
    assert CAPABILITY not in os.listxattr(native)
    assert CAPABILITY not in os.listxattr(file)


def filled(way: str, below: Path, place: Path, *, as_root: bool) -> tuple[int, int]:
    """How much a stranger can write into a file itself, and by way of the mount."""
    for name in ("native", "file"):
        (below / name).touch()
        os.chown(below / name, NOBODY, NOBODY)
    native = fill_as_nobody(below / "native")
    (below / "native").unlink()
    os.sync()
    with mounted(way, below, place / "mnt", as_root=as_root) as top:
        return native, fill_as_nobody(top / "file")


@pytest.mark.requires("mke2fs", "kernel-ext4")
@pytest.mark.parametrize("way", ["library", "mirror", "as root"])
def test_what_is_reserved_for_root(place: Path, tmp_path: Path, way: str) -> None:
    """A stranger cannot spend it; with a library that registers as root he could."""
    image = make_image(tmp_path / "image", size=ROOM, options=("-m", "50"))
    kind, as_root = ("library", True) if way == "as root" else (way, False)
    with kernel_mount(image, place / "source") as below:
        native, through = filled(kind, below, place, as_root=as_root)
    assert native < ROOM // 2
    if as_root:
        assert through > native + 2 * SLACK
    else:
        assert abs(through - native) < SLACK


# Quota, set without the programs for it


def set_quota(device: str, user: int, limit: int) -> None:
    """A hard limit of so many bytes (quotactl(2), Q_SETQUOTA with QIF_BLIMITS)."""
    libc = ctypes.CDLL(None, use_errno=True)
    limits = struct.pack("=8QI4x", limit >> 10, 0, 0, 0, 0, 0, 0, 0, 1)
    if libc.quotactl(0x80_0008 << 8, device.encode(), user, limits):
        raise OSError(ctypes.get_errno(), "quotactl")


@pytest.mark.requires("mke2fs", "kernel-ext4", "kernel-quota")
@pytest.mark.parametrize("way", ["library", "mirror", "as root"])
def test_under_a_quota(place: Path, tmp_path: Path, way: str) -> None:
    """Nor can he go beyond his quota."""
    options = ("-O", "quota", "-E", "quotatype=usrquota")
    image = make_image(tmp_path / "image", size=ROOM, options=options)
    kind, as_root = ("library", True) if way == "as root" else (way, False)
    with kernel_mount(image, place / "source", "usrquota") as below:
        found = subprocess.run(
            ["findmnt", "-no", "SOURCE", below], capture_output=True, text=True, check=True
        )
        set_quota(found.stdout.strip(), NOBODY, QUOTA)
        native, through = filled(kind, below, place, as_root=as_root)
    assert abs(native - QUOTA) < SLACK
    if as_root:
        assert through > native + 2 * SLACK
    else:
        assert abs(through - native) < SLACK
