# SPDX-License-Identifier: Apache-2.0
"""The worst images, mounted: each can be walked, or is refused with one line.

The server is a process of its own, and so is the walker, which is killed should it hang: a mount
must never take its users with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.bases import BASES, Image
from tests.fuzz.edit import Editor
from tests.fuzz.evil import EVIL, LARGE
from tests.support.commands import contained_servers_of
from tests.support.servings import PENSTOCK, is_mounted, penstock

MEMORY = 200 << 20
CALL_SECONDS = 2.0
NOISE_SECONDS = 4.0
"""What a machine busy with other tests may add to a call."""
WALK_SECONDS = 60.0

MOUNTED = [
    "extent_nodes_share_their_children", "extent_tree_of_depth_five_for_one_block",
    "extent_header:entries 65535", "extent:across the end", "extent:unwritten to the end",
    "indirect_block_is_its_own_child", "pyramid:file of one block",
    "pyramid:file with a hole in each", "pyramid:directory of empty entries",
    "pyramid:directory of near misses", "pyramid:directory of many names",
    "pyramid:directory of holes", "directory_of_rare_names", "directory_tree_is_a_circle",
    "directory_names:itself and above", "directory_names:special inodes",
    "directory_names:dots again", "directory_names:slash", "directory_names:one name twice",
    "directory_names:odd names", "entry_length:plain 0/1", "hash_tree:all leaves for one hash",
    "hash_tree:root names itself", "attributes:many whole blocks", "attributes:NUL in a name",
    "attributes:ACL of a block", "attributes:long names", "attribute_inode:many values of 64 KiB",
    "inode:symlink of a block", "inode:symlink of a block less one", "inode:file of 2^44-1",
    "inode:times", "inode:all flags", "inode:huge directory", "inode:inline of 2^40",
    "root_inode:empty", "root_inode:huge", "journal_holds_itself",
]  # fmt: skip
REFUSED = [
    "root_inode:a file", "root_inode:free", "superblock:csum inodes_count=0xffffffff",
    "superblock:csum log_block_size=0x1f", "superblock:plain feature_incompat=0xffffffff",
    "superblock:plain blocks_per_group=0x0", "superblock:csum desc_size=0x21",
    "group:csum table=0xffffffff", "endless_journal:of descriptors", "filled:zeros",
    "filled:chance", "filled:nothing", "filled:one byte", "filled:csum then zeros",
    "filled:plain then ones", "filled:tables of superblocks",
]  # fmt: skip

WALKER = r"""
import errno, itertools, json, os, stat, sys, time
slowest, calls, failures, odd = (0.0, ""), 0, {}, []
usual = {errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EOPNOTSUPP,
         errno.ENODATA, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ERANGE, errno.E2BIG,
         errno.ENOKEY, errno.EINVAL, errno.EISDIR, errno.EOVERFLOW}
def call(what, function, *args, **kw):
    global slowest, calls
    begun = time.monotonic()
    calls += 1
    try:
        return function(*args, **kw)
    except OSError as error:
        name = errno.errorcode.get(error.errno, str(error.errno))
        failures[name] = failures.get(name, 0) + 1
        if error.errno not in usual:
            odd.append(f"{what}: {error!r}")
    finally:
        slowest = max(slowest, (time.monotonic() - begun, what))
def raised(error):
    raise error
