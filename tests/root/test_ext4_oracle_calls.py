# SPDX-License-Identifier: Apache-2.0
"""System calls on a mounted ext4 image beyond a walk of its tree, beside the kernel's mount."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.images import MIB, cached_image, copy_image, kernel_mount
from tests.support.kernelwork import write_all_sorts
from tests.support.oracle import assert_same, capture
from tests.support.servings import Serving, penstock, serving
from tests.support.syscalls import DirStream, handle_of, open_handle, statx

pytestmark = pytest.mark.requires("mke2fs", "kernel-ext4")

BIG = 24 * MIB + 4321
PYTHON = "/usr/bin/python3"
"""Which everybody can execute."""
DATA_PATHS = ("copy", "splice", "auto")
FILES = ("big", "kernel/fragments", "kernel/punched", "kernel/preallocated", "kernel/small60")


def _fill(image: Path) -> None:
    """Once a session: what the kernel driver makes, and a big file."""
    place = image.with_suffix(".work")
    write_all_sorts(image, place)
    with kernel_mount(image, place) as top:
        (top / "big").write_bytes(random.Random(0).randbytes(BIG))
    place.rmdir()


@pytest.fixture(scope="module")
def image() -> Path:
    """An image with one of everything."""
    options = ["-b", "4096", "-N", "8192", "-O", "inline_data"]
    return cached_image(_fill, size=192 * MIB, options=options)


@pytest.fixture(scope="module")
def kernel(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kernel's view of it."""
    with kernel_mount(image, tmp_path_factory.mktemp("kernel"), "ro,noload") as top:
        yield top