def listing(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found, begun = [], time.monotonic()
        with os.scandir(fd) as entries:
            while len(found) < 3000 and time.monotonic() - begun < 3:
                entry = call("readdir", next, entries, None)
                if entry is None:
                    break
                found.append(os.fsencode(entry.name))
        return found
    finally:
        os.close(fd)
def file(path, size):
    fd = call("open", os.open, path, os.O_RDONLY | os.O_NONBLOCK)
    if fd is None:
        return
    for at in dict.fromkeys((0, size // 2, max(size - 5000, 0))):
        call("read", os.pread, fd, 65536, at)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            call("lseek", os.lseek, fd, at, whence)
    os.close(fd)
def walk(top):
    todo, seen = [top], 0
    while todo and seen < 400:
        path = todo.pop(0)
        seen += 1
        st = call("lstat", os.lstat, path)
        for name in (call("listxattr", os.listxattr, path, follow_symlinks=False) or [])[:20]:
            call("getxattr", os.getxattr, path, name, follow_symlinks=False)
        if st is None:
            continue
        if stat.S_ISLNK(st.st_mode):
            call("readlink", os.readlink, path)
        elif stat.S_ISREG(st.st_mode):
            file(path, st.st_size)
        elif stat.S_ISDIR(st.st_mode):
            names = []
            try:
                names = listing(path)
            except OSError as error:
                call("opendir", raised, error)
            call("lookup", os.lstat, path + b"/absent")
            if path.count(b"/") < top.count(b"/") + 6:
                todo += [path + b"/" + name for name in names[:60]]
call("statfs", os.statvfs, os.fsencode(sys.argv[1]))
walk(os.fsencode(sys.argv[1]))
print(json.dumps({"slowest": slowest, "calls": calls, "failures": failures, "odd": odd}))
"""


def write(image: Image, path: Path) -> Path:
    """The image as a file, holes where it has nothing."""
    with path.open("wb") as file:
        file.write(image.base)
        for offset, data in image.patches:
            file.seek(offset)
            file.write(data)
        file.truncate(image.size)
    return path


def start(image: Path, place: Path) -> subprocess.Popen[str]:
    """``penstock mount -f``; returns when the mount is there, or the process has ended."""
    place.mkdir()
    process = subprocess.Popen(
        [str(PENSTOCK), "mount", "-f", os.fspath(image), os.fspath(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    pidfd = os.pidfd_open(process.pid)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            events = select.poll()
            events.register(pidfd, select.POLLIN)
            events.register(table, select.POLLPRI | select.POLLERR)
            deadline = time.monotonic() + 20
            while process.poll() is None and not is_mounted(place):
                assert time.monotonic() < deadline, "neither mounted nor refused"
                events.poll(1000)
    finally:
        os.close(pidfd)
    return process


def peak_memory(place: Path) -> int:
    """Bytes that the server of a mount has used at most."""
    (pid,) = contained_servers_of(place)
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


def finish(process: subprocess.Popen[str], place: Path) -> str:
    """Unmount; what the server has written. Nothing is left, whatever happens."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        penstock("umount", "--lazy", place, check=False)
        raise
    assert not is_mounted(place)
    return told


def walk(place: Path) -> dict[str, object]:
    """What the walker found."""
    done = subprocess.run(
        [sys.executable, "-c", WALKER, os.fspath(place)],
        capture_output=True,
        text=True,
        check=True,
        timeout=WALK_SECONDS,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def assert_expected(told: str) -> None:
    """The server's log has verdicts on the image, but no exception that it did not expect: such a
    request "failed", and tells the exception's type."""
    assert "Traceback" not in told
    assert not [line for line in told.splitlines() if " failed: " in line]


def assert_usable(image: Path, tmp_path: Path) -> dict[str, object]:
    place = tmp_path / "mnt"
    process = start(image, place)
    try:
        assert process.poll() is None, process.communicate()
        found = walk(place)
        assert found["odd"] == []
        assert found["slowest"][0] < CALL_SECONDS + NOISE_SECONDS, found  # type: ignore[index]
        assert peak_memory(place) < MEMORY
        assert process.poll() is None
    finally:
        told = finish(process, place)
    assert process.returncode == 0, told
    assert_expected(told)
    return found


@pytest.mark.parametrize("base", BASES)
def test_sound_images(base: str, tmp_path: Path) -> None:
    """The same walk where there is nothing to complain of."""
    found = assert_usable(write(Editor(base), tmp_path / "image"), tmp_path)
    assert set(found["failures"]) <= {"ENOENT", "ENODATA", "ENXIO"}  # type: ignore[call-overload]


@pytest.mark.parametrize("name", MOUNTED)
def test_mounted_and_walked(name: str, tmp_path: Path) -> None:
    assert name not in LARGE
    assert_usable(write(EVIL[name](), tmp_path / "image"), tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    """By the program in the foreground and in the background, with the same line."""
    image = write(EVIL[name](), tmp_path / "image")
    place = tmp_path / "mnt"
    process = start(image, place)
    told = finish(process, place)
    again = penstock("mount", image, place, check=False)
    assert (process.returncode, again.returncode) == (32, 32)
    assert told == again.stderr
    assert len(told.splitlines()) == 1
    assert str(image) in told
    assert "Traceback" not in told
    assert not is_mounted(place)


def test_an_image_that_shrinks_under_a_mount(tmp_path: Path) -> None:
    """Its users get errors; the server stays, and unmounts as always."""
    image = write(Editor("csum"), tmp_path / "image")
    place = tmp_path / "mnt"
    process = start(image, place)
    try:
        assert "device" in os.listdir(place)
        os.truncate(image, 200_000)
        found = walk(place)
        failures = found["failures"]
        assert isinstance(failures, dict)
        assert failures.get("EIO", 0) > 3
        assert found["odd"] == []
        assert process.poll() is None
    finally:
        told = finish(process, place)
    assert_expected(told)