@pytest.fixture(scope="module", params=DATA_PATHS)
def by_path(
    request: pytest.FixtureRequest, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """Penstock's view of it, by each data path."""
    place = tmp_path_factory.mktemp("penstock")
    with serving(image, place, f"datapath={request.param}") as served:
        yield served


@pytest.fixture(scope="module")
def mounted(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Penstock's view of it."""
    with serving(image, tmp_path_factory.mktemp("penstock")) as served:
        yield served.path


def _forget_pages(*paths: Path) -> None:
    """Have the kernel ask the server again."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")


# Data


@pytest.mark.parametrize("name", FILES)
def test_random_reads(by_path: Serving, kernel: Path, name: str) -> None:
    chance = random.Random(name)
    size = (kernel / name).stat().st_size
    _forget_pages(by_path.path / name)
    with (kernel / name).open("rb") as expected, (by_path.path / name).open("rb") as seen:
        os.posix_fadvise(seen.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(150):
            offset, length = chance.randrange(size + 100), chance.choice((1, 100, 4096, 70_000))
            want = os.pread(expected.fileno(), length, offset)
            assert os.pread(seen.fileno(), length, offset) == want, (offset, length)
        for length in (MIB, 3 * MIB + 1):
            for offset in (0, 4095, size // 2, size - 5):
                want = os.pread(expected.fileno(), length, offset)
                assert os.pread(seen.fileno(), length, offset) == want, (offset, length)


@pytest.mark.parametrize("name", FILES)
def test_mapped_pages(by_path: Serving, kernel: Path, name: str) -> None:
    _forget_pages(by_path.path / name)
    with (
        (kernel / name).open("rb") as expected,
        (by_path.path / name).open("rb") as seen,
        mmap.mmap(seen.fileno(), 0, access=mmap.ACCESS_READ) as pages,
    ):
        places = list(range(0, len(pages), 4096))
        random.Random(1).shuffle(places)
        for place in places[:500]:
            assert pages[place : place + 64] == os.pread(expected.fileno(), 64, place)
        assert pages[:] == expected.read()


@pytest.mark.parametrize("name", FILES)
def test_sendfile_and_splice(by_path: Serving, kernel: Path, tmp_path: Path, name: str) -> None:
    size = (kernel / name).stat().st_size
    wanted = hashlib.sha256((kernel / name).read_bytes()).hexdigest()
    _forget_pages(by_path.path / name)
    with (by_path.path / name).open("rb") as seen, (tmp_path / "sent").open("w+b") as out:
        sent = 0
        while sent < size:
            sent += os.sendfile(out.fileno(), seen.fileno(), sent, size - sent)
        out.seek(0)
        assert hashlib.file_digest(out, "sha256").hexdigest() == wanted
    _forget_pages(by_path.path / name)
    digest = hashlib.sha256()
    reading, writing = os.pipe()
    with (by_path.path / name).open("rb") as seen:
        while moved := os.splice(seen.fileno(), writing, 65536):
            while moved:
                data = os.read(reading, moved)
                digest.update(data)
                moved -= len(data)
    os.close(reading)
    os.close(writing)
    assert digest.hexdigest() == wanted


@pytest.mark.parametrize("name", FILES)
def test_direct_reads(by_path: Serving, kernel: Path, name: str) -> None:
    """O_DIRECT reads the same, also beside cached reads, or is refused when the file is opened."""
    with (kernel / name).open("rb") as expected, (by_path.path / name).open("rb") as cached:
        try:
            fd = os.open(by_path.path / name, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return
        buffer = mmap.mmap(-1, 2 * MIB)
        try:
            for offset, length in ((0, 4096), (8192, 65536), (0, 2 * MIB), (4096, MIB + 4096)):
                got = os.preadv(fd, [memoryview(buffer)[:length]], offset)
                want = os.pread(expected.fileno(), length, offset)
                assert buffer[:got] == want, (offset, length)
                assert os.pread(cached.fileno(), length, offset) == want
        finally:
            os.close(fd)
            buffer.close()


def test_every_data_path_shows_the_same_tree(by_path: Serving, image: Path, tmp_path: Path) -> None:
    # A copy, of which nothing is cached: unwritten space that the kernel has read it calls data.
    fresh = copy_image(image, tmp_path / "fresh")
    with kernel_mount(fresh, tmp_path / "kernel", "ro,noload") as top:
        expected = capture(top)
    assert_same(expected, capture(by_path.path))


def test_data_path_that_was_asked_for_is_used(by_path: Serving) -> None:
    """A cold file is read by ``splice`` in large pieces, and by ``copy`` alone if that is asked;
    by nobody here, if the kernel carries it."""
    before = by_path.statistics()
    _forget_pages(by_path.path / "big")
    (by_path.path / "big").read_bytes()
    after = by_path.statistics()
    moved = {
        path: after["reads"][path]["bytes"] - before["reads"][path]["bytes"]
        for path in ("copy", "splice")
    }
    if before["datapath"] == "lens":
        assert sum(moved.values()) == 0
        assert after["opens"]["lens"] > before["opens"]["lens"]
        return
    assert sum(moved.values()) >= BIG
    if before["datapath"] == "copy":
        assert moved["splice"] == 0
    else:
        assert moved["splice"] > BIG // 2


READER = """
import hashlib, json, os, random, sys
expected = json.load(open(sys.argv[2]))
names = sorted(expected)
random.Random(sys.argv[3]).shuffle(names)
for name in names:
    with open(os.path.join(os.fsencode(sys.argv[1]), os.fsencode(name)), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if hashlib.file_digest(file, "sha256").hexdigest() != expected[name]:
            print(ascii(name))
print("done")
"""


def test_many_readers(by_path: Serving, kernel: Path, tmp_path: Path) -> None:
    """Eight processes read all files, each in an order of its own."""
    expected = {}
    for folder, _, names in os.walk(kernel):
        for name in names:
            path = Path(folder, name)
            st = path.lstat()
            if stat.S_ISREG(st.st_mode) and st.st_size < 64 * MIB:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                expected[os.fspath(path.relative_to(kernel))] = digest
    table = tmp_path / "expected.json"
    table.write_text(json.dumps(expected))
    readers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", READER, by_path.path, table, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(8)
    ]
    assert [reader.communicate(timeout=60)[0] for reader in readers] == ["done\n"] * 8


# Names


@pytest.fixture
def place(session_place: Path) -> Iterator[Path]:
    """A folder that everybody can enter, of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="oracle-", dir=session_place))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _names(stream: DirStream) -> Iterator[tuple[bytes, int]]:
    while (entry := stream.read()) is not None:
        yield entry


def test_places_in_directories_last(mounted: Path) -> None:
    """telldir's places lead back to the same entry, in this stream and in one opened later."""
    folder = os.fsencode(mounted / "kernel" / "indexed")
    places = []
    entries = []
    with DirStream(folder) as stream:
        while True:
            places.append(stream.tell())
            entry = stream.read()
            if entry is None:
                break
            entries.append(entry)
        assert len(set(places)) == len(places)
        order = list(range(len(entries)))
        random.Random(2).shuffle(order)
        for index in order[:300]:
            stream.seek(places[index])
            assert stream.read() == entries[index]
        stream.seek(places[-1])
        assert stream.read() is None
    _drop_caches()
    with DirStream(folder) as later:
        for index in sorted(order[:50]):
            later.seek(places[index])
            assert later.read() == entries[index]
            assert later.tell() == places[index + 1]
        later.seek(places[0])
        assert list(_names(later)) == entries


@pytest.mark.parametrize("folder", ["", "kernel", "kernel/indexed", "kernel/names3", "kernel/acl"])
def test_listing_has_dots_and_numbers(mounted: Path, kernel: Path, folder: str) -> None:
    listings = []
    for top in (kernel, mounted):
        with DirStream(os.fsencode(top / folder)) as stream:
            listings.append(sorted(_names(stream)))
    expected, seen = listings
    assert dict(seen)[b"."] == (mounted / folder).stat().st_ino
    if folder:  # the kernel's mount shows a parent outside of it as it is on disk
        assert seen == expected
    else:
        assert [entry for entry in seen if entry[0] != b".."] == [
            entry for entry in expected if entry[0] != b".."
        ]


@pytest.mark.parametrize(
    "call",
    [
        lambda top: os.stat(top / "kernel" / "no such name"),
        lambda top: os.stat(top / "kernel" / "indexed" / "no such name"),
        lambda top: os.stat(top / "kernel" / ("x" * 256)),
        lambda top: os.stat(top / "kernel" / "small1" / "below a file"),
        lambda top: os.stat(top / "kernel" / "tree" / "symlink1"),
        lambda top: os.listdir(top / "kernel" / "small1"),
        lambda top: os.readlink(top / "kernel" / "small1"),
        lambda top: os.open(top / "kernel" / "small1", os.O_RDWR),
        lambda top: os.open(top / "kernel" / "new", os.O_RDWR | os.O_CREAT),
        lambda top: os.open(top / "kernel", os.O_RDWR),
        lambda top: os.open(top / "kernel" / "socket", os.O_RDONLY),
        lambda top: os.open(top / "kernel" / "tree" / "symlink58", os.O_RDONLY | os.O_NOFOLLOW),
        lambda top: os.mkdir(top / "new"),
        lambda top: os.unlink(top / "kernel" / "small1"),
        lambda top: os.rename(top / "big", top / "large"),
        lambda top: os.link(top / "big", top / "large"),
        lambda top: os.symlink("x", top / "link"),
        lambda top: os.truncate(top / "big", 3),
        lambda top: os.chmod(top / "big", 0o600),
        lambda top: os.chown(top / "big", 1, 1),
        lambda top: os.utime(top / "big", (1, 1)),
        lambda top: os.setxattr(top / "big", "user.new", b"x"),
        lambda top: os.removexattr(top / "kernel" / "attributes-1-10", "user.name0"),
        lambda top: os.getxattr(top / "big", "user.none"),
        lambda top: os.getxattr(top / "big", "trusted.none"),
        lambda top: os.getxattr(top / "big", "unknown.none"),
        lambda top: os.getxattr(top / "big", "system.posix_acl_access"),
        lambda top: os.mknod(top / "new", 0o20600, 0x103),
        lambda top: os.rmdir(top / "kernel" / "names0"),
    ],
    ids=range(29),
)  # fmt: skip
def test_errors_are_the_kernels(
    mounted: Path, kernel: Path, call: Callable[[Path], object]
) -> None:
    errors = []
    for top in (kernel, mounted):
        with pytest.raises(OSError, match="Errno") as caught:
            call(top)
        errors.append(errno.errorcode[caught.value.errno or 0])
    expected, seen = errors
    assert seen == expected


def test_access_is_denied_as_by_the_kernel(image: Path, place: Path) -> None:
    """Modes and ACLs keep ordinary users out, by name and by group, where the kernel does."""
    # Users and groups that the ACLs of the tree name, and strangers.
    callers = [
        (1000, 1000),
        (1003, 77),
        (1007, 5),
        (5, 77),
        (5, 2000),
        (100_000, 200_000),
        (65534, 65534),
    ]
    with (
        kernel_mount(image, place / "kernel", "ro,noload") as expected,
        serving(image, place / "mount", "allow_other") as served,
    ):
        answers = [[_may(top, uid, gid) for uid, gid in callers] for top in (expected, served.path)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) >= 4


def _may(top: Path, uid: int, gid: int) -> str:
    """What somebody may read, write to and search of part of a tree."""
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    print(name, *(int(os.access(name, mode)) for mode in (4, 2, 1)))\n"
        "    try:\n"
        "        folder = os.path.isdir(name)\n"
        "        print(sorted(os.listdir(name)) if folder else open(name, 'rb').read(9))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    names = [
        "acl", "acl/inherited", "acl/below", "tree/attributes", "tree/owned", "tree/setuid",
        "tree/empty-dir", "small60", "indexed",
    ]  # fmt: skip
    return subprocess.run(
        [PYTHON, "-I", "-c", script, str(top / "kernel"), *names],
        user=uid, group=gid, extra_groups=[], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_values_of_trusted_attributes_are_for_root_alone(image: Path, place: Path) -> None:
    script = (
        "import os, sys\n"
        "assert 'trusted.shared' in os.listxattr(sys.argv[1]) or os.getuid()\n"
        "print(len(os.getxattr(sys.argv[1], 'trusted.shared')))"
    )
    with serving(image, place / "mount", "allow_other") as served:
        command = [PYTHON, "-I", "-c", script, os.fspath(served.path / "kernel" / "shared0")]
        root, nobody = (
            subprocess.run(
                command,
                user=user,
                group=user,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
            for user in (0, 65534)
        )
    assert root.stdout == "360\n"
    assert "No data available" in nobody.stderr


# Handles


def test_handles_outlive_the_cache(mounted: Path, kernel: Path) -> None:
    """What an NFS server does: a handle opens the file after all about it was forgotten."""
    names = ["", "big", "kernel", "kernel/indexed", "kernel/small60", "kernel/deep/level0/level1"]
    handles = {name: handle_of(os.fsencode(mounted / name)) for name in names}
    numbers = {name: (mounted / name).stat().st_ino for name in names}
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(2):
            _drop_caches()
            for name, handle in handles.items():
                opened = open_handle(fd, handle, os.O_RDONLY)
                assert os.fstat(opened).st_ino == numbers[name]
                if (kernel / name).is_file():
                    assert os.pread(opened, 100, 0) == (kernel / name).read_bytes()[:100]
                else:
                    assert sorted(os.listdir(opened)) == sorted(os.listdir(kernel / name))
                os.close(opened)
        handle = handles["kernel/small60"]
        for spoilt in (
            handle._replace(data=handle.data[:8] + b"\xff\xff\xff\x7f" + handle.data[12:]),
            handle._replace(data=b"\xfe\xff\xff\x7f" + handle.data[4:]),
        ):
            with pytest.raises(OSError, match="Stale"):
                open_handle(fd, spoilt, os.O_RDONLY)
    finally:
        os.close(fd)


def test_birth_times_after_the_cache_is_dropped(mounted: Path, kernel: Path) -> None:
    _drop_caches()
    for name in ("big", "kernel", "kernel/small60", "kernel/tree/symlink60"):
        assert statx(os.fsencode(mounted / name)) == statx(os.fsencode(kernel / name))


def test_info_says_what_statfs_says(image: Path, mounted: Path) -> None:
    described = json.loads(penstock("info", "--json", image).stdout)["filesystem"]
    st = os.statvfs(mounted)
    assert described["free_bytes"] == st.f_bfree * st.f_bsize
    assert described["free_inodes"] == st.f_ffree
    assert described["inodes"] == st.f_files
